//! One worker on a classic and a quorum queue, with a ledger and a queue downstream, and what must be true in the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::{Instant, sleep};

use super::ledger::{Ledger, Runs};
use super::support::process::{WorkerDir, WorkerProcess};
use super::support::proxy::Proxy;
use super::support::rabbitmq::{Client, Node, Vhost};
use super::traffic::{Order, Publishing, Stream, publish};

/// Longer than anything takes once a fault is over.
const PATIENCE: Duration = Duration::from_secs(90);

/// Handed to the ledger: a classic queue.
pub(crate) const CALLS: &str = "calls";
/// Published to `out`: a quorum queue.
pub(crate) const MOVES: &str = "moves";
pub(crate) const QUEUES: &[&str] = &[CALLS, MOVES];

pub(crate) struct Scene {
    pub(crate) vhost: Vhost,
    pub(crate) proxy: Proxy,
    pub(crate) ledger: Ledger,
    pub(crate) directory: WorkerDir,
    worker: Option<WorkerProcess>,
    runs: Runs,
    /// How much of the log was forgotten.
    seen: usize,
}

impl Scene {
    /// A worker that consumes, by way of a sound proxy.
    pub(crate) async fn new(node: &'static Node) -> Self {
        let vhost = Vhost::on(node);
        let client = vhost.client().await;
        client.declare_classic(CALLS).await;
        client.declare_quorum(MOVES).await;
        client.declare_classic("out").await;
        let address = vhost.url();
        let address = address.split(['@', '/']).nth(3).expect("host:port");
        let proxy = Proxy::before(address).await;
        let ledger = Ledger::start().await;
        let directory = WorkerDir::new(&proxy.url(&vhost.url()), &tables(ledger.url()));
        let mut scene =
            Self { vhost, proxy, ledger, directory, worker: None, runs: Runs::Once, seen: 0 };
        scene.start();
        scene
    }

    /// Starts the worker and waits until it consumes both queues.
    pub(crate) fn start(&mut self) {
        let worker = self.launch();
        self.wait_until_consuming(&worker, 1);
        self.worker = Some(worker);
    }

    /// A worker on the same store, whatever becomes of it.
    pub(crate) fn launch(&self) -> WorkerProcess {
        self.directory.start_as(command(&self.directory))
    }

