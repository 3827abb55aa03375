//! The stock binary as an operator meets it: targets, signals, lost connections, exit codes, on a real broker.
//!
//! What is downstream is a small HTTP ledger of the test's own; it sees what the worker sends and decides the answer by
//! the body.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use tokio::time::Instant;

mod support;

use support::process::{WorkerDir, WorkerProcess};
use support::rabbitmq::{Client, Vhost, ctl};

const PATIENCE: Duration = Duration::from_secs(40);

/// One request as the ledger got it.
#[derive(Clone, Debug)]
struct Call {
    headers: HeaderMap,
    body: String,
}

impl Call {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }
}

#[derive(Clone, Default)]
struct Ledger {
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Ledger {
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("not poisoned").clone()
    }
}

/// The body says what to answer: `slow MS`, `flaky` (503 first, then 200), `bad` (400), anything else 200.
async fn answer(
    State(ledger): State<Ledger>,
    headers: HeaderMap,
    body: String,
) -> impl IntoResponse {
    let seen = {
        let mut calls = ledger.calls.lock().expect("not poisoned");
        calls.push(Call { headers, body: body.clone() });
        calls.iter().filter(|call| call.body == body).count()
    };
    match body.split_once(' ').unwrap_or((&body, "")) {
        ("slow", ms) => {
            tokio::time::sleep(Duration::from_millis(ms.parse().expect("a number"))).await;
            (StatusCode::OK, [("retry-after", "0")])
        }
        ("flaky", _) if seen == 1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]),
        ("bad", _) => (StatusCode::BAD_REQUEST, [("retry-after", "0")]),
        _ => (StatusCode::OK, [("retry-after", "0")]),
    }
}

/// A vhost, a ledger and a worker's directory that hands queue `in` to the ledger.
struct Scene {
    vhost: Vhost,
    client: Client,
    ledger: Ledger,
    directory: WorkerDir,
    metrics: String,
    _server: tokio::task::JoinSet<()>,
}

impl Scene {
    async fn new() -> Self {
        let vhost = Vhost::new();
        let client = vhost.client().await;
        client.declare_classic("in").await;
        let ledger = Ledger::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = axum::Router::new()
            .route("/hook", axum::routing::post(answer))
            .with_state(ledger.clone());
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        // Free at this moment; a port that somebody takes meanwhile fails the test with the worker's words.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let metrics = free.local_addr().expect("an address").to_string();
        drop(free);
        let directory = WorkerDir::new(
            &vhost.url(),
            &format!(
                "[http]\nlisten = \"{metrics}\"\n[queues.in]\nkey = [\"header:x-key\"]\n\
                 deliver = {{ type = \"http\", url = \"http://{address}/hook\" }}\n"
            ),
        );
        Self { vhost, client, ledger, directory, metrics, _server: server }
    }

    fn start(&self) -> WorkerProcess {
        let worker = self.directory.start();
        worker.wait_for_log("\"consuming\"", PATIENCE);
        worker
    }

