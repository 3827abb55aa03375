//! Goal: whatever a producer sends, it ends where the README says, and everything beside it is done.
//!
//! Method: the library's worker on a real broker, and the binary where the process itself is at stake. A plain client
//! and a hand-written publisher arrange; what is asserted is what an operator finds: the dead-letter queue with all
//! that the message carried, the empty input queue, the handler's runs, the log, the endpoint.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use onceward::{
    Body, Clock, Context, Handler, OUTGOING_ID_HEADER, OnConflict, OnMissingId, Options,
    QueueOptions, Source, Worker,
};
use tokio::time::{Instant, sleep};

mod support;

use support::process::{WorkerDir, WorkerProcess};
use support::rabbitmq::{Client, Vhost, arguments, ctl};
use support::raw_amqp::{self, RawMessage};

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

const EXCHANGE: &str = "shop";
const ROUTING_KEY: &str = "order.created";

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Messages of the queue, those among them that a consumer holds.
fn messages(vhost: &Vhost, queue: &str) -> u64 {
    tokio::task::block_in_place(|| vhost.messages(queue))
}

/// A handler that does what the body says, and remembers its runs.
#[derive(Clone, Default)]
struct Recorder {
    runs: Arc<Mutex<Vec<Run>>>,
}

#[derive(Clone, Debug)]
struct Run {
    id: Vec<u8>,
    attempt: u32,
    ended: Option<Instant>,
}

impl Recorder {
    fn runs(&self) -> Vec<Run> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Run>> {
        self.runs.lock().expect("nobody panics under it")
    }

    fn runs_of(&self, id: &str) -> Vec<Run> {
        let mut runs = self.runs();
        runs.retain(|run| run.id == id.as_bytes());
        runs
    }
}

