//! The worker whose power is cut: a child process that reports each id at the moment it acknowledges it.

use std::collections::BTreeMap;
use std::future::pending;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use onceward::{
    AckChannel, Body, Broker, BrokerError, Clock, Context, Declare, HandleError, HeaderValue,
    MemoryBroker, Message, Options, Properties, PublishChannel, QueueOptions, Retry, Session,
    Source, StoreOptions, Subscription, Worker, reject,
};

use crate::disk::run;

const STORE_VARIABLE: &str = "ONCEWARD_POWER_CUT_CHILD_STORE";
const FIRST_VARIABLE: &str = "ONCEWARD_POWER_CUT_CHILD_FIRST";
const WINDOW_VARIABLE: &str = "ONCEWARD_POWER_CUT_CHILD_WINDOW";
const TASK_VARIABLE: &str = "ONCEWARD_POWER_CUT_CHILD_TASK";

/// Header with the time of publishing, which is not after that of the commit.
const PUBLISHED_HEADER: &str = "published-ms";

/// Longest time in which a child opens its store and acknowledges something.
const FIRST_ACK_TIMEOUT: Duration = Duration::from_secs(60);

/// Messages of this many keys follow each other.
pub(crate) const KEYS: u64 = 37;

/// A queue that keeps its records, one whose blocks are collected while the test runs, and one whose messages have
/// every kind of effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Queue {
    Kept,
    Fleeting,
    Effects,
}

impl Queue {
    /// Those whose messages have no effects.
    pub(crate) const ALL: [Self; 2] = [Self::Kept, Self::Fleeting];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Fleeting => "fleeting",
            Self::Effects => "effects",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Kept, Self::Fleeting, Self::Effects].into_iter().find(|queue| queue.name() == name)
    }

    pub(crate) const fn retention(self) -> Duration {
        match self {
            Self::Kept | Self::Effects => Duration::from_secs(24 * 60 * 60),
            Self::Fleeting => Duration::from_millis(300),
        }
    }

    pub(crate) fn options(self) -> QueueOptions {
        let mut options = QueueOptions::new(self.name());
        options.declare = Declare::Classic;
        options.retention = self.retention();
        options.identity.key = vec![Source::Header("key".to_owned())];
        // Attempts that could take longer than the shorter retention are refused; no handler here takes any time.
        let wait = Duration::from_millis(1);
        options.retry = Retry { initial: wait, max: wait, ..Retry::default() };
        options.timeout = Duration::MAX;
        options
    }

    pub(crate) fn message(self, number: u64, published_ms: u64) -> Message {
        let key = format!("k{}", number % KEYS);
        let headers = BTreeMap::from([
            ("key".to_owned(), HeaderValue::from(key.as_str())),
            (PUBLISHED_HEADER.to_owned(), HeaderValue::UInt(published_ms)),
        ]);
        Message {
            routing_key: self.name().to_owned(),
            properties: Properties {
                message_id: Some(number.to_string()),
                headers,
                ..Properties::default()
            },
            body: number.to_string().into(),
            ..Message::default()
        }
    }
}

/// An acknowledged message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) queue: Queue,
    pub(crate) number: u64,
    pub(crate) published_ms: u64,
}

impl Acked {
    pub(crate) fn of(message: &Message) -> Option<Self> {
        let HeaderValue::UInt(published_ms) = *message.properties.headers.get(PUBLISHED_HEADER)?
        else {
            return None;
        };
        Some(Self {
            queue: Queue::named(&message.routing_key)?,
            number: message.properties.message_id.as_ref()?.parse().ok()?,
            published_ms,
        })
    }

    pub(crate) fn line(self) -> String {
        format!("acked {} {} {}\n", self.queue.name(), self.number, self.published_ms)
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("acked ")?.split(' ');
        Some(Self {
            queue: Queue::named(words.next()?)?,
            number: words.next()?.parse().ok()?,
            published_ms: words.next()?.parse().ok()?,
        })
    }
}

