//! Messages with state, a step, something to send and a result, some of each too large for a row, under power cuts.
//!
//! The child reports each step that is done, each message that the broker has confirmed, and each acknowledgement. What
//! the disk holds after the cut is given to another worker with all messages again. It is whole if then: what was
//! acknowledged does not run; what was stepped does not step again; each run finds the state that all before it of its
//! key made, so none was lost and none applied twice; each message has one outgoing id and one body, was confirmed to
//! one of the workers, and is sent at most once by the second; each answer is what the first run gave; and no piece of
//! a large value stays that nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use onceward::{
    Body, Broker, BrokerError, Clock, Context, HandleError, Handler, MemoryBroker, Message,
    OnDuplicate, Options, PublishChannel, Published, QueueOptions, Session, State, StoreOptions,
    Subscription, Worker,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::disk::Disk;
use super::worker::{
    self, Acked, Child, From, KEYS, Life, Order, Queue, Reporting, Sync, Task, say_pid,
    write_or_exit,
};
use super::{CUTS_PER_DISK, disk_or_skip, say, variable};

const CHILD_TEST: &str =
    "effects::state_steps_results_and_what_is_sent_survive_a_power_cut_whole_or_not_at_all";

const SINK: &str = "sink";
const ANSWERS: &str = "answers";

/// Longest time in which a worker answers all that it gets again.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a worker has nothing to do, and how often, until all is removed that nothing refers to.
const IDLE: Duration = Duration::from_millis(1500);
const IDLE_ROUNDS_MAX: u32 = 4;

/// Larger than a row: in several pieces.
const LARGE_BYTES: usize = 9000;

/// Of one key: what all its messages so far add up to.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sum {
    messages: u64,
    sum: u64,
    pad: String,
}

impl State for Sum {
    const NAME: &'static str = "sum";
}

/// What a message sends: the sum that it made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sent {
    number: u64,
    sum: u64,
    pad: String,
}

impl Sent {
    fn of(number: u64) -> Self {
        let before = number / KEYS;
        let key = number % KEYS;
        // number = key + KEYS * i, of all i up to its own.
        let sum = (before + 1) * key + KEYS * (before * (before + 1) / 2);
        Self { number, sum, pad: pad(number, 3) }
    }
}

fn pad(number: u64, every: u64) -> String {
    let bytes = if number.is_multiple_of(every) { LARGE_BYTES } else { 10 };
    "p".repeat(bytes)
}

fn result(number: u64) -> String {
    format!("{number}{}", pad(number, 4))
}

fn options() -> QueueOptions {
    QueueOptions { on_duplicate: OnDuplicate::Replay, ..Queue::Effects.options() }
}

fn message(number: u64) -> Message {
    let mut message = Queue::Effects.message(number, 0);
    message.properties.reply_to = Some(ANSWERS.to_owned());
    message.properties.correlation_id = Some(number.to_string());
    message
}

type Tell = Arc<dyn Fn(Event) + Send + std::marker::Sync>;

/// What a handler does, as it does it.
#[derive(Clone, Copy, Debug)]
enum Event {
    Runs(u64),
    Steps(u64),
    HasStepped(u64),
    /// The state was not what the messages before it make.
    FindsOtherState(u64),
}

/// The same in the child and in the judge.
#[derive(Clone)]
struct Effects {
    tell: Tell,
}

impl Handler<Body, String> for Effects {
    async fn handle(&self, cx: &mut Context, Body(body): Body) -> onceward::Result<String> {
        let number: u64 = String::from_utf8_lossy(&body).parse()?;
        let tell = |event: fn(u64) -> Event| (self.tell)(event(number));
        tell(Event::Runs);
        let mut sum = cx.state::<Sum>()?.unwrap_or_default();
        let expected = Sent::of(number);
        if sum.messages != number / KEYS || sum.sum + number != expected.sum {
            tell(Event::FindsOtherState);
        }
        let receipt: String = cx
            .once("fee", async |_| {
                tell(Event::Steps);
                Ok::<_, std::io::Error>(pad(number, 5))
            })
            .await?;
        tell(Event::HasStepped);
        if receipt != pad(number, 5) {
            return Err(HandleError::from(std::io::Error::other("another receipt")));
        }
        if number % 61 == 60 && cx.attempt() == 1 {
            return Err(HandleError::from(std::io::Error::other("not yet")));
        }
        (sum.messages, sum.sum) = (sum.messages + 1, sum.sum + number);
        sum.pad = pad(number, 2);
        cx.set_state(&sum)?;
        cx.send(SINK, &expected)?;
        Ok(result(number))
    }
}

