//! What was acknowledged on one disk, and the judgement of a store against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::{Body, Clock, Context, Handler, MemoryBroker, Options, StoreOptions, Worker};
use tokio::sync::watch;

use crate::worker::{Acked, KEYS, Queue, Reporting};

/// Expired ids that are published again beside those which must be known, to see that they are forgotten.
const EXPIRED_TRIED_MAX: usize = 100;

/// Longest time in which a worker answers all that it gets again.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Acknowledged messages of each queue, with a time that is not after their commit.
#[derive(Default)]
pub(crate) struct Ledger {
    acked: BTreeMap<(Queue, u64), u64>,
    /// All numbers that were published are below.
    next_number: u64,
    new_ids: usize,
}

/// What was found after a cut.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Acknowledged, within its retention, and yet unknown.
    pub(crate) missing: Vec<(Queue, u64)>,
    /// Known, though an earlier message of the same key is not.
    pub(crate) gaps: Vec<u64>,
    /// Acknowledged messages whose record was looked for.
    pub(crate) checked: usize,
    /// Expired messages that the store no longer knew.
    pub(crate) forgotten: usize,
    /// Messages that were not acknowledged, and were known.
    pub(crate) ahead: usize,
    pub(crate) new_ids: usize,
    pub(crate) cuts_with_new_ids: u32,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.gaps.is_empty()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.missing.extend(&other.missing);
        self.gaps.extend(&other.gaps);
        self.checked += other.checked;
        self.forgotten += other.forgotten;
        self.ahead += other.ahead;
        self.new_ids += other.new_ids;
        self.cuts_with_new_ids += other.cuts_with_new_ids;
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ids acknowledged before {} of the cuts, {} looked for, {} of them lost, {} gaps; {} known without an \
             acknowledgement, {} expired and forgotten",
            self.new_ids,
            self.cuts_with_new_ids,
            self.checked,
            self.missing.len(),
            self.gaps.len(),
            self.ahead,
            self.forgotten,
        )
    }
}

impl Ledger {
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Takes in what a child acknowledged that had `window` more messages under way.
    pub(crate) fn acknowledged(&mut self, acked: &[Acked], window: u64) {
        let highest = acked.iter().map(|acked| acked.number + 1).max();
        self.next_number = self.next_number.max(highest.unwrap_or(0)) + window;
        self.new_ids = acked.len();
        let acked = acked.iter();
        self.acked.extend(acked.map(|acked| ((acked.queue, acked.number), acked.published_ms)));
    }

    /// Gives all messages to a worker on this store, at the time of the cut, and sees which it does not know.
    ///
    /// It acknowledges them all in the end, so all of them have to survive the next cut.
    pub(crate) fn judge(&mut self, store: &Path, now_ms: u64) -> Result<Verdict, String> {
        let is_expired = |queue: Queue, since_ms: u64| {
            u128::from(since_ms) + queue.retention().as_millis() <= u128::from(now_ms)
        };
        let (expired, valid): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.acked)
            .into_iter()
            .partition(|((queue, _), since_ms)| is_expired(*queue, *since_ms));
        let expired: Vec<_> = expired.into_keys().take(EXPIRED_TRIED_MAX).collect();
        let first = valid.keys().find(|(queue, _)| *queue == Queue::Fleeting);
        let first_valid = first.map_or(self.next_number, |(_, number)| *number);
        let mut messages: BTreeSet<_> = expired.iter().copied().collect();
        messages.extend((0..self.next_number).map(|number| (Queue::Kept, number)));
        messages.extend((first_valid..self.next_number).map(|number| (Queue::Fleeting, number)));

        let runs = run_all(store, &messages, now_ms)?;
        let unknown = |message: &(Queue, u64)| runs.contains(message);
        let missing: Vec<_> = valid.keys().copied().filter(unknown).collect();
        let known = messages.len() - runs.len();
        let forgotten = expired.iter().copied().filter(unknown).count();
        let verdict = Verdict {
            gaps: self.gaps(&runs),
            checked: valid.len(),
            forgotten,
            ahead: (known + missing.len() + forgotten).saturating_sub(valid.len() + expired.len()),
            missing,
            new_ids: self.new_ids,
            cuts_with_new_ids: u32::from(self.new_ids > 0),
        };
        let since_ms = |message: &(Queue, u64)| valid.get(message).copied();
        self.acked = messages
            .iter()
            .filter_map(|message| {
                let ran_ms = runs.contains(message).then_some(now_ms);
                Some((*message, ran_ms.or_else(|| since_ms(message))?))
            })
            .collect();
        Ok(verdict)
    }

    /// Messages that are known without the one before them under the same key.
    fn gaps(&self, runs: &BTreeSet<(Queue, u64)>) -> Vec<u64> {
        let runs_of_kept = runs.iter().filter(|(queue, _)| *queue == Queue::Kept);
        runs_of_kept
            .map(|(_, number)| number + KEYS)
            .filter(|next| *next < self.next_number && !runs.contains(&(Queue::Kept, *next)))
            .collect()
    }
}

/// Runs a worker until it has acknowledged all messages, and gives those whose handler ran.
#[tokio::main]
async fn run_all(
    store: &Path,
    messages: &BTreeSet<(Queue, u64)>,
    now_ms: u64,
) -> Result<BTreeSet<(Queue, u64)>, String> {
    let broker = MemoryBroker::new();
    let mut options = StoreOptions::new(store);
    options.clock = Clock::manual(now_ms);
    let (acked, mut all_acked) = watch::channel(0);
    let report = move |settled: &[Acked]| acked.send_modify(|acked| *acked += settled.len());
    let reporting = Reporting { inner: broker.clone(), report: Arc::new(report) };
    let runs = Runs::default();
    let mut worker = Worker::new(Options::with_broker(Arc::new(reporting), options));
    for queue in Queue::ALL {
        let options = queue.options();
        broker.declare(&options.queue);
        let handler = Recorder { queue, runs: runs.clone() };
        worker = worker.queue_with(options, handler);
    }
    for (queue, number) in messages {
        broker.publish(queue.message(*number, now_ms));
    }
    let finished = async {
        // The other end is gone only when the worker has ended, which tells why.
        let _ = all_acked.wait_for(|acked| *acked == messages.len()).await;
    };
    tokio::time::timeout(JUDGE_TIMEOUT, worker.run_until(finished))
        .await
        .map_err(|_| format!("not all was acknowledged in {JUDGE_TIMEOUT:?}"))?
        .map_err(|error| format!("the store did not come back: {error}"))?;
    let mut runs = runs.lock().expect("nothing panics under it");
    Ok(std::mem::take(&mut *runs))
}

type Runs = Arc<Mutex<BTreeSet<(Queue, u64)>>>;

/// A handler that always succeeds, and is told of.
struct Recorder {
    queue: Queue,
    runs: Runs,
}

impl Handler<Body> for Recorder {
    async fn handle(&self, _: &mut Context, Body(body): Body) -> onceward::Result {
        let number = String::from_utf8_lossy(&body).parse()?;
        let mut runs = self.runs.lock().expect("nothing panics under it");
        runs.insert((self.queue, number));
        Ok(())
    }
}