/// How a child lives until its power is cut.
pub(crate) struct Life {
    /// The test that it executes.
    pub(crate) test: &'static str,
    pub(crate) task: Task,
    /// Messages that are published and not acknowledged, per queue: 1 makes groups of one commit.
    pub(crate) window: u64,
    pub(crate) from: From,
    pub(crate) time: Duration,
}

/// What a child does all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Work,
    /// Rewrites the store again and again.
    Compact,
}

/// What the time of a life is counted from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Opening,
    FirstAck,
}

/// What a child's fdatasync does.
#[derive(Clone, Copy)]
pub(crate) enum Sync {
    Real,
    /// Nothing, and says that all is well.
    Ignored,
}

/// The running child.
pub(crate) struct Child {
    process: std::process::Child,
    /// Of the worker; with strace the process is another one.
    pid: String,
    reporting: Receiver<()>,
    reports: JoinHandle<Vec<u8>>,
}

impl Child {
    /// Starts one whose message numbers begin with `first`; it is about to open the store when this returns.
    pub(crate) fn start(root: &Path, first: u64, life: &Life, sync: Sync) -> Self {
        let test = std::env::current_exe().expect("the test knows where it is");
        let mut command = match sync {
            Sync::Real => Command::new(test),
            Sync::Ignored => {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]);
                strace.args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:retval=0"]);
                strace.arg(test);
                strace
            }
        };
        let mut process = command
            .args(["--exact", life.test, "--nocapture"])
            .env(TASK_VARIABLE, format!("{:?}", life.task))
            .env(STORE_VARIABLE, store_in(root))
            .env(FIRST_VARIABLE, first.to_string())
            .env(WINDOW_VARIABLE, life.window.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test can execute itself");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let pid = loop {
            line.clear();
            let read = stdout.read_line(&mut line).expect("the child says its pid");
            assert!(read > 0, "the child ended before it said its pid");
            if let Some(pid) = line.trim_end().strip_prefix("pid ") {
                break pid.to_owned();
            }
        };
        let (reported, reporting) = sync_channel(1);
        let reports = std::thread::spawn(move || {
            let mut reports = Vec::new();
            stdout.read_until(b'\n', &mut reports).expect("a pipe can be read");
            // A child that is killed while it opens has nobody waiting for its first report.
            let _ = reported.send(());
            stdout.read_to_end(&mut reports).expect("a pipe can be read to its end");
            reports
        });
        Self { process, pid, reporting, reports }
    }

    /// Waits for its first acknowledgement.
    pub(crate) fn wait_for_ack(&self) {
        self.reporting.recv_timeout(FIRST_ACK_TIMEOUT).expect("the child acknowledges");
    }

    /// Stops it where it is. Each report that is in the pipe now was made of a sync that had ended before.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    /// Ends it, and gives what it had acknowledged.
    pub(crate) fn kill(self) -> Vec<Acked> {
        self.kill_for_reports().lines().filter_map(Acked::from_line).collect()
    }

    /// Ends it, and gives all that it had reported, in whole lines.
    pub(crate) fn kill_for_reports(mut self) -> String {
        self.signal("-KILL");
        self.process.wait().expect("it is our child");
        let reports = self.reports.join().expect("reading does not panic");
        let reports = String::from_utf8(reports).expect("the child writes text");
        // The last line may be cut short.
        reports.rsplit_once('\n').map_or("", |(whole, _)| whole).to_owned()
    }

    fn signal(&self, signal: &str) {
        run(Command::new("kill").args([signal, &self.pid])).expect("the child still runs");
    }
}

pub(crate) fn store_in(root: &Path) -> PathBuf {
    root.join("store")
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(STORE_VARIABLE).is_some()
}

/// What the parent wants of a child.
pub(crate) struct Order {
    pub(crate) store: PathBuf,
    pub(crate) first: u64,
    pub(crate) window: u64,
    pub(crate) task: Task,
}