#[test]
fn state_steps_results_and_what_is_sent_survive_a_power_cut_whole_or_not_at_all() {
    if worker::is_child() {
        return run_as_child();
    }
    let Some(mut disk) = disk_or_skip(CHILD_TEST) else {
        return;
    };
    let cuts: u32 = variable("ONCEWARD_POWER_CUTS").unwrap_or(50);
    let seed = variable("ONCEWARD_POWER_CUT_SEED").unwrap_or_else(|| fastrand::u64(..));
    say(&format!(
        "replay: ONCEWARD_POWER_CUTS={cuts} ONCEWARD_POWER_CUT_SEED={seed} cargo test --test power_cut {CHILD_TEST}"
    ));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ledger = Ledger::default();
    let mut seen = Seen::default();
    let started = Instant::now();
    for number in 0..cuts {
        if number > 0 && number % CUTS_PER_DISK == 0 {
            let left = nothing_stays_that_nobody_needs(&worker::store_in(disk.root()));
            left.unwrap_or_else(|error| panic!("cut {number}: {error}; {}", disk.keep()));
            disk = Disk::format().expect("another disk, as the first one could be made");
            ledger = Ledger::default();
        }
        let life = life(&mut rng, ledger.next_number > 0);
        let task = life.task;
        let judged = cut_after(&mut disk, &mut ledger, &life, &mut seen);
        judged.unwrap_or_else(|error| panic!("cut {number}, {task:?}: {error}; {}", disk.keep()));
    }
    say(&format!("{cuts} cuts of effects: {seen:?}"));
    let seconds = started.elapsed().as_secs();
    assert!(seen.acked > 0 && seen.resent > 0 && seen.replayed > 0, "{seen:?}");
    assert!(cuts < 50 || seen.compactions > 0, "{seen:?}");
    say(&format!("TIER power-cuts-with-effects: {cuts} cuts, 0 violations, {seconds} s"));
}

fn life(rng: &mut fastrand::Rng, has_worked: bool) -> Life {
    let window = rng.choice([1, 20, 150]).unwrap_or(1);
    let (task, from, millis) = match rng.u8(0..5) {
        0 => (Task::Work, From::Opening, rng.u64(0..60)),
        1 if has_worked => (Task::Compact, From::Opening, rng.u64(0..200)),
        _ => (Task::Work, From::FirstAck, rng.u64(0..250)),
    };
    Life { test: CHILD_TEST, task, window, from, time: Duration::from_millis(millis) }
}

/// What the cuts have met, to be sure that they met something.
#[derive(Debug, Default)]
struct Seen {
    acked: usize,
    /// Ran again, because the disk did not have them.
    ran: usize,
    /// Sent by the second worker for the first.
    resent: usize,
    replayed: usize,
    left_over: u64,
    compactions: u32,
}

fn cut_after(
    disk: &mut Disk,
    ledger: &mut Ledger,
    life: &Life,
    seen: &mut Seen,
) -> Result<(), String> {
    let child = Child::start(disk.root(), ledger.next_number, life, Sync::Real);
    if life.from == From::FirstAck {
        child.wait_for_ack();
    }
    std::thread::sleep(life.time);
    child.stop();
    let copy = disk.image_at_this_instant();
    let reports = child.kill_for_reports();
    *disk = copy.mount()?;
    let known = ledger.acked.len();
    match life.task {
        Task::Work => ledger.reported(&reports, life.window),
        Task::Compact => seen.compactions += 1,
    }
    seen.acked += ledger.acked.len() - known;
    ledger.judge(&worker::store_in(disk.root()), seen)
}

/// What the children of one disk have reported.
#[derive(Default)]
struct Ledger {
    next_number: u64,
    acked: BTreeSet<u64>,
    stepped: BTreeSet<u64>,
    confirmed: BTreeMap<String, Sent>,
}

impl Ledger {
    /// Takes in the reports of a child that had `window` more messages under way.
    fn reported(&mut self, reports: &str, window: u64) {
        let mut highest = self.next_number;
        for line in reports.lines() {
            if let Some(acked) = Acked::from_line(line) {
                self.acked.insert(acked.number);
                highest = highest.max(acked.number + 1);
            } else if let Some(number) = line.strip_prefix("stepped ") {
                self.stepped.insert(number.parse().expect("a number"));
            } else if let Some(sent) = line.strip_prefix("confirmed ") {
                let (id, body) = sent.split_once(' ').expect("id and body");
                self.confirmed(id, serde_json::from_str(body).expect("what was sent"));
            }
        }
        self.next_number = highest + window;
    }