    fn wait_until_consuming(&self, worker: &WorkerProcess, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        let consuming = |queue: &str| {
            let logged = worker.logged();
            let lines = logged.lines().filter(|line| line.contains("\"message\":\"consuming\""));
            lines.filter(|line| line.contains(&format!("\"queue\":\"{queue}\""))).count()
        };
        while QUEUES.iter().any(|queue| consuming(queue) < times) {
            assert!(Instant::now() < deadline, "not consuming:\n{}", worker.logged());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn worker(&self) -> &WorkerProcess {
        self.worker.as_ref().expect("it was started")
    }

    /// Whether the worker lost its connections, in what it logged and was not forgotten.
    pub(crate) fn has_reconnected(&self) -> bool {
        self.directory.logged()[self.seen..].contains("not consuming, will connect again")
    }

    pub(crate) fn forget_log(&mut self) {
        self.seen = self.directory.logged().len();
    }

    pub(crate) fn kill_worker(&mut self) {
        self.runs = Runs::Repeated;
        self.worker.take().expect("it was started").kill();
    }

    pub(crate) fn publishing(&self) -> Publishing {
        self.publishing_on(Stream::new(fastrand::u64(..)))
    }

    pub(crate) fn publishing_on(&self, stream: Stream) -> Publishing {
        Publishing::start(self.vhost.url(), QUEUES, stream)
    }

    pub(crate) async fn publish(&self, orders: &[Order]) {
        publish(&self.vhost.url(), QUEUES, orders).await;
    }

    /// Until messages are on their way.
    pub(crate) async fn flowing(&self, more: usize) {
        let before = self.ledger.len();
        self.until("flowing", async || self.ledger.len() >= before + more).await;
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "never {what}:\n{}", self.tail());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The faults are over: everything finishes, and nothing is lost, doubled or out of order.
    pub(crate) async fn ends_well(mut self, publishing: Publishing) {
        let mut stream = publishing.stop().await;
        let last = stream.last();
        self.publish(&last).await;
        self.all_is_finished(stream.len()).await;
        self.stops_well().await;
        let numbers: BTreeSet<usize> = (0..stream.len()).collect();
        self.check(&numbers).await;
    }

    /// Until this many messages are done, on each of the two ways.
    pub(crate) async fn all_is_finished(&self, messages: usize) {
        let client = self.vhost.client().await;
        self.until("finished", async || {
            let called = self.ledger.finished().len();
            let (moved, ready) = (client.depth("out").await, client.depth(MOVES).await);
            called == messages && moved as usize >= messages && ready == 0
        })
        .await;
    }

    /// A drain ends in good order, and leaves nothing behind.
    pub(crate) async fn stops_well(&mut self) {
        let worker = self.worker.take().expect("it was started");
        worker.signal("TERM");
        let status = worker.wait(PATIENCE);
        assert!(status.success(), "{status}: {}", self.tail());
        let client = self.vhost.client().await;
        for queue in QUEUES {
            assert_eq!(client.depth(queue).await, 0, "{queue} is empty");
        }
        let logged = self.directory.logged();
        for bad in ["PRECONDITION_FAILED", "panicked"] {
            assert!(!logged.contains(bad), "{bad}: {}", self.tail());
        }
    }

    /// What must be true downstream if these messages, and no others, were to be done.
    pub(crate) async fn check(&self, numbers: &BTreeSet<usize>) {
        self.ledger.check(self.runs);
        assert_eq!(&self.ledger.finished(), numbers, "each message is called");
        let client = self.vhost.client().await;
        let moved = Downstream::of(&client, "out").await;
        assert_eq!(&moved.numbers(), numbers, "each message is moved");
        moved.check_order();
        let bad: BTreeSet<usize> =
            numbers.iter().copied().filter(|number| *number % 50 == 49).collect();
        let dead = Downstream::of(&client, &format!("{CALLS}.dead")).await;
        assert_eq!(dead.numbers(), bad, "the bad ones are dead");
        assert!(dead.reasons.iter().all(|reason| reason == "rejected"), "{:?}", dead.reasons);
        let worst = Downstream::of(&client, &format!("{MOVES}.dead")).await;
        assert_eq!(worst.arrived, 0, "nothing that was moved is dead");
        println!(
            "{} messages, {} calls, {} moved, {} dead letters",
            numbers.len(),
            self.ledger.len(),
            moved.arrived,
            dead.arrived
        );
    }

    pub(crate) fn tail(&self) -> String {
        let logged = self.directory.logged();
        let lines: Vec<&str> = logged.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

pub(crate) fn tables(ledger: &str) -> String {
    format!(
        "[http]\nlisten = \"\"\n[defaults]\nkey = [\"header:x-key\"]\nprefetch = 200\n\
         retry = {{ max_attempts = 10, initial = \"50ms\", jitter = false }}\n\
         [queues.{CALLS}]\ndeliver = {{ type = \"http\", url = \"{ledger}\" }}\n\
         [queues.{MOVES}]\ndeliver = {{ type = \"exchange\", exchange = \"\", routing_key = \"out\" }}\n"
    )
}

/// With short heartbeats, so that silence is noticed soon.
pub(crate) fn command(directory: &WorkerDir) -> std::process::Command {
    directory.command(&["run", "--set", "broker.heartbeat=1s"])
}

/// What arrived in a queue, each message once by its outgoing id.
struct Downstream {
    orders: Vec<Order>,
    reasons: BTreeSet<String>,
    arrived: usize,
}

impl Downstream {
    /// Takes everything out; a copy has the same id and the same bytes.
    async fn of(client: &Client, queue: &str) -> Self {
        let mut downstream = Self { orders: Vec::new(), reasons: BTreeSet::new(), arrived: 0 };
        // A dead-letter queue is made when it is needed.
        let passive = QueueDeclareOptions::durable().passive();
        let looking = client.channel().await;
        let looking = looking.queue_declare(queue.into(), passive, FieldTable::default());
        let Ok(found) = looking.await else { return downstream };
        let arrived = found.message_count() as usize;
        let channel = client.channel().await;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming =
            channel.basic_consume(queue.into(), "ledger".into(), options, FieldTable::default());
        let mut consumer = consuming.await.expect("the queue exists").take(arrived);
        let mut ids: HashMap<String, Order> = HashMap::new();
        let mut numbers: HashMap<usize, String> = HashMap::new();
        downstream.arrived = arrived;
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.expect("a delivery");
            let order = Order::parse(&delivery.data);
            let headers = delivery.properties.headers().clone().unwrap_or_default();
            let header = |name: &str| match headers.inner().get(name) {
                Some(lapin::types::AMQPValue::LongString(value)) => Some(value.to_string()),
                _ => None,
            };
            // A dead letter keeps the message's own id, and has the outgoing one beside it.
            let own = delivery.properties.message_id().clone().expect("an id").to_string();
            let id = header(onceward::OUTGOING_ID_HEADER).unwrap_or(own);
            downstream.reasons.extend(header("x-onceward-reason"));
            let first = ids.entry(id.clone()).or_insert_with(|| {
                downstream.orders.push(order);
                order
            });
            assert_eq!(*first, order, "{id} is repeated with another body");
            let known = numbers.entry(order.number).or_insert_with(|| id.clone());
            assert_eq!(*known, id, "{order:?} is sent under two ids");
        }
        downstream
    }

    fn numbers(&self) -> BTreeSet<usize> {
        self.orders.iter().map(|order| order.number).collect()
    }

    fn check_order(&self) {
        let mut sequences: BTreeMap<usize, usize> = BTreeMap::new();
        for order in &self.orders {
            let last = sequences.insert(order.key, order.sequence);
            assert!(last < Some(order.sequence), "after {last:?}: {order:?}");
        }
    }
}