impl Order {
    pub(crate) fn read() -> Self {
        let text = |name: &str| std::env::var(name).expect("the parent sets it");
        let number = |name: &str| text(name).parse().expect("it is a number");
        let task = if text(TASK_VARIABLE) == "Compact" { Task::Compact } else { Task::Work };
        let store = std::env::var_os(STORE_VARIABLE).expect("the parent sets it").into();
        Self { store, first: number(FIRST_VARIABLE), window: number(WINDOW_VARIABLE), task }
    }
}

/// Says that the child is about to open the store.
pub(crate) fn say_pid() {
    write_or_exit(&format!("\npid {}\n", std::process::id()));
}

/// Works until it is killed.
pub(crate) fn run_as_child() {
    let Order { store, first, window, .. } = Order::read();
    let broker = MemoryBroker::new();
    for queue in Queue::ALL {
        broker.declare(queue.name());
    }
    let next = BTreeMap::from(Queue::ALL.map(|queue| (queue, AtomicU64::new(first))));
    let feed = {
        let broker = broker.clone();
        move |queue: Queue| {
            let number =
                next.get(&queue).map_or(first, |next| next.fetch_add(1, Ordering::Relaxed));
            broker.publish(queue.message(number, Clock::default().now_ms()));
        }
    };
    for queue in Queue::ALL {
        (0..window).for_each(|_| feed(queue));
    }
    let report = move |acked: &[Acked]| {
        write_or_exit(&acked.iter().map(|acked| acked.line()).collect::<String>());
        acked.iter().for_each(|acked| feed(acked.queue));
    };
    let broker = Reporting { inner: broker, report: Arc::new(report) };
    let options = Options::with_broker(Arc::new(broker), StoreOptions::new(store));
    let mut worker = Worker::new(options);
    for queue in Queue::ALL {
        worker = worker.queue_with(queue.options(), handle);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    say_pid();
    let ended = runtime.block_on(worker.run_until(pending()));
    panic!("the worker ended: {ended:?}");
}

/// Some messages die, with a long error, and some need a second attempt.
async fn handle(cx: &mut Context, Body(body): Body) -> onceward::Result {
    let number: u64 = String::from_utf8_lossy(&body).parse()?;
    if number % 50 == 49 {
        return Err(reject("a".repeat(500)));
    }
    if number % 61 == 60 && cx.attempt() == 1 {
        return Err(HandleError::from(std::io::Error::other("not yet")));
    }
    Ok(())
}

/// A child whose parent is gone has nothing to do.
pub(crate) fn write_or_exit(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    if written.and_then(|()| stdout.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Gets what is acknowledged, before the broker does.
pub(crate) type Report = Arc<dyn Fn(&[Acked]) + Send + std::marker::Sync>;

/// A broker that reports.
pub(crate) struct Reporting {
    pub(crate) inner: MemoryBroker,
    pub(crate) report: Report,
}

impl Broker for Reporting {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let session = self.inner.consume(subscription).await?;
            let outstanding = Arc::new(Mutex::new(BTreeMap::new()));
            let acks = ReportingAcks {
                inner: session.acks,
                outstanding: Arc::clone(&outstanding),
                report: Arc::clone(&self.report),
            };
            let deliveries = session.deliveries.inspect(move |delivery| {
                if let Ok(delivery) = delivery
                    && let Some(acked) = Acked::of(&delivery.message)
                {
                    let mut outstanding = outstanding.lock().expect("nothing panics under it");
                    outstanding.insert(delivery.tag, acked);
                }
            });
            Ok(Session { deliveries: deliveries.boxed(), acks: Box::new(acks) })
        }
        .boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        self.inner.publish_channel()
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

struct ReportingAcks {
    inner: Box<dyn AckChannel>,
    outstanding: Arc<Mutex<BTreeMap<u64, Acked>>>,
    report: Report,
}

impl AckChannel for ReportingAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        let acked: Vec<Acked> = {
            let mut outstanding = self.outstanding.lock().expect("nothing panics under it");
            if multiple {
                let later = outstanding.split_off(&(tag + 1));
                std::mem::replace(&mut *outstanding, later).into_values().collect()
            } else {
                outstanding.remove(&tag).into_iter().collect()
            }
        };
        (self.report)(&acked);
        self.inner.ack(tag, multiple)
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}