    fn confirmed(&mut self, id: &str, sent: Sent) {
        assert_eq!(sent, Sent::of(sent.number), "what is sent follows from the state");
        let number = sent.number;
        let before = self.confirmed.insert(id.to_owned(), sent);
        assert!(before.is_none_or(|before| before.number == number), "{id} is of two messages");
    }

    fn judge(&mut self, store: &Path, seen: &mut Seen) -> Result<(), String> {
        let found = give_all_again(store, self.next_number)?;
        let again = |what: &str, numbers: &BTreeSet<u64>, before: &BTreeSet<u64>| {
            let again: Vec<_> = numbers.intersection(before).collect();
            if again.is_empty() { Ok(()) } else { Err(format!("{what} again: {again:?}")) }
        };
        again("acknowledged, and run", &found.ran, &self.acked)?;
        again("stepped, and stepped", &found.stepped, &self.stepped)?;
        if !found.other_state.is_empty() {
            return Err(format!("the state is another: {:?}", found.other_state));
        }
        for (id, sent) in found.sent {
            seen.resent += usize::from(!found.ran.contains(&sent.number));
            self.confirmed(&id, sent);
        }
        let mut numbers: Vec<u64> = self.confirmed.values().map(|sent| sent.number).collect();
        numbers.sort_unstable();
        if !numbers.iter().copied().eq(0..self.next_number) {
            let sent: BTreeSet<u64> = numbers.iter().copied().collect();
            let missing: Vec<_> = (0..self.next_number).filter(|n| !sent.contains(n)).collect();
            return Err(format!(
                "{} ids of {} messages, missing: {missing:?}",
                numbers.len(),
                self.next_number
            ));
        }
        seen.ran += found.ran.len();
        seen.replayed += self.next_number as usize - found.ran.len();
        seen.left_over += found.left_over;
        // The second worker has acknowledged all.
        self.acked = (0..self.next_number).collect();
        self.stepped = self.acked.clone();
        Ok(())
    }
}

/// What a worker did that got all messages again.
#[derive(Debug, Default)]
struct Found {
    ran: BTreeSet<u64>,
    stepped: BTreeSet<u64>,
    other_state: BTreeSet<u64>,
    sent: BTreeMap<String, Sent>,
    left_over: u64,
}

#[tokio::main]
async fn give_all_again(store: &Path, messages: u64) -> Result<Found, String> {
    // A compaction that was cut may have been cut before there was anything.
    if messages == 0 {
        return Ok(Found::default());
    }
    let found = Arc::new(Mutex::new(Found::default()));
    let tell: Tell = Arc::new({
        let found = Arc::clone(&found);
        move |event| {
            let mut found = found.lock().expect("nothing panics under it");
            match event {
                Event::Runs(number) => found.ran.insert(number),
                Event::Steps(number) => found.stepped.insert(number),
                Event::FindsOtherState(number) => found.other_state.insert(number),
                Event::HasStepped(_) => true,
            };
        }
    });
    let broker = MemoryBroker::new();
    for queue in [Queue::Effects.name(), SINK, ANSWERS] {
        broker.declare(queue);
    }
    for number in 0..messages {
        broker.publish(message(number));
    }
    let (acked, mut all_acked) = watch::channel(0);
    let report = move |settled: &[Acked]| acked.send_modify(|acked| *acked += settled.len());
    let reporting = Reporting { inner: broker.clone(), report: Arc::new(report) };
    let worker = Worker::new(Options::with_broker(Arc::new(reporting), StoreOptions::new(store)))
        .queue_with(options(), Effects { tell });
    let finished = async {
        // The other end is gone only when the worker has ended, which tells why.
        let _ = all_acked.wait_for(|acked| *acked as u64 == messages).await;
    };
    timeout(JUDGE_TIMEOUT, worker.run_until(finished))
        .await
        .map_err(|_| format!("not all was acknowledged in {JUDGE_TIMEOUT:?}"))?
        .map_err(|error| format!("the store did not come back: {error}"))?;

    let mut found = std::mem::take(&mut *found.lock().expect("nothing panics under it"));
    for message in broker.take_all(SINK) {
        let id = message.properties.message_id.clone().ok_or("a message without an id")?;
        let sent: Sent =
            serde_json::from_slice(&message.body).map_err(|error| error.to_string())?;
        if let Some(twice) = found.sent.insert(id, sent) {
            return Err(format!("{} is sent twice by one worker", twice.number));
        }
    }
    let mut answered: BTreeMap<u64, usize> = BTreeMap::new();
    for answer in broker.take_all(ANSWERS) {
        let asked = answer.properties.correlation_id.as_ref().and_then(|id| id.parse().ok());
        let asked: u64 = asked.ok_or("an answer to nothing")?;
        let text: String =
            serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        if text != result(asked) {
            return Err(format!("the answer to {asked} is another"));
        }
        *answered.entry(asked).or_default() += 1;
    }
    if !answered.keys().copied().eq(0..messages) {
        return Err(format!("{} of {messages} are answered", answered.len()));
    }
    let verified = onceward::verify(&StoreOptions::new(store), &mut ()).await;
    let verified = verified.map_err(|error| format!("verifying: {error}"))?;
    if verified.damages > 0 {
        return Err(format!("after a worker has worked on it: {verified:?}"));
    }
    found.left_over = verified.left_over;
    Ok(found)
}