    /// Publishes with the binary's own command.
    fn publish(&self, id: &str, key: &str, body: &str) {
        let arguments = ["publish", "-q", "in", "--id", id, "--key", key];
        let mut command = self.directory.command(&arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(body.as_bytes()).expect("written");
        drop(stdin);
        assert!(child.wait().expect("it ends").success());
    }

    fn onceward(&self, arguments: &[&str]) -> Output {
        self.directory.command(arguments).output().expect("the binary starts")
    }

    /// The endpoint's answer: status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.metrics);
        match reqwest::get(url).await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap_or_default()),
            Err(error) => (0, error.to_string()),
        }
    }

    async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("{series} is missing in {text}"))
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "never {what}:\n{}", self.directory.logged());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_reaches_its_endpoint_once_with_a_key_to_dedupe_by() {
    let scene = Scene::new().await;
    let worker = scene.start();
    for (id, body) in [("a", "first"), ("a", "first"), ("b", "flaky"), ("c", "bad"), ("b", "flaky")]
    {
        scene.publish(id, "k 1", body);
    }
    scene
        .until("all settled", async || {
            scene.metric("onceward_settled_total{queue=\"in\",result=\"acked\"}").await == 5.0
        })
        .await;
    let calls = scene.ledger.calls();
    let bodies: Vec<_> = calls.iter().map(|call| &*call.body).collect();
    assert_eq!(bodies, ["first", "flaky", "flaky", "bad"]);
    let [first, flaky, again, _] = &calls[..] else { unreachable!() };
    assert_eq!(first.header("x-onceward-id"), "a");
    assert_eq!(first.header("x-onceward-key"), "k%201");
    assert_eq!(first.header("x-onceward-queue"), "in");
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(
        (flaky.header("x-onceward-attempt"), again.header("x-onceward-attempt")),
        ("1", "2")
    );
    let key = flaky.header("idempotency-key");
    assert!(key.len() == 34 && key.starts_with('"') && key.ends_with('"'), "{key}");
    assert_eq!(key, again.header("idempotency-key"));
    assert_ne!(key, first.header("idempotency-key"));
    for (series, value) in [
        ("onceward_received_total{queue=\"in\"}", 5.0),
        ("onceward_done_total{queue=\"in\"}", 2.0),
        ("onceward_duplicates_total{queue=\"in\"}", 2.0),
        ("onceward_retries_total{queue=\"in\"}", 1.0),
        ("onceward_dead_total{queue=\"in\",reason=\"rejected\"}", 1.0),
        ("onceward_dead_total{queue=\"in\",reason=\"exhausted\"}", 0.0),
    ] {
        assert_eq!(scene.metric(series).await, value, "{series}");
    }
    assert_eq!(scene.client.take_all("in.dead").await.len(), 1);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_signal_lets_handlers_finish_and_returns_the_rest() {
    let scene = Scene::new().await;
    // One key: the first runs, the others wait for it.
    for number in 0..6 {
        scene.publish(&format!("m{number}"), "k", "slow 1500");
    }
    let worker = scene.start();
    scene.until("running", async || !scene.ledger.calls().is_empty()).await;
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success());
    assert_eq!(scene.ledger.calls().len(), 1, "no new run after the signal");
    assert_eq!(scene.client.depth("in").await, 5, "what had finished is acked, the rest is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_leaves_at_once() {
    let scene = Scene::new().await;
    scene.publish("a", "k", "slow 20000");
    let worker = scene.start();
    scene.until("running", async || !scene.ledger.calls().is_empty()).await;
    worker.signal("INT");
    worker.wait_for_log("draining", PATIENCE);
    worker.signal("INT");
    let status = worker.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(1));
    scene.until("returned", async || scene.client.depth("in").await == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_opened_again_and_doubles_nothing() {
    let scene = Scene::new().await;
    let worker = scene.start();
    assert_eq!(scene.get("/readyz").await.0, 200);
    scene.publish("a", "k", "slow 3000");
    scene.publish("b", "k", "after");
    scene.until("running", async || !scene.ledger.calls().is_empty()).await;
    ctl(&["close_all_connections", "--vhost", scene.vhost.name(), "test"]);
    scene.until("unready", async || scene.get("/readyz").await.0 == 503).await;
    assert_eq!(scene.get("/livez").await.0, 200);
    scene.until("ready again", async || scene.get("/readyz").await.0 == 200).await;
    scene.until("done", async || scene.ledger.calls().len() == 2).await;
    assert_eq!(scene.metric("onceward_reconnects_total{queue=\"in\"}").await, 1.0);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success());
    let bodies: Vec<_> = scene.ledger.calls().into_iter().map(|call| call.body).collect();
    assert_eq!(bodies, ["slow 3000", "after"]);
    let client = scene.vhost.client().await;
    assert_eq!(client.depth("in").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_tells_of_an_id_when_its_worker_has_stopped() {
    let scene = Scene::new().await;
    let worker = scene.start();
    scene.publish("a", "k", "first");
    scene.publish("c", "k", "bad");
    scene
        .until("all settled", async || {
            scene.metric("onceward_settled_total{queue=\"in\",result=\"acked\"}").await == 2.0
        })
        .await;
    let running = scene.onceward(&["inspect", "a", "--queue", "in"]);
    assert_eq!(running.status.code(), Some(69));
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(said.contains("in use by another process"), "{said}");
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success());
    let inspect = |id: &str| {
        let output = scene.onceward(&["inspect", id, "--queue", "in", "--json"]);
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    assert_eq!((&inspect("a")["outcome"], &inspect("a")["attempts"]), (&"done".into(), &1.into()));
    assert_eq!(
        (&inspect("c")["outcome"], &inspect("c")["reason"]),
        (&"dead".into(), &"rejected".into())
    );
    assert_eq!(inspect("b")["known"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_queue_that_anybody_may_consume_is_refused_with_the_remedy() {
    let scene = Scene::new().await;
    let arguments = support::rabbitmq::arguments(&[(
        "x-queue-type",
        lapin::types::AMQPValue::LongString("quorum".into()),
    )]);
    let durable = lapin::options::QueueDeclareOptions::durable();
    scene.client.declare("shared", durable, arguments).await;
    let output =
        scene.onceward(&["run", "--set", "queues.in.queue=shared", "--set", "log.format=text"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("x-single-active-consumer"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_opened_ends_the_worker_with_its_code() {
    let scene = Scene::new().await;
    std::fs::write(scene.directory.path().join("file"), "").expect("a file");
    let output = scene.onceward(&["run", "--set", "store.path=file"]);
    assert_eq!(output.status.code(), Some(74));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_nowhere_to_be_seen() {
    let scene = Scene::new().await;
    let url = scene.vhost.url().replace("guest:guest@", "guest:canary%2F77@");
    let url = format!("broker.url={url}");
    let mut command = scene.directory.command(&["run", "--set", &url, "--set", "log.level=trace"]);
    let worker = scene.directory.start_as({
        command.stdout(Stdio::null());
        command
    });
    worker.wait_for_log("not consuming", PATIENCE);
    let (status, reasons) = scene.get("/readyz").await;
    let (_, metrics) = scene.get("/metrics").await;
    assert_eq!(status, 503);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success());
    let check = scene.onceward(&["check", "--set", &url]);
    let check = [check.stdout, check.stderr].concat();
    let seen = [scene.directory.logged(), reasons, metrics, String::from_utf8_lossy(&check).into()];
    for text in seen {
        assert!(!text.contains("canary"), "{text}");
        assert!(!text.contains("Y2FuYXJ5"), "{text}");
    }
}
