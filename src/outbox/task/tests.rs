//! The relay on the in-process broker, a publisher that is told to misbehave, and a simulated disk. Time is paused.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::broker::{
    Broker, BrokerError, MemoryBroker, OUTGOING_ID_HEADER, PublishChannel, Published,
    PublisherTask, Session, Subscription,
};
use crate::clock::Clock;
use crate::identity::Identity;
use crate::message::{HeaderValue, Properties};
use crate::outbox::flights::WINDOW_MAX;
use crate::outbox::{OnEnd, Outgoing};
use crate::store::{
    Change, Commit, KeyId, QueueId, QueueRetention, Records, SimulatedDisk, StoreOptions, Stored,
};

const QUEUE: QueueId = QueueId(0);
const DEAD: &str = "orders.dead";

/// How the publishing channel misbehaves.
#[derive(Default)]
struct Mood {
    /// Targets that are refused with a nack.
    refuses: HashSet<String>,
    /// The connection is lost before this many more messages are out, with no word about those before them.
    loses_after: Option<usize>,
    /// Nothing is answered.
    silent: bool,
}

#[derive(Clone, Default)]
struct Moody {
    inner: MemoryBroker,
    mood: Arc<Mutex<Mood>>,
}

impl Moody {
    fn mood<T>(&self, change: impl FnOnce(&mut Mood) -> T) -> T {
        change(&mut self.mood.lock().expect("not poisoned"))
    }
}

impl Broker for Moody {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        self.inner.consume(subscription)
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        async move {
            let inner = self.inner.publish_channel().await?;
            let channel: Box<dyn PublishChannel> =
                Box::new(MoodyChannel { inner, broker: self.clone() });
            Ok(channel)
        }
        .boxed()
    }

    fn address(&self) -> String {
        "moody".to_owned()
    }
}

struct MoodyChannel {
    inner: Box<dyn PublishChannel>,
    broker: Moody,
}

