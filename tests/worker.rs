//! The promise, seen from outside: the real runtime on the in-process broker and a disk that forgets what was not
//! synced. Time is paused, so waits cost nothing and always end in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use onceward::{
    Body, Broker, BrokerError, Clock, Context, Declare, ForgetRequest, HandleError, Handler,
    HeaderValue, Health, InspectScope, MemoryBroker, Message, OUTGOING_ID_HEADER, OnConflict,
    Options, Properties, PublishChannel, Published, QueueOptions, Retry, RunError, Scope, Session,
    SimulatedDisk, Source, StoreOptions, Subscription, Worker, forget, reject, retry_after,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const QUEUE: &str = "orders";
const DEAD: &str = "orders.dead";

/// What a handler is told to do with a message, by its body.
#[derive(Clone, Default)]
struct Recorder {
    runs: Arc<Mutex<Vec<Run>>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Run {
    id: String,
    body: String,
    attempt: u32,
    at: Instant,
}

impl Recorder {
    fn runs(&self) -> Vec<Run> {
        self.runs.lock().expect("not poisoned").clone()
    }

    fn ids(&self) -> Vec<String> {
        self.runs().into_iter().map(|run| run.id).collect()
    }
}

impl Handler<Body> for Recorder {
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result {
        let body = String::from_utf8_lossy(&body).into_owned();
        let id = cx.id().to_string();
        let run = Run { id, body: body.clone(), attempt: cx.attempt(), at: Instant::now() };
        self.runs.lock().expect("not poisoned").push(run);
        match body.split_once(' ').unwrap_or((&body, "")) {
            ("slow", millis) => sleep(Duration::from_millis(millis.parse()?)).await,
            ("reject", why) => return Err(reject(why)),
            ("panic", why) => panic!("{why}"),
            ("after", millis) if cx.attempt() == 1 => {
                return Err(retry_after(Duration::from_millis(millis.parse()?), "not yet"));
            }
            ("fail", times) if cx.attempt() <= times.parse()? => {
                return Err(HandleError::from(std::io::Error::other("no luck")));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A broker, a disk and a clock that outlive the workers on them.
struct World {
    broker: MemoryBroker,
    /// Whether the broker refuses what is published to it over a connection.
    refuses: Arc<AtomicBool>,
    disk: SimulatedDisk,
    clock: Clock,
    recorder: Recorder,
    options: QueueOptions,
    size_bytes_max: u64,
}

struct Running {
    health: Health,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn drain(self) -> Result<(), RunError> {
        let _ = self.stop.send(());
        self.ended.await.expect("the worker does not panic")
    }

    /// As kill -9 does: nothing is told, nothing is finished.
    async fn kill(self, world: &World) {
        self.ended.abort();
        let _ = self.ended.await;
        world.disk.cut();
        sleep(Duration::from_millis(1)).await;
    }
}

impl World {
    fn new() -> Self {
        let broker = MemoryBroker::new();
        broker.declare(QUEUE);
        let mut options = QueueOptions::new(QUEUE);
        options.declare = Declare::Passive;
        options.identity.key = vec![Source::Header("key".to_owned())];
        options.retry = Retry { jitter: false, ..Retry::default() };
        Self {
            broker,
            refuses: Arc::default(),
            disk: SimulatedDisk::new(),
            clock: Clock::manual(1_700_000_000_000),
            recorder: Recorder::default(),
            options,
            size_bytes_max: 10 << 30,
        }
    }

    fn store_options(&self) -> Options {
        let mut store = StoreOptions::new("simulated");
        store.simulated = Some(self.disk.clone());
        store.clock = self.clock.clone();
        store.size_bytes_max = self.size_bytes_max;
        let broker = Refusing { inner: self.broker.clone(), refuses: Arc::clone(&self.refuses) };
        Options::with_broker(Arc::new(broker), store)
    }

    fn worker(&self) -> Worker {
        Worker::new(self.store_options())
    }

    fn start(&self) -> Running {
        let worker = self.worker().queue_with(self.options.clone(), self.recorder.clone());
        let health = worker.health();
        let (stop, stopped) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "the test owns and joins it")]
        let ended = tokio::spawn(worker.run_until(async { drop(stopped.await) }));
        Running { health, stop, ended }
    }

    fn publish(&self, id: &str, key: &str, body: &str) {
        let headers = BTreeMap::from([("key".to_owned(), HeaderValue::from(key))]);
        let message_id = (!id.is_empty()).then(|| id.to_owned());
        let properties = Properties { message_id, headers, ..Properties::default() };
        assert!(self.broker.publish(Message {
            routing_key: QUEUE.to_owned(),
            properties,
            body: body.as_bytes().to_vec().into(),
            ..Message::default()
        }));
    }

    async fn settled(&self) {
        let empty = async {
            while self.broker.depth(QUEUE) != (0, 0) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), empty).await.expect("all is settled");
        assert_eq!(self.broker.stats().precondition_failed, 0);
    }

    fn dead_letters(&self) -> Vec<DeadLetter> {
        self.broker.take_all(DEAD).iter().map(|message| DeadLetter::new(message)).collect()
    }
}

/// The inner broker, which refuses what is published as long as it is told to.
struct Refusing {
    inner: MemoryBroker,
    refuses: Arc<AtomicBool>,
}

impl Broker for Refusing {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        self.inner.consume(subscription)
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        Box::pin(async {
            let inner = self.inner.publish_channel().await?;
            let refuses = Arc::clone(&self.refuses);
            let channel: Box<dyn PublishChannel> = Box::new(RefusingChannel { inner, refuses });
            Ok(channel)
        })
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

struct RefusingChannel {
    inner: Box<dyn PublishChannel>,
    refuses: Arc<AtomicBool>,
}

impl PublishChannel for RefusingChannel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.ensure_queue(queue)
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        if self.refuses.load(Ordering::Relaxed) {
            let answers = vec![Published::Refused; batch.len()];
            return Box::pin(std::future::ready(Ok(answers)));
        }
        self.inner.publish(batch)
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

#[derive(Debug)]
struct DeadLetter {
    body: String,
    headers: BTreeMap<String, HeaderValue>,
}

impl DeadLetter {
    fn new(message: &Message) -> Self {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        Self { body, headers: message.properties.headers.clone() }
    }