impl Handler<Body> for Recorder {
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result {
        let at = {
            let mut runs = self.lock();
            runs.push(Run { id: cx.id().as_bytes().to_vec(), attempt: cx.attempt(), ended: None });
            runs.len() - 1
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        match body.split_once(' ').unwrap_or((&body, "")) {
            ("slow", millis) => sleep(Duration::from_millis(millis.parse()?)).await,
            ("hang", _) => std::future::pending().await,
            ("panic", why) => panic!("{why}"),
            ("reject", why) => return Err(onceward::reject(why)),
            _ => {}
        }
        if let Some(run) = self.lock().get_mut(at) {
            run.ended = Some(Instant::now());
        }
        Ok(())
    }
}

/// Queue `in`, bound to an exchange, and what a worker on it is given. The client goes first: a vhost is deleted under
/// nobody.
struct Scene {
    client: Client,
    vhost: Vhost,
    store: tempfile::TempDir,
    options: QueueOptions,
    recorder: Recorder,
}

impl Scene {
    async fn new() -> Self {
        let vhost = Vhost::new();
        let client = vhost.client().await;
        client.declare_classic("in").await;
        let channel = client.channel().await;
        let declared = channel.exchange_declare(
            EXCHANGE.into(),
            lapin::ExchangeKind::Direct,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        );
        declared.await.expect("an exchange");
        let bound = channel.queue_bind(
            "in".into(),
            EXCHANGE.into(),
            ROUTING_KEY.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("a binding");
        let mut options = QueueOptions::new("in");
        options.identity.key = vec![Source::Header("x-key".to_owned())];
        options.retry.max_attempts = NonZeroU32::MIN.saturating_add(2);
        options.retry.initial = Duration::from_millis(100);
        Self {
            client,
            vhost,
            store: tempfile::tempdir().expect("a directory"),
            options,
            recorder: Recorder::default(),
        }
    }

    async fn publish(&self, properties: BasicProperties, body: &[u8]) {
        publish(&self.client, EXCHANGE, ROUTING_KEY, [(properties, body.to_vec())]).await;
    }

    fn worker(&self) -> Worker {
        let options = Options::new(&self.vhost.url(), self.store.path()).expect("a good url");
        Worker::new(options).queue_with(self.options.clone(), self.recorder.clone())
    }

    /// Runs `worker` until nothing is left in the queue, waiting or held, and takes out the dead letters.
    async fn work_off_with(&self, worker: Worker) -> Vec<Delivery> {
        let shutdown = eventually("empty", async || {
            self.client.depth("in").await == 0 && messages(&self.vhost, "in") == 0
        });
        worker.run_until(shutdown).await.expect("a clean drain");
        assert_eq!(self.client.depth("in").await, 0, "the drain returned something");
        if listed(&self.vhost, "in.dead") {
            self.client.take_all("in.dead").await
        } else {
            Vec::new()
        }
    }

    async fn work_off(&self) -> Vec<Delivery> {
        self.work_off_with(self.worker()).await
    }
}

fn listed(vhost: &Vhost, queue: &str) -> bool {
    let listed = tokio::task::block_in_place(|| ctl(&["list_queues", "-p", vhost.name(), "name"]));
    listed.lines().any(|line| line.trim() == queue)
}

async fn publish(
    client: &Client,
    exchange: &str,
    routing_key: &str,
    messages: impl IntoIterator<Item = (BasicProperties, Vec<u8>)>,
) {
    let channel = client.channel().await;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default());
    confirms.await.expect("confirms");
    let mut sent = Vec::new();
    for (properties, body) in messages {
        let options = BasicPublishOptions::default();
        let publishing =
            channel.basic_publish(exchange.into(), routing_key.into(), options, &body, properties);
        sent.push(publishing.await.expect("published"));
    }
    for confirm in sent {
        assert!(confirm.await.expect("a confirmation").is_ack());
    }
    channel.close(200, "OK".into()).await.expect("closed");
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Everything that a producer can say about a message that stays true of its dead letter.
fn full(id: Option<&str>, headers: &[(&str, AMQPValue)]) -> BasicProperties {
    let nested = arguments(&[("inner", AMQPValue::Boolean(true))]);
    let mut table = arguments(&[
        ("x-custom", AMQPValue::LongString(vec![b'c', 0xff, 0].into())),
        ("x-number", AMQPValue::LongLongInt(-42)),
        ("x-table", AMQPValue::FieldTable(nested)),
    ]);
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let properties = BasicProperties::default()
        .with_content_type("application/vnd.shop+json".into())
        .with_content_encoding("identity".into())
        .with_headers(table)
        .with_delivery_mode(2)
        .with_priority(3)
        .with_correlation_id("c-7".into())
        .with_reply_to("replies".into())
        .with_timestamp(1_600_000_000)
        .with_type("order".into())
        .with_app_id("shop-7".into());
    match id {
        Some(id) => properties.with_message_id(id.into()),
        None => properties,
    }
}

fn keyed(id: &str, key: &str) -> BasicProperties {
    full(Some(id), &[("x-key", text(key))])
}

/// What a dead letter must say beside what its message said.
struct Death<'a> {
    reason: &'a str,
    attempts: i64,
    /// Part of the error.
    error: &'a str,
}

/// Asserts all that is promised of a dead letter.
fn assert_dead(letter: &Delivery, death: &Death<'_>, original: &BasicProperties, body: &[u8]) {
    assert!(letter.data == body, "{} bytes of body", letter.data.len());
    let mut headers = letter.properties.headers().clone().unwrap_or_default();
    let mut take = |name: &str| {
        let value = headers.inner().get(name).cloned();
        let left: FieldTable = headers
            .inner()
            .iter()
            .filter(|(header, _)| header.as_str() != name)
            .map(|(header, value)| (header.clone(), value.clone()))
            .collect::<std::collections::BTreeMap<_, _>>()
            .into();
        headers = left;
        value.unwrap_or_else(|| panic!("{name} is missing"))
    };
    assert_eq!(take("x-onceward-reason"), text(death.reason));
    let AMQPValue::LongString(error) = take("x-onceward-error") else {
        panic!("the error is text");
    };
    let error = error.to_string();
    assert!(error.contains(death.error), "{error}");
    let attempts = AMQPValue::LongLongInt(death.attempts);
    assert_eq!(take("x-onceward-attempts"), attempts, "{}", death.reason);
    assert_eq!(take("x-onceward-queue"), text("in"));
    assert_eq!(take("x-onceward-exchange"), text(EXCHANGE));
    assert_eq!(take("x-onceward-routing-key"), text(ROUTING_KEY));
    let AMQPValue::Timestamp(first_seen) = take("x-onceward-first-seen") else {
        panic!("the first sight is a time");
    };
    let now = Clock::default().now_ms() / 1000;
    assert!((now - 600..=now).contains(&first_seen), "{first_seen}");
    assert!(matches!(take(OUTGOING_ID_HEADER), AMQPValue::LongString(_)));
    let expected = original.headers().clone().unwrap_or_default();
    assert_eq!(headers, expected, "the message's own headers");
    let without_headers = |from: &BasicProperties| {
        let mut properties = from.clone().with_headers(FieldTable::default());
        if from.delivery_mode().is_none() {
            properties = properties.with_delivery_mode(2);
        }
        properties
    };
    assert_eq!(without_headers(&letter.properties), without_headers(original));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_an_id_is_dead_with_all_that_it_carried() {
    let scene = Scene::new().await;
    let cases = [full(None, &[]), full(Some(""), &[])];
    for properties in &cases {
        scene.publish(properties.clone(), b"body").await;
    }
    let letters = scene.work_off().await;
    assert_eq!((letters.len(), scene.recorder.runs().len()), (2, 0));
    let death = Death { reason: "missing-id", attempts: 0, error: "message-id" };
    for properties in &cases {
        let same = |letter: &&Delivery| letter.properties.message_id() == properties.message_id();
        let letter = letters.iter().find(same).expect("it is there");
        assert_dead(letter, &death, properties, b"body");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ids_equal_messages_are_one_by_choice() {
    let mut scene = Scene::new().await;
    scene.options.identity.on_missing_id = OnMissingId::Fingerprint;
    for body in ["x", "y", "x", "x"] {
        scene.publish(full(None, &[]), body.as_bytes()).await;
    }
    assert_eq!(scene.work_off().await.len(), 0);
    assert_eq!(scene.recorder.runs().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_too_long_or_of_a_wrong_type_is_dead() {
    let mut scene = Scene::new().await;
    scene.options.identity.id = vec![Source::Header("x-id".to_owned())];
    let nested = AMQPValue::FieldTable(FieldTable::default());
    let cases =
        [(text(&"i".repeat(1025)), "1025"), (nested, "table"), (AMQPValue::Double(1.5), "float")];
    let cases = cases.map(|(id, error)| (full(None, &[("x-id", id)]), error));
    for (properties, error) in &cases {
        scene.publish(properties.clone(), error.as_bytes()).await;
    }
    let longest = full(None, &[("x-id", text(&"i".repeat(1024)))]);
    scene.publish(longest, b"fine").await;
    let letters = scene.work_off().await;
    assert_eq!((letters.len(), scene.recorder.runs().len()), (3, 1));
    for (properties, error) in &cases {
        let letter = letters.iter().find(|letter| letter.data == error.as_bytes());
        let death = Death { reason: "bad-id", attempts: 0, error };
        assert_dead(letter.expect("it is there"), &death, properties, error.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_id_with_another_body_is_a_conflict() {
    let scene = Scene::new().await;
    for body in ["first", "second", "first", "second"] {
        scene.publish(keyed("a", "k"), body.as_bytes()).await;
    }
    let letters = scene.work_off().await;
    assert_eq!((letters.len(), scene.recorder.runs().len()), (1, 1));
    let death = Death { reason: "conflict", attempts: 0, error: "another body" };
    assert_dead(&letters[0], &death, &keyed("a", "k"), b"second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_is_skipped_by_choice() {
    let mut scene = Scene::new().await;
    scene.options.on_conflict = OnConflict::Skip;
    for body in ["first", "second"] {
        scene.publish(keyed("a", "k"), body.as_bytes()).await;
    }
    assert_eq!(scene.work_off().await.len(), 0);
    assert_eq!(scene.recorder.runs().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_decode_is_dead_on_its_first_attempt() {
    #[derive(serde::Deserialize)]
    struct Order {
        _item: String,
    }
    async fn never(_: &mut Context, _: Order) -> onceward::Result {
        panic!("it does not decode");
    }
    let scene = Scene::new().await;
    let bodies = [&b"{}"[..], b"\xff", b""];
    for (number, body) in bodies.into_iter().enumerate() {
        scene.publish(keyed(&number.to_string(), "k"), body).await;
    }
    let options = Options::new(&scene.vhost.url(), scene.store.path()).expect("a good url");
    let worker = Worker::new(options).queue_with(scene.options.clone(), never);
    let letters = scene.work_off_with(worker).await;
    assert_eq!(letters.len(), 3);
    let death = Death { reason: "decode", attempts: 1, error: "JSON" };
    for ((number, body), letter) in bodies.into_iter().enumerate().zip(&letters) {
        assert_dead(letter, &death, &keyed(&number.to_string(), "k"), body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_arrives_whole_in_the_dead_letter_queue() {
    let scene = Scene::new().await;
    let large: Vec<u8> = (0..3 * 1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    scene.publish(keyed("large", "k"), &large).await;
    scene.publish(keyed("limit", "k"), &vec![b'x'; 1024 * 1024]).await;
    let letters = scene.work_off().await;
    assert_eq!((letters.len(), scene.recorder.runs().len()), (1, 1));
    let death = Death { reason: "too-large", attempts: 0, error: "3145728 bytes" };
    assert_dead(&letters[0], &death, &keyed("large", "k"), &large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_panic_or_hang_are_exhausted_while_other_keys_go_on() {
    let mut scene = Scene::new().await;
    scene.options.timeout = Duration::from_millis(300);
    scene.options.retry.jitter = false;
    let poison = [
        ("panic", "panic oh no", "the handler panicked: oh no"),
        ("hang", "hang", "timed out after 300ms"),
    ];
    for (id, body, _) in poison {
        scene.publish(keyed(id, id), body.as_bytes()).await;
        scene.publish(keyed(&format!("behind {id}"), id), b"").await;
    }
    for number in 0..50 {
        scene.publish(keyed(&format!("m{number}"), &format!("k{}", number % 5)), b"").await;
    }
    let letters = scene.work_off().await;
    assert_eq!(letters.len(), 2);
    for (id, body, error) in poison {
        let letter =
            letters.iter().find(|letter| letter.data == body.as_bytes()).expect("it is there");
        let death = Death { reason: "exhausted", attempts: 3, error };
        assert_dead(letter, &death, &keyed(id, id), body.as_bytes());
        let attempts = scene.recorder.runs_of(id);
        let attempts: Vec<_> = attempts.iter().map(|run| run.attempt).collect();
        assert_eq!(attempts, [1, 2, 3]);
        assert_eq!(scene.recorder.runs_of(&format!("behind {id}")).len(), 1);
    }
    let runs = scene.recorder.runs();
    let place = |wanted: &dyn Fn(&Run) -> bool| runs.iter().rposition(wanted).expect("it ran");
    let last_innocent = place(&|run| run.id.starts_with(b"m"));
    assert!(
        last_innocent < place(&|run| run.id == b"panic" && run.attempt == 3)
            && last_innocent < place(&|run| run.id == b"hang" && run.attempt == 3),
        "{runs:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_key_does_not_hold_up_the_others() {
    const HOT: usize = 15;
    let mut scene = Scene::new().await;
    scene.options.concurrency = NonZeroUsize::new(4).unwrap();
    for number in 0..HOT {
        scene.publish(keyed(&format!("hot{number}"), "hot"), b"slow 200").await;
    }
    let others = (0..200).map(|number| {
        let properties = keyed(&format!("m{number}"), &format!("k{number}"));
        (properties, Vec::new())
    });
    publish(&scene.client, EXCHANGE, ROUTING_KEY, others).await;
    assert_eq!(scene.work_off().await.len(), 0);
    let runs = scene.recorder.runs();
    assert_eq!(runs.len(), HOT + 200);
    let last = |prefix: &[u8]| {
        let ended = runs.iter().filter(|run| run.id.starts_with(prefix)).map(|run| run.ended);
        ended.max().flatten().expect("it ran")
    };
    let ahead = last(b"hot").duration_since(last(b"m"));
    assert!(ahead > Duration::from_millis(1000), "the others end {ahead:?} before the hot key");
    let hot: Vec<_> = runs.iter().filter(|run| run.id.starts_with(b"hot")).collect();
    for (number, run) in hot.iter().enumerate() {
        assert_eq!(run.id, format!("hot{number}").as_bytes(), "in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_not_routed_again_does_not_expire_and_needs_no_user() {
    let scene = Scene::new().await;
    for queue in ["elsewhere", "hourglass"] {
        scene.client.declare_classic(queue).await;
    }
    let copies = |name| {
        let to = AMQPValue::FieldArray(vec![text("elsewhere")].into());
        full(Some(name), &[(name, to)]).with_user_id("guest".into())
    };
    // Through the default exchange, which routes the copies to the queue of that name.
    let routed = [(copies("CC"), b"reject cc".to_vec()), (copies("BCC"), b"reject bcc".to_vec())];
    publish(&scene.client, "", "in", routed).await;
    assert_eq!(scene.client.take_all("elsewhere").await.len(), 2);
    let short_lived = keyed("short-lived", "k").with_expiration("2000".into());
    let worker = scene.worker();
    let expiring = async {
        // Published while the worker runs, so that it does not expire before.
        scene.publish(short_lived.clone(), b"reject late").await;
        eventually("dead-lettered", async || messages(&scene.vhost, "in") == 0).await;
        let same = BasicProperties::default().with_expiration("2000".into());
        publish(&scene.client, "", "hourglass", [(same, Vec::new())]).await;
        eventually("expired", async || scene.client.depth("hourglass").await == 0).await;
    };
    worker.run_until(expiring).await.expect("a clean drain");

    let letters = scene.client.take_all("in.dead").await;
    assert_eq!(letters.len(), 3);
    assert_eq!(scene.client.depth("elsewhere").await, 0, "not routed again");
    let letter = |body: &[u8]| {
        let found = letters.iter().find(|letter| letter.data == body);
        let properties = &found.expect("it is there").properties;
        assert_eq!(properties.app_id().clone(), Some("shop-7".into()));
        assert_eq!((properties.user_id(), properties.expiration()), (&None, &None));
        properties.headers().clone().expect("headers")
    };
    let cc = letter(b"reject cc");
    let to = AMQPValue::FieldArray(vec![text("elsewhere")].into());
    assert_eq!(cc.inner().get("x-onceward-cc"), Some(&to));
    assert_eq!(cc.inner().get("x-onceward-user-id"), Some(&text("guest")));
    letter(b"reject bcc");
    let expiration = letter(b"reject late");
    let expiration = expiration.inner().get("x-onceward-expiration");
    assert_eq!(expiration, Some(&text("2000")));
}

/// A worker of the binary on queue `in`, with its endpoint.
struct Stage {
    client: Client,
    vhost: Vhost,
    directory: WorkerDir,
    endpoint: String,
}

impl Stage {
    /// `queue` is the rest of the table of queue `in`, and what else there is to configure.
    async fn new(queue: &str) -> Self {
        let vhost = Vhost::new();
        let client = vhost.client().await;
        client.declare_classic("in").await;
        // Free at this moment; a port that somebody takes meanwhile fails the test with the worker's words.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = free.local_addr().expect("an address").to_string();
        drop(free);
        let tables = format!("[http]\nlisten = \"{endpoint}\"\n[queues.in]\n{queue}\n");
        let directory = WorkerDir::new(&vhost.url(), &tables);
        Self { client, vhost, directory, endpoint }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        match reqwest::get(format!("http://{}{path}", self.endpoint)).await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                (status, answer.text().await.unwrap_or_default())
            }
            Err(error) => (0, error.to_string()),
        }
    }

    /// A metric's value; `None` while the endpoint does not answer.
    async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    async fn metric_becomes(&self, series: &str, value: f64) {
        eventually(&format!("{series} {value}"), async || self.metric(series).await == Some(value))
            .await;
    }

    async fn stop(&self, worker: WorkerProcess) {
        worker.signal("TERM");
        let status = worker.wait(PATIENCE);
        assert!(status.success(), "{status}: {}", self.directory.logged());
        assert_eq!(self.client.depth("in").await, 0, "the queue is empty");
    }

    /// The log's lines with this text.
    fn logged(&self, text: &str) -> Vec<String> {
        let logged = self.directory.logged();
        let lines = logged.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_may_be_any_bytes_and_is_escaped_in_the_log() {
    let stage = Stage::new("id = [\"header:x-id\"]\ndeliver = { type = \"log\" }").await;
    let id = AMQPValue::LongString(b"\x1b[31m\xff\xfe\n\x00end".to_vec().into());
    let message = full(None, &[("x-id", id)]);
    let twins = [(message.clone(), Vec::new()), (message, Vec::new())];
    publish(&stage.client, "", "in", twins).await;
    let worker = stage.directory.start();
    stage.metric_becomes("onceward_settled_total{queue=\"in\",result=\"acked\"}", 2.0).await;
    let done = stage.metric("onceward_done_total{queue=\"in\"}").await;
    assert_eq!(done, Some(1.0));
    stage.stop(worker).await;
    let logged = std::fs::read(stage.directory.log()).expect("a log");
    let logged = String::from_utf8(logged).expect("the log is UTF-8");
    assert!(logged.contains(r"\\u{1b}[31m\\xff\\xfe\\n\\u{0}end"), "{logged}");
    let is_raw = |c: char| c.is_control() && c != '\n';
    assert!(!logged.contains(is_raw), "{logged}");
    assert!(!logged.contains("\\u001b"), "{logged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_a_key_run_beside_each_other_and_that_is_said_once() {
    let stage =
        Stage::new("deliver = { type = \"command\", argv = [\"/bin/sleep\", \"1\"] }").await;
    stage.client.publish("in", (0..20).map(|number| number.to_string())).await;
    let worker = stage.directory.start();
    stage.metric_becomes("onceward_in_flight{queue=\"in\"}", 20.0).await;
    stage.metric_becomes("onceward_done_total{queue=\"in\"}", 20.0).await;
    stage.stop(worker).await;
    assert_eq!(stage.logged("no ordering key").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_the_process_ends_as_a_crash_loop_and_the_others_are_done() {
    const MAX_ATTEMPTS: usize = 3;
    let ledger = tempfile::NamedTempFile::new().expect("a file");
    let script = format!(
        "[ \\\"$ONCEWARD_ID\\\" = poison ] && kill -9 $PPID; echo $ONCEWARD_ID >> {}",
        ledger.path().display()
    );
    let stage = Stage::new(&format!(
        "key = [\"header:x-key\"]\nretry = {{ max_attempts = {MAX_ATTEMPTS} }}\n\
         deliver = {{ type = \"command\", argv = [\"/bin/sh\", \"-c\", \"{script}\"] }}"
    ))
    .await;
    let ids: Vec<String> = (0..100).map(|number| format!("m{number}")).collect();
    let mut messages: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(number, id)| (keyed(id, &format!("k{}", number % 10)), Vec::new()))
        .collect();
    messages.insert(30, (keyed("poison", "poison"), b"boom".to_vec()));
    publish(&stage.client, "", "in", messages).await;

    let mut kills = 0;
    let worker = loop {
        let mut worker = stage.directory.start();
        let mut ended = false;
        eventually("killed or done", async || {
            ended = !worker.is_running();
            ended || crate::messages(&stage.vhost, "in") == 0
        })
        .await;
        if !ended {
            break worker;
        }
        kills += 1;
        assert!(kills <= MAX_ATTEMPTS + 1, "{}", stage.directory.logged());
    };
    stage.stop(worker).await;
    assert!(kills >= MAX_ATTEMPTS, "{kills} kills");
    let letters = stage.client.take_all("in.dead").await;
    let dead: Vec<_> =
        letters.iter().map(|letter| letter.properties.message_id().clone()).collect();
    assert_eq!(dead, [Some("poison".into())], "nobody else died");
    let headers = letters[0].properties.headers().clone().expect("headers");
    assert_eq!(headers.inner().get("x-onceward-reason"), Some(&text("crash-loop")));
    assert_eq!(
        headers.inner().get("x-onceward-attempts"),
        Some(&AMQPValue::LongLongInt(MAX_ATTEMPTS as i64))
    );
    assert_eq!(letters[0].data, b"boom");
    let ran = std::fs::read_to_string(ledger.path()).expect("a ledger");
    for id in &ids {
        assert!(ran.lines().any(|line| line == id), "{id} is not done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_nested_by_the_thousand_are_dead_and_the_worker_survives() {
    let stage = Stage::new("deliver = { type = \"log\" }").await;
    let before = (0..10).map(|number| format!("before {number}"));
    stage.client.publish("in", before).await;
    let nested =
        [raw_amqp::nested_arrays(b"deep", 15_000), raw_amqp::nested_tables(b"deep", 15_000)];
    let nested = nested.into_iter().enumerate().map(|(number, headers)| {
        let others = raw_amqp::header(b"x-custom", b"kept");
        RawMessage {
            message_id: Some(format!("deep {number}").into_bytes()),
            headers: Some([others, headers].concat()),
            body: b"body".to_vec(),
            ..RawMessage::default()
        }
    });
    let nested: Vec<_> = nested.collect();
    raw_amqp::publish(&stage.vhost.url(), "in", &nested);
    let after = (0..10).map(|number| format!("after {number}"));
    stage.client.publish("in", after).await;
    let worker = stage.directory.start();
    stage.metric_becomes("onceward_settled_total{queue=\"in\",result=\"acked\"}", 22.0).await;
    let done = stage.metric("onceward_done_total{queue=\"in\"}").await;
    assert_eq!(done, Some(20.0));
    stage.stop(worker).await;
    let letters = stage.client.take_all("in.dead").await;
    assert_eq!(letters.len(), 2);
    for letter in letters {
        let headers = letter.properties.headers().clone().expect("headers");
        let header = |name: &str| headers.inner().get(name).cloned();
        assert_eq!(header("x-onceward-reason"), Some(text("decode")));
        let error = "header \"deep\" nests deeper than 32 levels";
        assert_eq!(header("x-onceward-error"), Some(text(error)));
        assert_eq!(header("x-custom"), Some(text("kept")));
        assert_eq!(letter.data, b"body");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_parsed_blocks_its_queue_alone_until_it_is_quarantined() {
    let stage =
        Stage::new("deliver = { type = \"log\" }\n[queues.other]\ndeliver = { type = \"log\" }")
            .await;
    stage.client.declare_classic("other").await;
    let before = (0..10).map(|number| format!("before {number}"));
    stage.client.publish("in", before).await;
    let bad = RawMessage {
        message_id: Some(b"\xff\xfeid".to_vec()),
        headers: Some(raw_amqp::header(b"x-custom", b"kept")),
        body: b"not to be lost".to_vec(),
        ..RawMessage::default()
    };
    raw_amqp::publish(&stage.vhost.url(), "in", &[bad]);
    let after = (0..10).map(|number| format!("after {number}"));
    stage.client.publish("in", after).await;

    let mut worker = stage.directory.start();
    stage.metric_becomes("onceward_blocked{queue=\"in\"}", 1.0).await;
    let (status, reasons) = stage.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(reasons.contains("queue in:"), "{reasons}");
    let done = "onceward_done_total{queue=\"in\"}";
    stage.metric_becomes(done, 10.0).await;
    stage.client.publish("other", (0..10).map(|number| number.to_string())).await;
    stage.metric_becomes("onceward_done_total{queue=\"other\"}", 10.0).await;
    // Through two of its looks at the queue it stays so, and says it once.
    let reconnects = "onceward_reconnects_total{queue=\"in\"}";
    let seen = stage.metric(reconnects).await.expect("it is there");
    eventually("looked twice more", async || {
        assert_eq!(stage.get("/readyz").await.0, 503);
        let blocked = stage.metric("onceward_blocked{queue=\"in\"}").await;
        assert_eq!(blocked, Some(1.0));
        stage.metric(reconnects).await >= Some(seen + 2.0)
    })
    .await;
    let errors = stage.logged("\"ERROR\"");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].contains("A message that cannot be parsed")
            && errors[0].contains("\"queue\":\"in\""),
        "{errors:?}"
    );
    assert!(worker.is_running());

    let mut quarantine = stage.directory.command(&["quarantine", "--queue", "in", "--out", "kept"]);
    let quarantined =
        tokio::task::block_in_place(|| quarantine.output()).expect("the binary starts");
    assert!(quarantined.status.success(), "{quarantined:?}");
    let said = String::from_utf8_lossy(&quarantined.stdout).into_owned();
    assert!(said.contains(r"message-id is not UTF-8: \xff\xfeid"), "{said}");

    stage.metric_becomes(done, 20.0).await;
    stage.metric_becomes("onceward_blocked{queue=\"in\"}", 0.0).await;
    eventually("ready", async || stage.get("/readyz").await.0 == 200).await;
    let prefetches = stage.logged("\"consuming\",\"queue\":\"in\"");
    let last = prefetches.last().expect("it consumed");
    assert!(last.contains("\"prefetch\":500"), "{prefetches:#?}");
    stage.stop(worker).await;
    let kept = std::fs::read_dir(stage.directory.path().join("kept")).expect("a directory");
    let kept: Vec<_> = kept.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for path in kept {
        let bytes = std::fs::read(&path).expect("a file");
        if path.extension().is_some_and(|extension| extension == "json") {
            let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            assert_eq!(json["properties"]["message-id"], "\\xff\\xfeid");
            assert_eq!(json["properties"]["headers"]["x-custom"], "kept");
        } else {
            assert!(bytes.ends_with(b"not to be lost"));
            assert!(bytes.windows(5).any(|bytes| bytes == b"\x04\xff\xfeid"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_keys_is_worked_off_in_bounded_memory() {
    const KEYS: u32 = 50_000;
    const RSS_KIB_MAX: u64 = 400 * 1024;
    let stage = Stage::new("key = [\"header:x-key\"]\ndeliver = { type = \"log\" }").await;
    let messages = (0..KEYS).map(|number| {
        let headers = arguments(&[("x-key", text(&format!("key {number}")))]);
        let properties = BasicProperties::default()
            .with_message_id(number.to_string().into())
            .with_headers(headers);
        (properties, vec![b'x'; 200])
    });
    publish(&stage.client, "", "in", messages).await;
    let command = stage.directory.command(&["run", "--set", "log.level=warn"]);
    let worker = stage.directory.start_as(command);
    stage.metric_becomes("onceward_done_total{queue=\"in\"}", f64::from(KEYS)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.id()));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|line| {
        let kib = line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let peak = peak.expect("a peak");
    println!("{KEYS} keys: at most {peak} KiB of memory");
    assert!(peak < RSS_KIB_MAX, "{peak} KiB");
    stage.stop(worker).await;
}

#[test]
fn a_bad_configuration_is_refused_with_every_error_at_once() {
    let directory = WorkerDir::new(
        "amqp://guest:guest@127.0.0.1:1/%2f",
        "[queues.in]\nprefech = 5\ntimeout = 30\nretention = \"7 fortnights\"\non_conflict = \"skipp\"\n\
         retry = { max_attempts = 0 }\ndeliver = { type = \"lgo\" }\n",
    );
    for command in [&["run"][..], &["check"]] {
        let output = directory.command(command).output().expect("it starts");
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let said = String::from_utf8(output.stderr).expect("text");
        for part in [
            "prefech",
            "prefetch",
            "timeout",
            "retention",
            "on_conflict",
            "max_attempts",
            "lgo",
            "config.toml:",
            ":8",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