impl PublishChannel for MoodyChannel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.ensure_queue(queue)
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        async move {
            let mut answers = Vec::new();
            for message in batch {
                while self.broker.mood(|mood| mood.silent) {
                    sleep(Duration::from_millis(10)).await;
                }
                let is_lost = self.broker.mood(|mood| match &mut mood.loses_after {
                    Some(0) => mood.loses_after.take().is_some(),
                    Some(left) => {
                        *left -= 1;
                        false
                    }
                    None => false,
                });
                if is_lost {
                    let reason = "as told".to_owned();
                    return Err(BrokerError::Lost { address: self.broker.address(), reason });
                }
                let target = &message.routing_key;
                answers.push(if self.broker.mood(|mood| mood.refuses.contains(target)) {
                    Published::Refused
                } else if message.properties.headers.contains_key("too-large") {
                    Published::Unsendable("too large".to_owned())
                } else {
                    self.inner.publish(std::slice::from_ref(message)).await?.remove(0)
                });
            }
            Ok(answers)
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

type Ends = Arc<Mutex<Vec<(String, End)>>>;

struct World {
    broker: Moody,
    disk: SimulatedDisk,
    store: Store,
    health: Health,
    relay: Relay,
    task: Option<RelayTask>,
    messages: Arc<Sender>,
    letters: Arc<Sender>,
    draining: CancellationToken,
    stopping: CancellationToken,
    ends: Ends,
    relays: JoinSet<Result<(), StoreError>>,
    _others: JoinSet<()>,
}

impl World {
    /// A relay that does not run yet.
    async fn new() -> Self {
        let disk = SimulatedDisk::new();
        let mut options = StoreOptions::new("simulated");
        options.simulated = Some(disk.clone());
        options.clock = Clock::manual(1_700_000_000_000);
        let retention = Duration::from_secs(3600);
        let queue = QueueRetention { name: "orders".to_owned(), retention, classes: Vec::new() };
        let opened = Store::open(&options, &[queue], &|_| ()).await;
        let (store, committer, _) = opened.expect("it opens");
        let (broker, health) = (Moody::default(), Health::default());
        let (publisher, publisher_task) =
            PublisherTask::new(Arc::new(broker.clone()), health.clone());
        let mut others = JoinSet::new();
        others.spawn(async move { drop(committer.run(CancellationToken::new()).await) });
        others.spawn(publisher_task.run(CancellationToken::new()));
        let draining = CancellationToken::new();
        let (relay, task) = RelayTask::new(RelayParts {
            store: store.clone(),
            publisher,
            health: health.clone(),
            draining: draining.clone(),
        });
        Self {
            broker,
            disk,
            store,
            health,
            relay,
            task: Some(task),
            messages: Arc::new(Sender::of_messages("orders")),
            letters: Arc::new(Sender::of_dead_letters("orders", DEAD)),
            draining,
            stopping: CancellationToken::new(),
            ends: Ends::default(),
            relays: JoinSet::new(),
            _others: others,
        }
    }

    /// A relay that runs, and queues `out` and `other` at the broker.
    async fn running() -> Self {
        let mut world = Self::new().await;
        world.broker.inner.declare("out");
        world.broker.inner.declare("other");
        world.run();
        world
    }

    fn run(&mut self) {
        let task = self.task.take().expect("it runs once");
        self.relays.spawn(task.run(self.stopping.clone()));
    }

    /// Ends the relay as the supervisor does at a shutdown.
    async fn stop(&mut self) {
        self.stopping.cancel();
        let ended = self.relays.join_next().await.expect("it runs");
        ended.expect("it does not panic").expect("the store is sound");
    }

    fn on_end(&self, name: &str) -> OnEnd {
        let (ends, name) = (Arc::clone(&self.ends), name.to_owned());
        Box::new(move |end| {
            ends.lock().expect("not poisoned").push((name, end));
            None
        })
    }

    fn outgoing(&self, of_key: u8, to: &str, name: &str) -> Outgoing {
        Outgoing {
            key: key(of_key),
            messages: vec![Arc::new(message(to, name))],
            sender: Arc::clone(&self.messages),
            otherwise: Otherwise::Hold,
            row: None,
            returned: None,
            on_end: self.on_end(name),
        }
    }

    fn send(&self, of_key: u8, to: &str, name: &str) {
        self.relay.send(self.outgoing(of_key, to, name));
    }

    fn ends(&self) -> Vec<(String, End)> {
        self.ends.lock().expect("not poisoned").clone()
    }

    async fn ended(&self, count: usize) {
        let enough = async {
            while self.ends().len() < count {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(Duration::from_secs(3600), enough).await;
        assert!(waited.is_ok(), "only {:?}", self.ends());
    }

    fn bodies(&self, queue: &str) -> Vec<String> {
        let messages = self.broker.inner.take_all(queue);
        messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
    }

    fn faults(&self) -> Vec<String> {
        self.health.readiness().faults.into_iter().map(|(part, _)| part).collect()
    }
}

fn key(number: u8) -> KeyId {
    KeyId { queue: QUEUE, hash: [number; 16] }
}

fn identity(number: u8) -> Identity {
    Identity::from_bytes([number; 16])
}

fn message(to: &str, name: &str) -> Message {
    Message {
        routing_key: to.to_owned(),
        properties: Properties { message_id: Some(name.to_owned()), ..Properties::default() },
        body: name.as_bytes().to_vec().into(),
        ..Message::default()
    }
}

fn row(of: Identity, of_key: u8, messages: &[Message]) -> OutgoingRow {
    let messages = postcard::to_stdvec(messages).expect("it can be encoded");
    OutgoingRow { identity: of, key: key(of_key), messages: Stored::Inline(messages.into()) }
}

fn all(names: &[&str], end: End) -> Vec<(String, End)> {
    names.iter().map(|name| ((*name).to_owned(), end)).collect()
}

const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(start_paused = true)]
async fn a_refusal_holds_back_its_own_key_only_and_the_key_keeps_its_order() {
    let world = World::running().await;
    world.broker.mood(|mood| mood.refuses.insert("out".to_owned()));
    for name in ["a0", "a1", "a2"] {
        world.send(1, "out", name);
    }
    // Of the same key, but to a queue that takes it: it must not overtake.
    world.send(1, "other", "a3");
    world.send(2, "other", "b0");
    sleep(SOON).await;
    assert_eq!(world.ends(), all(&["b0"], End::Sent));
    assert_eq!(world.bodies("other"), ["b0"]);
    assert_eq!(world.faults(), ["outgoing messages of queue orders"]);
    world.broker.mood(|mood| mood.refuses.clear());
    world.ended(5).await;
    assert_eq!(world.ends(), all(&["b0", "a0", "a1", "a2", "a3"], End::Sent));
    assert_eq!(world.bodies("out"), ["a0", "a1", "a2"]);
    assert_eq!(world.faults(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_no_queue_takes_is_held_and_health_says_so_until_the_queue_is_there() {
    let world = World::running().await;
    world.send(1, "missing", "a0");
    world.send(1, "missing", "a1");
    world.send(2, "missing", "b0");
    world.send(3, "out", "c0");
    sleep(LONG).await;
    assert_eq!(world.ends(), all(&["c0"], End::Sent));
    let faults = world.health.readiness().faults;
    assert_eq!(faults.len(), 1);
    assert!(faults[0].1.contains("routing key \"missing\""), "{faults:?}");
    world.broker.inner.declare("missing");
    world.ended(4).await;
    let mut bodies = world.bodies("missing");
    bodies.retain(|body| body != "b0");
    assert_eq!(bodies, ["a0", "a1"]);
    assert!(world.health.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_messages_of_one_commit_go_in_order_and_end_together() {
    let world = World::running().await;
    let mut outgoing = world.outgoing(1, "out", "all");
    outgoing.messages = ["0", "1", "2"].iter().map(|name| Arc::new(message("out", name))).collect();
    outgoing.messages.insert(2, Arc::new(message("missing", "between")));
    world.relay.send(outgoing);
    sleep(SOON).await;
    assert_eq!((world.bodies("out"), world.ends()), (vec!["0".to_owned(), "1".to_owned()], vec![]));
    world.broker.inner.declare("missing");
    world.ended(1).await;
    assert_eq!(world.bodies("out"), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn by_policy_what_no_queue_takes_is_dead_lettered_and_its_key_goes_on() {
    let world = World::running().await;
    world.broker.inner.declare(DEAD);
    let mut lost = message("missing", "a0");
    lost.properties.expiration = Some("1".to_owned());
    lost.properties.headers.insert("CC".to_owned(), HeaderValue::from("out"));
    let mut outgoing = world.outgoing(1, "missing", "a0");
    outgoing.otherwise = Otherwise::DeadLetter { queue: DEAD.into() };
    outgoing.messages = vec![Arc::new(lost), Arc::new(message("out", "a1"))];
    world.relay.send(outgoing);
    world.ended(1).await;
    assert_eq!(world.bodies("out"), ["a1"]);
    let letters = world.broker.inner.take_all(DEAD);
    let headers = &letters[0].properties.headers;
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_str).unwrap_or_default();
    assert_eq!(letters[0].body, "a0");
    assert_eq!(letters[0].properties.message_id.as_deref(), Some("a0"));
    assert_eq!(text("x-onceward-reason"), "unroutable");
    assert_eq!(text("x-onceward-queue"), "orders");
    assert_eq!(text("x-onceward-routing-key"), "missing");
    assert_eq!(text("x-onceward-cc"), "out");
    assert_eq!(text("x-onceward-expiration"), "1");
    assert_eq!(text(OUTGOING_ID_HEADER), "dead-a0");
    assert!(!headers.contains_key("CC") && letters[0].properties.expiration.is_none());
    assert!(world.health.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn by_policy_what_is_not_taken_is_dropped_and_holds_nobody_up() {
    let world = World::running().await;
    world.broker.mood(|mood| mood.refuses.insert("out".to_owned()));
    for (to, name) in [("missing", "a0"), ("out", "a1"), ("b", "a2")] {
        let otherwise = Otherwise::Drop;
        world.relay.send(Outgoing { otherwise, ..world.outgoing(1, to, name) });
    }
    world.ended(3).await;
    assert_eq!(world.ends(), all(&["a0", "a1", "a2"], End::Sent));
    assert!(world.bodies("out").is_empty());
    assert!(world.health.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_sent_is_replaced_by_what_its_sender_gave() {
    let world = World::running().await;
    let mut outgoing = world.outgoing(1, "out", "a0");
    let mut too_large = message("out", "a0");
    too_large.properties.headers.insert("too-large".to_owned(), HeaderValue::Void);
    outgoing.messages = vec![Arc::new(too_large)];
    outgoing.otherwise = Otherwise::Instead(Arc::new(message("out", "small")));
    world.relay.send(outgoing);
    world.ended(1).await;
    assert_eq!(world.bodies("out"), ["small"]);
    assert!(world.health.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn lost_connections_lose_and_reorder_nothing() {
    let world = World::running().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut sent: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for number in 0..500 {
        let of_key = rng.u8(0..20);
        let name = format!("{of_key}-{number}");
        world.send(of_key, "out", &name);
        sent.entry(of_key).or_default().push(name);
        if number % 50 == 0 {
            world.broker.mood(|mood| mood.loses_after = Some(rng.usize(0..15)));
            sleep(Duration::from_millis(rng.u64(0..3))).await;
        }
    }
    world.ended(500).await;
    let mut arrived: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    let mut twice = 0;
    for body in world.bodies("out") {
        let (of_key, _) = body.split_once('-').expect("a name");
        let of_key = arrived.entry(of_key.parse().expect("a key")).or_default();
        // What was out when the connection was lost is published again at once, under its id.
        if of_key.last() == Some(&body) {
            twice += 1;
        } else {
            of_key.push(body);
        }
    }
    assert_eq!(arrived, sent);
    assert!(twice > 0, "no loss was in the way");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_window_is_under_way() {
    let mut world = World::new().await;
    world.broker.mood(|mood| mood.silent = true);
    let mut task = world.task.take().expect("it was made");
    for number in 0..2 * WINDOW_MAX {
        let key = KeyId { queue: QUEUE, hash: (number as u128).to_le_bytes() };
        world.relay.send(Outgoing { key, ..world.outgoing(0, "out", &number.to_string()) });
    }
    task.take_in();
    task.start();
    assert!(task.flights.is_full());
    let others: Vec<_> = std::iter::from_fn(|| task.lanes.start()).collect();
    assert_eq!(others.len(), WINDOW_MAX, "the others wait for their turn");
    others.into_iter().for_each(|lane| task.lanes.again(lane));
    world.broker.inner.declare("out");
    world.task = Some(task);
    world.run();
    world.broker.mood(|mood| mood.silent = false);
    world.ended(2 * WINDOW_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn held_lanes_take_no_place_in_the_window() {
    let world = World::running().await;
    for number in 0..2 * WINDOW_MAX {
        let key = KeyId { queue: QUEUE, hash: (number as u128).to_le_bytes() };
        world.relay.send(Outgoing { key, ..world.outgoing(0, "missing", "held") });
    }
    sleep(SOON).await;
    world.send(255, "out", "a0");
    timeout(Duration::from_secs(1), world.ended(1)).await.expect("it goes on");
}

#[tokio::test(start_paused = true)]
async fn what_its_token_cancels_is_not_sent_wherever_it_waits() {
    let world = World::running().await;
    let returned = CancellationToken::new();
    let send = |of_key, to: &str, name: &str| {
        let returned = Some(returned.clone());
        world.relay.send(Outgoing { returned, ..world.outgoing(of_key, to, name) });
    };
    // Held itself; behind what is held; under way at a broker that does not answer.
    send(1, "missing", "a0");
    world.send(2, "missing", "b0");
    send(2, "out", "b1");
    world.send(2, "out", "b2");
    sleep(LONG).await;
    world.broker.mood(|mood| mood.silent = true);
    send(3, "out", "c0");
    sleep(Duration::from_millis(5)).await;
    returned.cancel();
    timeout(Duration::from_secs(1), world.ended(3)).await.expect("at once");
    let mut ends = world.ends();
    ends.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(ends, all(&["a0", "b1", "c0"], End::Returned));
    world.broker.mood(|mood| mood.silent = false);
    world.broker.inner.declare("missing");
    world.ended(5).await;
    assert_eq!(
        (world.bodies("missing"), world.bodies("out").last()),
        (vec!["b0".to_owned()], Some(&"b2".to_owned()))
    );
    assert!(world.health.readiness().is_ready());
}

#[tokio::test(start_paused = true)]
async fn what_was_left_unsent_goes_first_and_whoever_waits_for_it_is_told() {
    let mut world = World::new().await;
    let mut task = world.task.take().expect("it was made");
    let two = [message("missing", "0"), message("missing", "1")];
    let hold = || Otherwise::Hold;
    task.recover(row(identity(1), 1, &two), Arc::clone(&world.messages), hold());
    task.recover(
        row(identity(2), 1, &[message("missing", "2")]),
        Arc::clone(&world.messages),
        hold(),
    );
    task.recover(
        row(identity(1), 1, &[message("missing", "3")]),
        Arc::clone(&world.messages),
        hold(),
    );
    world.task = Some(task);
    world.send(1, "missing", "4");
    assert!(world.relay.wait(identity(3), world.on_end("nothing")).is_some());
    assert!(world.relay.wait(identity(1), world.on_end("both")).is_none());
    world.run();
    sleep(LONG).await;
    assert!(world.relay.wait(identity(2), world.on_end("one")).is_none());
    assert_eq!(world.ends(), []);
    world.broker.inner.declare("missing");
    world.ended(3).await;
    assert_eq!(world.bodies("missing"), ["0", "1", "2", "3", "4"]);
    assert_eq!(world.ends(), all(&["one", "both", "4"], End::Sent));
    assert!(world.relay.wait(identity(1), world.on_end("nothing")).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_in_the_store_ends_the_relay_with_its_name() {
    let mut world = World::new().await;
    let mut task = world.task.take().expect("it was made");
    let damaged =
        OutgoingRow { messages: Stored::Inline(vec![255; 9].into()), ..row(identity(1), 1, &[]) };
    task.recover(damaged, Arc::clone(&world.messages), Otherwise::Hold);
    let ended = task.run(world.stopping.clone()).await;
    assert!(matches!(ended, Err(StoreError::Damaged { .. })), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_committed_at_the_end_is_committed() {
    let world = World::running().await;
    let commit = Commit {
        queue: QUEUE,
        records: Records::new(),
        rows: vec![Change::PutPending(identity(1))],
        submitted: Instant::now(),
        on_persisted: Box::new(drop),
    };
    let (ends, told) = (Arc::clone(&world.ends), "a0".to_owned());
    let on_end: OnEnd = Box::new(move |end| {
        ends.lock().expect("not poisoned").push((told, end));
        Some(commit)
    });
    world.relay.send(Outgoing { on_end, ..world.outgoing(1, "out", "a0") });
    world.ended(1).await;
    sleep(Duration::from_millis(5)).await;
    assert!(world.store.is_pending(identity(1)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_is_under_way_and_leaves_nothing() {
    let mut world = World::running().await;
    for number in 0..2000 {
        world.send((number % 100) as u8, "out", &number.to_string());
    }
    world.stop().await;
    assert_eq!(world.ends().len(), 2000);
    assert_eq!(world.bodies("out").len(), 2000);
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_up_what_is_held_and_lets_nothing_overtake_it() {
    let mut world = World::new().await;
    let mut task = world.task.take().expect("it was made");
    let left = row(identity(9), 3, &[message("missing", "c0")]);
    task.recover(left, Arc::clone(&world.messages), Otherwise::Hold);
    world.task = Some(task);
    world.run();
    world.broker.inner.declare("out");
    world.relay.send(Outgoing { row: Some(identity(8)), ..world.outgoing(1, "missing", "a0") });
    world.send(1, "out", "a1");
    sleep(SOON).await;
    assert!(world.relay.wait(identity(9), world.on_end("c0")).is_none());
    world.draining.cancel();
    timeout(Duration::from_millis(100), world.ended(3)).await.expect("at once");
    world.send(1, "out", "a2");
    world.send(2, "out", "b0");
    world.ended(5).await;
    assert!(world.relay.wait(identity(9), world.on_end("c0 again")).is_none());
    assert!(world.relay.wait(identity(8), world.on_end("a0 again")).is_none());
    let returned = ["a0", "a0 again", "a1", "a2", "c0", "c0 again"];
    let (sent, mut given_up): (Vec<_>, Vec<_>) =
        world.ends().into_iter().partition(|(_, end)| *end == End::Sent);
    given_up.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!((sent, given_up), (all(&["b0"], End::Sent), all(&returned, End::Returned)));
    assert_eq!(world.bodies("out"), ["b0"]);
    assert!(world.health.readiness().is_ready());
    timeout(Duration::from_millis(100), world.stop()).await.expect("nothing is left to wait for");
    let waiting = world.relay.wait(identity(3), world.on_end("too late"));
    assert!(waiting.is_none(), "nobody is told that it is confirmed when nobody knows");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_broker_that_does_not_answer() {
    let mut world = World::running().await;
    world.broker.mood(|mood| mood.silent = true);
    world.send(1, "out", "a0");
    sleep(SOON).await;
    timeout(STOP_GRACE + Duration::from_millis(10), world.stop()).await.expect("it ends");
    assert_eq!(world.ends(), []);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_of_the_store_nothing_is_sent_and_nobody_is_told() {
    let mut world = World::running().await;
    world.send(1, "missing", "a0");
    sleep(SOON).await;
    world.disk.set_failing(true);
    let rows = vec![Change::PutPending(identity(1))];
    assert!(world.store.persist(QUEUE, Records::new(), rows).await.is_none());
    world.broker.inner.declare("missing");
    world.send(2, "out", "b0");
    sleep(LONG).await;
    assert_eq!(
        (world.ends(), world.bodies("out"), world.bodies("missing")),
        (vec![], vec![], vec![])
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_and_messages_of_one_key_do_not_wait_for_each_other() {
    let world = World::running().await;
    let sender = Arc::clone(&world.letters);
    world.relay.send(Outgoing { sender, ..world.outgoing(1, "missing", "letter") });
    world.send(1, "out", "a0");
    sleep(SOON).await;
    assert_eq!(world.ends(), all(&["a0"], End::Sent));
    assert_eq!(world.faults(), ["dead-letter queue orders.dead"]);
}