    fn text(&self, header: &str) -> &str {
        self.headers.get(header).and_then(HeaderValue::as_str).unwrap_or_default()
    }

    fn reason(&self) -> &str {
        self.text("x-onceward-reason")
    }
}

#[tokio::test(start_paused = true)]
async fn twins_run_once_whether_they_meet_or_come_later() {
    let world = World::new();
    for id in ["a", "b", "a"] {
        world.publish(id, "k", "slow 50");
    }
    let worker = world.start();
    world.settled().await;
    world.publish("b", "k", "slow 50");
    world.settled().await;
    assert_eq!(world.recorder.ids(), ["a", "b"]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acked_before_its_sync_has_returned() {
    let world = World::new();
    world.disk.set_sync_delay(Duration::from_millis(500));
    world.publish("a", "k", "");
    let worker = world.start();
    sleep(Duration::from_millis(900)).await;
    assert_eq!(world.recorder.ids(), ["a"]);
    assert_eq!(world.broker.stats().acked, 0, "the sync of the record is still under way");
    world.settled().await;
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_sync_runs_the_message_again() {
    let world = World::new();
    let worker = world.start();
    sleep(Duration::from_millis(10)).await;
    world.disk.set_sync_delay(Duration::from_secs(5));
    world.publish("a", "k", "");
    sleep(Duration::from_millis(100)).await;
    worker.kill(&world).await;
    world.disk.set_sync_delay(Duration::ZERO);
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.recorder.ids(), ["a", "a"]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_after_the_commit_is_acked_without_a_run() {
    let world = World::new();
    for number in 0..100 {
        world.publish(&format!("m{number}"), "k", "");
    }
    let worker = world.start();
    world.settled().await;
    worker.kill(&world).await;
    for number in 0..100 {
        world.publish(&format!("m{number}"), "k", "");
    }
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.recorder.ids().len(), 100);
    worker.drain().await.expect("a clean drain");
}

/// Handlers that go on when so many of them are in at once, each in the way that it blocks its thread.
#[derive(Clone)]
struct Meeting {
    wanted: usize,
    inside: Arc<(Mutex<usize>, Condvar)>,
    block: fn(&mut dyn FnMut()),
}

impl Handler<Body> for Meeting {
    async fn handle(&self, _: &mut Context, _: Body) -> onceward::Result {
        (self.block)(&mut || {
            let (inside, changed) = &*self.inside;
            let mut inside = inside.lock().expect("not poisoned");
            *inside += 1;
            changed.notify_all();
            let patience = Duration::from_secs(20);
            let waited = changed.wait_timeout_while(inside, patience, |of| *of < self.wanted);
            assert!(!waited.expect("not poisoned").1.timed_out(), "the others do not come");
        });
        Ok(())
    }
}

async fn meet(wanted: usize, block: fn(&mut dyn FnMut())) {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::MIN;
    let meeting = Meeting { wanted, inside: Arc::default(), block };
    for number in 0..wanted {
        world.publish(&number.to_string(), &number.to_string(), "");
    }
    let worker = world.worker().queue_with(world.options.clone(), meeting);
    worker.run_until(async { world.settled().await }).await.expect("a clean drain");
    assert!(world.dead_letters().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_block_their_threads_hold_up_nobody_else_while_there_are_threads() {
    // One thread is the broker's and the store's.
    meet(3, |wait| wait()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_give_their_threads_away_run_side_by_side_up_to_the_concurrency() {
    meet(40, |wait| tokio::task::block_in_place(wait)).await;
}

/// Its message `b` blocks its thread until everything else is acked.
struct Waiting(MemoryBroker);

impl Handler<Body> for Waiting {
    async fn handle(&self, cx: &mut Context, _: Body) -> onceward::Result {
        if cx.id().to_string() == "b" {
            let patience = Instant::now() + Duration::from_secs(20);
            while self.0.depth(QUEUE) != (0, 1) {
                assert!(Instant::now() < patience, "what was done is not acked");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_is_acked_while_a_handler_blocks_its_thread() {
    for _ in 0..20 {
        let mut world = World::new();
        world.options.retry.max_attempts = NonZeroU32::MIN;
        for id in ["a", "b", "c"] {
            world.publish(id, id, "");
        }
        let waiting = Waiting(world.broker.clone());
        let worker = world.worker().queue_with(world.options.clone(), waiting);
        worker.run_until(async { world.settled().await }).await.expect("a clean drain");
        assert!(world.dead_letters().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_message_holds_back_its_own_key_only() {
    let world = World::new();
    world.publish("a1", "a", "fail 3");
    world.publish("a2", "a", "");
    world.publish("b1", "b", "");
    let start = Instant::now();
    let worker = world.start();
    world.settled().await;
    let runs: Vec<_> = world.recorder.runs().into_iter().map(|run| (run.id, run.attempt)).collect();
    let expected = [("a1", 1), ("b1", 1), ("a1", 2), ("a1", 3), ("a1", 4), ("a2", 1)];
    assert_eq!(runs, expected.map(|(id, attempt)| (id.to_owned(), attempt)));
    let waited = world.recorder.runs()[4].at - start;
    assert!(waited >= Duration::from_millis(500 + 1000 + 2000), "{waited:?}");
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_knows_when_is_run_again_then() {
    let world = World::new();
    world.publish("a", "k", "after 12345");
    let worker = world.start();
    world.settled().await;
    let runs = world.recorder.runs();
    let waited = runs[1].at - runs[0].at;
    assert!((12_345..12_400).contains(&waited.as_millis()), "{waited:?}");
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn every_death_is_in_the_dead_letter_queue_with_its_reason() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::new(2).unwrap();
    world.options.body_bytes_max = 100;
    world.options.timeout = Duration::from_secs(1);
    let cases = [
        ("rejected", "a", "reject unknown sku", 1),
        ("exhausted", "b", "panic oh no", 2),
        ("exhausted", "c", "slow 5000", 2),
        ("exhausted", "d", "fail 9", 2),
        ("too-large", "e", &"x".repeat(101), 0),
        ("missing-id", "", "", 0),
        ("bad-id", &"i".repeat(1025), "", 0),
    ];
    for (_, id, body, _) in &cases {
        world.publish(id, id, body);
    }
    let worker = world.start();
    world.settled().await;
    let letters = world.dead_letters();
    for (reason, id, body, attempts) in cases {
        let letter = letters.iter().find(|letter| letter.reason() == reason && letter.body == body);
        let letter = letter.unwrap_or_else(|| panic!("{reason} {id:.9} is missing: {letters:#?}"));
        assert_eq!(letter.headers["x-onceward-attempts"], HeaderValue::from(attempts as u32));
        assert_eq!(letter.text("x-onceward-queue"), QUEUE);
        assert_eq!(letter.text("x-onceward-routing-key"), QUEUE);
        assert_eq!(letter.headers["key"], HeaderValue::from(id));
        assert_eq!(letter.headers["x-onceward-first-seen"], HeaderValue::Timestamp(1_700_000_000));
    }
    assert_eq!(letters.len(), 7);
    let error_of = |body: &str| {
        let letter = letters.iter().find(|letter| letter.body == body);
        letter.expect("it is there").text("x-onceward-error").to_owned()
    };
    assert_eq!(error_of("reject unknown sku"), "unknown sku");
    assert_eq!(error_of("panic oh no"), "the handler panicked: oh no");
    assert_eq!(error_of("slow 5000"), "the attempt timed out after 1s");
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_decode_dies_on_its_first_attempt() {
    #[derive(serde::Deserialize)]
    struct Order {
        _item: String,
    }
    async fn never(_: &mut Context, _: Order) -> onceward::Result {
        panic!("it does not decode");
    }
    let world = World::new();
    world.publish("a", "k", "{}");
    let worker = world.worker().queue_with(world.options.clone(), never);
    let settled = async { world.settled().await };
    worker.run_until(settled).await.expect("a clean drain");
    let letters = world.dead_letters();
    assert_eq!(letters[0].reason(), "decode");
    assert!(letters[0].text("x-onceward-error").contains("missing field"), "{letters:?}");
}

#[tokio::test(start_paused = true)]
async fn another_body_under_a_known_id_is_a_conflict_and_never_skipped_in_silence() {
    let world = World::new();
    world.publish("a", "k", "first");
    world.publish("a", "k", "second");
    world.publish("a", "k", "second");
    let worker = world.start();
    world.settled().await;
    world.publish("a", "k", "third");
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 1);
    let letters = world.dead_letters();
    let dead: Vec<_> = letters.iter().map(|letter| (letter.reason(), &*letter.body)).collect();
    assert_eq!(dead, [("conflict", "second"), ("conflict", "third")]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_can_be_skipped_by_choice() {
    let mut world = World::new();
    world.options.on_conflict = OnConflict::Skip;
    world.publish("a", "k", "first");
    world.publish("a", "k", "second");
    let worker = world.start();
    world.settled().await;
    assert_eq!((world.recorder.runs().len(), world.dead_letters().len()), (1, 0));
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_joins_what_runs_and_keeps_the_order() {
    let world = World::new();
    for number in 0..5 {
        world.publish(&format!("m{number}"), "k", "slow 3000");
    }
    let worker = world.start();
    for _ in 0..3 {
        sleep(Duration::from_millis(4000)).await;
        world.broker.disconnect_all();
    }
    world.settled().await;
    assert_eq!(world.recorder.ids(), ["m0", "m1", "m2", "m3", "m4"]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_stops_the_worker_and_acks_nothing() {
    let world = World::new();
    let worker = world.start();
    sleep(Duration::from_millis(10)).await;
    world.disk.set_failing(true);
    world.publish("a", "k", "");
    let ended = worker.ended.await.expect("the worker does not panic");
    assert!(matches!(ended, Err(RunError::StoreFailed(_))), "{ended:?}");
    assert_eq!(world.broker.stats().acked, 0);
    assert_eq!(world.broker.depth(QUEUE), (1, 0), "the message is back in its queue");
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_runs_and_returns_the_rest() {
    let mut world = World::new();
    world.options.concurrency = NonZeroUsize::new(2).unwrap();
    for number in 0..6 {
        world.publish(&format!("m{number}"), &format!("k{number}"), "slow 1000");
    }
    let worker = world.start();
    sleep(Duration::from_millis(500)).await;
    worker.drain().await.expect("a clean drain");
    assert_eq!(world.recorder.runs().len(), 2);
    assert_eq!(world.broker.depth(QUEUE), (4, 0));
    assert_eq!(world.broker.stats().acked, 2);
}

#[tokio::test(start_paused = true)]
async fn a_drain_begins_no_run_whose_attempt_is_on_its_way_to_the_disk_and_counts_none() {
    let world = World::new();
    world.publish("a", "k", "slow 1000");
    let worker = world.start();
    sleep(Duration::from_millis(100)).await;
    worker.kill(&world).await;
    world.disk.set_sync_delay(Duration::from_millis(500));
    for _ in 0..3 {
        let worker = world.start();
        while world.broker.depth(QUEUE) != (0, 1) {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(100)).await;
        worker.drain().await.expect("a clean drain");
        assert_eq!(world.recorder.runs().len(), 1, "the first alone, which was killed");
        assert_eq!(world.broker.depth(QUEUE), (1, 0));
    }
    let worker = world.start();
    world.settled().await;
    let attempts: Vec<_> = world.recorder.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(
        attempts,
        [1, 1],
        "neither the killed one, which was not on record, nor the drains count"
    );
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_end_a_message_by_the_limit_of_another_queue() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Global;
    let mut other = world.options.clone();
    (other.queue, other.dead_letter) = ("other".to_owned(), "other.dead".to_owned());
    other.retry.max_attempts = NonZeroU32::MIN;
    world.broker.declare("other");
    world.publish("a", "k", "fail 5");
    let worker = world.worker().queue_with(world.options.clone(), world.recorder.clone());
    let worker = worker.queue_with(other, world.recorder.clone());
    let (stop, stopped) = oneshot::channel();
    let drained = worker.run_until(async { drop::<Result<(), _>>(stopped.await) });
    let twin = async {
        sleep(Duration::from_millis(100)).await;
        let properties = Properties { message_id: Some("a".to_owned()), ..Properties::default() };
        assert!(world.broker.publish(Message {
            routing_key: "other".to_owned(),
            properties,
            body: "fail 5".into(),
            ..Message::default()
        }));
        sleep(Duration::from_millis(700)).await;
        stop.send(()).expect("the worker runs");
    };
    let (drained, ()) = tokio::join!(drained, twin);
    drained.expect("a clean drain");
    assert!(!world.recorder.runs().is_empty());
    assert_eq!(world.broker.take_all("other.dead").len(), 0);
    assert_eq!([QUEUE, "other"].map(|queue| world.broker.depth(queue)), [(1, 0), (1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_retry_and_keeps_its_count() {
    let world = World::new();
    world.publish("a", "k", "fail 5");
    let worker = world.start();
    sleep(Duration::from_millis(800)).await;
    worker.drain().await.expect("a clean drain");
    let worker = world.start();
    world.settled().await;
    let attempts: Vec<_> = world.recorder.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4, 5, 6]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_kills_the_process_ends_as_a_crash_loop() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::new(3).unwrap();
    world.publish("a", "k", "slow 10000");
    for _ in 0..4 {
        let worker = world.start();
        sleep(Duration::from_millis(100)).await;
        worker.kill(&world).await;
    }
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 4, "the limit, and the first run that no row told of");
    let letters = world.dead_letters();
    assert_eq!(letters[0].reason(), "crash-loop");
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_was_not_confirmed_is_published_again_under_its_id() {
    let world = World::new();
    let worker = world.start();
    sleep(Duration::from_millis(10)).await;
    world.publish("a", "k", "reject no");
    // The death becomes durable and is published; the removal of its mark does not.
    world.disk.set_sync_delay(Duration::from_millis(100));
    sleep(Duration::from_millis(150)).await;
    worker.kill(&world).await;
    world.disk.set_sync_delay(Duration::ZERO);
    let worker = world.start();
    world.settled().await;
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 2);
    let [first, second] = [0, 1].map(|index| letters[index].text(OUTGOING_ID_HEADER));
    assert_eq!(first, second);
    assert_eq!(world.recorder.runs().len(), 1);
    world.publish("a", "k", "reject no");
    world.settled().await;
    assert_eq!(world.dead_letters().len(), 0, "a twin of a dead message is a duplicate");
    worker.drain().await.expect("a clean drain");
}

/// A reader who knows letters by their id would throw the second one away.
#[tokio::test(start_paused = true)]
async fn two_deaths_under_one_id_are_two_letters() {
    let mut world = World::new();
    world.options.retention = Duration::from_secs(3600);
    let worker = world.start();
    world.publish("a", "k", "reject one");
    world.settled().await;
    world.clock.advance(Duration::from_secs(3600));
    sleep(Duration::from_secs(3)).await;
    world.publish("a", "k", "reject other");
    world.settled().await;
    let letters = world.dead_letters();
    let ids: BTreeSet<_> = letters.iter().map(|letter| letter.text(OUTGOING_ID_HEADER)).collect();
    assert_eq!((letters.len(), ids.len()), (2, 2));
    worker.drain().await.expect("a clean drain");
}

/// A reader who knows letters by their ids knows it again when a worker with another memory has taken over.
#[tokio::test(start_paused = true)]
async fn a_message_that_dies_in_two_stores_has_one_dead_letter_by_id() {
    let mut world = World::new();
    for _ in 0..2 {
        world.disk = SimulatedDisk::new();
        let worker = world.start();
        world.publish("a", "k", "reject one");
        world.settled().await;
        worker.drain().await.expect("a clean drain");
    }
    let letters = world.dead_letters();
    let ids: BTreeSet<_> = letters.iter().map(|letter| letter.text(OUTGOING_ID_HEADER)).collect();
    assert_eq!((letters.len(), ids.len()), (2, 1));
}

/// It has died, and whoever reads dead letters may know it.
#[tokio::test(start_paused = true)]
async fn a_conflict_stays_dead_when_the_record_that_it_was_in_conflict_with_expires() {
    let mut world = World::new();
    world.options.retention = Duration::from_secs(3600);
    let worker = world.start();
    world.publish("a", "k", "");
    world.settled().await;
    world.refuses.store(true, Ordering::Relaxed);
    world.publish("a", "k", "another body");
    sleep(Duration::from_secs(1)).await;
    worker.kill(&world).await;
    world.clock.advance(Duration::from_secs(3600));
    world.refuses.store(false, Ordering::Relaxed);
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 1, "the other body never runs");
    let letters = world.dead_letters();
    assert_eq!(letters.iter().map(DeadLetter::reason).collect::<Vec<_>>(), ["conflict"]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_on_while_its_dead_letters_wait_for_their_queue() {
    let world = World::new();
    world.refuses.store(true, Ordering::Relaxed);
    for (id, body) in [("a", "reject 1"), ("b", ""), ("c", "reject 2"), ("d", "")] {
        world.publish(id, "k", body);
    }
    let worker = world.start();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(world.recorder.ids(), ["a", "b", "c", "d"]);
    assert_eq!(world.broker.depth(QUEUE), (0, 2), "only the dead ones wait for their ack");
    let faults = worker.health.readiness().faults;
    let parts: Vec<_> = faults.iter().map(|(part, _)| &**part).collect();
    assert_eq!(parts, ["dead-letter queue orders.dead"]);
    world.refuses.store(false, Ordering::Relaxed);
    world.settled().await;
    let letters = world.dead_letters();
    let bodies: Vec<_> = letters.iter().map(|letter| &*letter.body).collect();
    assert_eq!(bodies, ["reject 1", "reject 2"], "once each, in order");
    assert!(worker.health.readiness().is_ready());
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_dead_letter_s_confirmation_but_not_for_a_queue_that_refuses_it() {
    let world = World::new();
    let worker = world.start();
    sleep(Duration::from_millis(10)).await;
    world.disk.set_sync_delay(Duration::from_millis(500));
    world.publish("a", "k", "reject no");
    sleep(Duration::from_millis(100)).await;
    worker.drain().await.expect("a clean drain");
    assert_eq!((world.broker.depth(QUEUE), world.dead_letters().len()), ((0, 0), 1));

    world.disk.set_sync_delay(Duration::ZERO);
    world.refuses.store(true, Ordering::Relaxed);
    world.publish("b", "k", "reject no");
    let worker = world.start();
    sleep(Duration::from_secs(300)).await;
    let begun = Instant::now();
    worker.drain().await.expect("a clean drain");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(world.broker.depth(QUEUE), (1, 0));
    world.refuses.store(false, Ordering::Relaxed);
    let worker = world.start();
    world.settled().await;
    assert_eq!(world.dead_letters().len(), 1);
    assert_eq!(world.recorder.ids(), ["a", "b"]);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_queues_share_is_locked_until_its_dead_letter_is_confirmed() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Global;
    let other = QueueOptions { queue: "other".to_owned(), ..world.options.clone() };
    world.broker.declare("other");
    world.refuses.store(true, Ordering::Relaxed);
    world.publish("a", "k", "reject no");
    let message = world.broker.take_all(QUEUE).remove(0);
    for queue in [QUEUE, "other"] {
        let routing_key = queue.to_owned();
        assert!(world.broker.publish(Message { routing_key, ..(*message).clone() }));
    }
    let worker = world
        .worker()
        .queue_with(world.options.clone(), world.recorder.clone())
        .queue_with(other, world.recorder.clone());
    let settled = async {
        sleep(Duration::from_secs(60)).await;
        world.refuses.store(false, Ordering::Relaxed);
        while world.broker.stats().acked < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    worker.run_until(settled).await.expect("a clean drain");
    assert_eq!((world.recorder.ids().len(), world.dead_letters().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_forgotten_after_its_retention_and_not_before() {
    let mut world = World::new();
    world.options.retention = Duration::from_secs(3600);
    let worker = world.start();
    world.publish("a", "k", "");
    world.settled().await;
    world.clock.advance(Duration::from_secs(3599));
    sleep(Duration::from_secs(3)).await;
    world.publish("a", "k", "");
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 1);
    world.clock.advance(Duration::from_secs(1));
    sleep(Duration::from_secs(3)).await;
    world.publish("a", "k", "");
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 2);
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_stops_intake_and_goes_on_when_records_expire() {
    let mut world = World::new();
    world.size_bytes_max = 100_000;
    world.options.retention = Duration::from_secs(60);
    world.options.retry.max_attempts = NonZeroU32::MIN;
    let worker = world.start();
    for number in 0..10_000 {
        world.publish(&format!("m{number}"), &format!("k{}", number % 100), "");
        if number % 100 == 0 {
            sleep(Duration::from_millis(100)).await;
        }
    }
    sleep(Duration::from_secs(5)).await;
    let (waiting, _) = world.broker.depth(QUEUE);
    assert!(waiting > 1000, "{waiting} messages wait");
    let faults = worker.health.readiness().faults;
    assert!(faults.iter().any(|(part, _)| part == "store"), "{faults:?}");
    for _ in 0..10 {
        world.clock.advance(Duration::from_secs(60));
        sleep(Duration::from_secs(10)).await;
    }
    world.settled().await;
    assert_eq!(world.recorder.runs().len(), 10_000);
    assert!(worker.health.readiness().is_ready());
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn two_workers_on_one_store_are_refused() {
    let world = World::new();
    let first = world.start();
    sleep(Duration::from_millis(10)).await;
    let second = world.start().ended.await.expect("the worker does not panic");
    assert!(matches!(second, Err(RunError::StoreFailed(_))), "{second:?}");
    first.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn one_id_that_two_queues_share_runs_once() {
    let mut world = World::new();
    world.options.identity.scope = Scope::Global;
    world.disk.set_sync_delay(Duration::from_millis(100));
    let other = QueueOptions {
        queue: "other".to_owned(),
        dead_letter: "other.dead".to_owned(),
        ..world.options.clone()
    };
    world.broker.declare("other");
    world.publish("a", "k", "slow 50");
    let message = world.broker.take_all(QUEUE).remove(0);
    for queue in [QUEUE, "other"] {
        let routing_key = queue.to_owned();
        assert!(world.broker.publish(Message { routing_key, ..(*message).clone() }));
    }
    let worker = world
        .worker()
        .queue_with(world.options.clone(), world.recorder.clone())
        .queue_with(other, world.recorder.clone());
    let settled = async {
        while world.broker.stats().acked < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    worker.run_until(settled).await.expect("a clean drain");
    assert_eq!(world.recorder.ids(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_registered_once() {
    let world = World::new();
    let worker = world
        .worker()
        .queue_with(world.options.clone(), world.recorder.clone())
        .queue_with(world.options.clone(), world.recorder.clone());
    let ended = worker.run_until(std::future::pending()).await;
    assert!(matches!(&ended, Err(RunError::Twice { queue }) if queue == QUEUE), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_options_contradict_each_other_does_not_start() {
    let mut world = World::new();
    world.options.retention = Duration::from_secs(60);
    let worker = world.worker().queue_with(world.options.clone(), world.recorder.clone());
    let ended = worker.run_until(std::future::pending()).await;
    let Err(RunError::Options(error)) = ended else { panic!("{ended:?}") };
    assert_eq!((error.queue.as_str(), error.option, &*error.value), (QUEUE, "retention", "60s"));
}

/// Panics wherever the runtime touches it: when it is dropped with a cut-off attempt, and when it is shown.
struct Spiteful;

impl Drop for Spiteful {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

#[derive(Debug)]
struct Unshowable;

impl std::fmt::Display for Unshowable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("shown")
    }
}

impl std::error::Error for Unshowable {}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_destructor_or_in_an_error_s_text_is_an_attempt() {
    async fn spiteful(cx: &mut Context, _: Body) -> onceward::Result {
        if cx.id().as_bytes() == b"drop" {
            let _spiteful = Spiteful;
            sleep(Duration::from_secs(3600)).await;
        }
        Err(Unshowable)?
    }
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::MIN;
    world.publish("drop", "a", "");
    world.publish("show", "b", "");
    let worker = world.worker().queue_with(world.options.clone(), spiteful);
    worker.run_until(world.settled()).await.expect("a clean drain");
    let errors = world.dead_letters();
    let errors: Vec<_> = errors.iter().map(|letter| letter.text("x-onceward-error")).collect();
    assert_eq!(errors, ["the handler panicked: shown", "the handler panicked: dropped"]);
}

#[tokio::test(start_paused = true)]
async fn times_without_end_are_no_overflow() {
    let mut world = World::new();
    world.options.timeout = Duration::MAX;
    world.publish("a", "k", "");
    let mut options = world.store_options();
    options.drain = Duration::MAX;
    let worker = Worker::new(options).queue_with(world.options.clone(), world.recorder.clone());
    worker.run_until(world.settled()).await.expect("a clean drain");
    assert_eq!(world.recorder.ids(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_ordering_key_does_not_cost_the_message_its_id() {
    let world = World::new();
    for _ in 0..2 {
        let headers = BTreeMap::from([("key".to_owned(), HeaderValue::Float(1.5))]);
        let message_id = Some("a".to_owned());
        let properties = Properties { message_id, headers, ..Properties::default() };
        let routing_key = QUEUE.to_owned();
        assert!(world.broker.publish(Message { routing_key, properties, ..Message::default() }));
    }
    let worker = world.start();
    world.settled().await;
    let letters = world.dead_letters();
    assert_eq!(letters.len(), 1, "the twin is a duplicate: {letters:?}");
    assert_eq!(letters[0].reason(), "bad-id");
    worker.drain().await.expect("a clean drain");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_remembered_for_a_twin_too() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::new(3).expect("not zero");
    world.publish("a", "k", "fail 9");
    let worker = world.start();
    sleep(Duration::from_millis(100)).await;
    worker.kill(&world).await;
    // The broker lost the message, and its producer publishes it again: it looks new.
    let message = world.broker.take_all(QUEUE).remove(0);
    world.clock.advance(Duration::from_secs(20 * 24 * 3600));
    assert!(world.broker.publish(message));
    let worker = world.start();
    world.settled().await;
    let attempts: Vec<_> = world.recorder.runs().iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    worker.drain().await.expect("a clean drain");
}

/// Consumes as the inner broker does, and never gets a message out.
struct Blocked(MemoryBroker);

impl Broker for Blocked {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        self.0.consume(subscription)
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        Box::pin(std::future::pending())
    }

    fn address(&self) -> String {
        "blocked".to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn messages_without_an_id_do_not_pile_up_while_nothing_can_be_published() {
    let world = World::new();
    for _ in 0..100 {
        world.publish("", "", "x");
    }
    let mut options = world.store_options();
    options.broker = Arc::new(Blocked(world.broker.clone()));
    options.drain = Duration::from_secs(1);
    let worker = Worker::new(options).queue_with(world.options.clone(), world.recorder.clone());
    let lossy = async {
        let metrics = tokio::runtime::Handle::current().metrics();
        for loss in 0..10 {
            sleep(Duration::from_secs(60)).await;
            let alive = metrics.num_alive_tasks();
            assert!(alive < 110, "{alive} tasks after {loss} losses");
            world.broker.disconnect_all();
        }
    };
    worker.run_until(lossy).await.expect("a clean drain");
    assert_eq!(world.broker.depth(QUEUE), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_message_runs_again_though_its_number_is_done() {
    let mut world = World::new();
    world.options.retry.max_attempts = NonZeroU32::MIN;
    world.options.identity.id = vec![Source::Sequence {
        producer: Box::new(Source::Header("key".to_owned())),
        sequence: Box::new(Source::MessageId),
    }];
    let store = world.store_options().store;
    for round in 1..=2 {
        // A twin after it is no news, whether it was forgotten before or not.
        world.publish("7", "p", "fail 1");
        let worker = world.start();
        world.settled().await;
        world.publish("7", "p", "fail 1");
        world.settled().await;
        worker.drain().await.expect("a clean drain");
        assert_eq!(world.recorder.ids().len(), round);
        assert_eq!(world.dead_letters().len(), 1);
        let request = ForgetRequest {
            scope: InspectScope::Queue(QUEUE),
            id: b"p/7",
            reason: "mended",
            dry_run: false,
        };
        forget(&store, request).await.expect("it is known");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_whose_size_cannot_be_read_ends_the_worker() {
    let world = World::new();
    let worker = world.start();
    sleep(Duration::from_millis(10)).await;
    world.disk.cut();
    let ended = tokio::time::timeout(Duration::from_secs(60), worker.ended).await;
    let ended = ended.expect("it does not wait for a write").expect("the worker does not panic");
    assert!(matches!(ended, Err(RunError::StoreFailed(_))), "{ended:?}");
}