/// A worker with nothing to do removes what nothing refers to.
#[tokio::main]
async fn nothing_stays_that_nobody_needs(store: &Path) -> Result<(), String> {
    let mut left = None;
    for _ in 0..IDLE_ROUNDS_MAX {
        let broker = Arc::new(MemoryBroker::new());
        let worker = Worker::new(Options::with_broker(broker, StoreOptions::new(store)))
            .queue_with(options(), Effects { tell: Arc::new(|_| ()) });
        let ended = worker.run_until(tokio::time::sleep(IDLE)).await;
        ended.map_err(|error| error.to_string())?;
        let verified = onceward::verify(&StoreOptions::new(store), &mut ()).await;
        let verified = verified.map_err(|error| error.to_string())?;
        if verified.damages == 0 && verified.left_over == 0 {
            return Ok(());
        }
        left = Some(verified);
    }
    Err(format!("after {IDLE_ROUNDS_MAX} idle workers: {left:?}"))
}

/// Works, or rewrites the store, until it is killed.
fn run_as_child() {
    let order = Order::read();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    if order.task == Task::Compact {
        say_pid();
        runtime.block_on(async {
            loop {
                let options = StoreOptions::new(&order.store);
                onceward::compact(&options, &mut ()).await.expect("it can be rewritten");
            }
        });
    }
    let broker = MemoryBroker::new();
    for queue in [Queue::Effects.name(), SINK, ANSWERS] {
        broker.declare(queue);
    }
    for number in order.first..order.first + order.window {
        broker.publish(message(number));
    }
    let next = std::sync::atomic::AtomicU64::new(order.first + order.window);
    let report = {
        let broker = broker.clone();
        move |acked: &[Acked]| {
            write_or_exit(&acked.iter().map(|acked| acked.line()).collect::<String>());
            for _ in acked {
                broker.publish(message(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
            }
        }
    };
    let tell: Tell = Arc::new(|event| {
        if let Event::HasStepped(number) = event {
            write_or_exit(&format!("stepped {number}\n"));
        }
    });
    let broker = Confirming(Reporting { inner: broker, report: Arc::new(report) });
    let mut store = StoreOptions::new(&order.store);
    store.clock = Clock::default();
    let worker = Worker::new(Options::with_broker(Arc::new(broker), store))
        .queue_with(options(), Effects { tell });
    say_pid();
    let ended = runtime.block_on(worker.run_until(pending()));
    panic!("the worker ended: {ended:?}");
}

/// Reports what the broker has confirmed, before the worker learns of it.
struct Confirming(Reporting);

impl Broker for Confirming {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        self.0.consume(subscription)
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        async {
            let inner = self.0.publish_channel().await?;
            Ok(Box::new(ConfirmingChannel(inner)) as Box<dyn PublishChannel>)
        }
        .boxed()
    }

    fn address(&self) -> String {
        self.0.address()
    }
}

struct ConfirmingChannel(Box<dyn PublishChannel>);

impl PublishChannel for ConfirmingChannel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.0.ensure_queue(queue)
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        async move {
            let published = self.0.publish(batch).await?;
            for (message, published) in batch.iter().zip(&published) {
                if message.routing_key == SINK && *published == Published::Confirmed {
                    let id = message.properties.message_id.as_deref().expect("an id");
                    let body = String::from_utf8_lossy(&message.body);
                    write_or_exit(&format!("confirmed {id} {body}\n"));
                }
            }
            Ok(published)
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.0.close()
    }
}
