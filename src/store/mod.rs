//! The two-tier memory of what was done: an index in memory over a journal on stable storage.
//!
//! Owns identities' records, attempts of unfinished messages and the marks of unconfirmed dead letters. It is the only
//! maker of [`Persisted`], the proof without which nothing is acknowledged. It knows nothing of brokers and
//! of how handlers run.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::{Clock, duration_ms};
use crate::identity::{HashKey, Identity};

mod backend;
mod collect;
mod committer;
mod directory;
mod group;
mod index;
mod inspect;
mod journal;
mod open;
mod record;
#[cfg(any(test, feature = "testkit"))]
mod simulated;
mod sled;
#[cfg(test)]
mod tests;

pub use self::backend::StoreError;
pub(crate) use self::committer::Committer;
pub use self::inspect::{InspectScope, Inspection, Known, inspect};
pub(crate) use self::record::{Attempts, ERROR_BYTES_MAX, QueueId, Record};
pub use self::record::{DeadNote, Outcome, Reason};
#[cfg(any(test, feature = "testkit"))]
pub use self::simulated::SimulatedDisk;
use self::sled as engine;

use self::backend::Backend;
use self::index::Index;
use self::record::QueueRow;

/// Memory of the index in bytes for one retained id, at worst; measured by `cargo bench --bench store`.
pub const MEMORY_BYTES_PER_ID: u64 = 40;

/// Where the store is and how large it may grow.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory, made with mode 0700 if missing; one process at a time.
    pub path: PathBuf,
    /// Memory for pages of the store, in bytes; default 64 MiB; real use is two to three times that.
    pub cache_bytes: u64,
    /// Intake stops before the store's files grow past this, in bytes; default 10 GiB.
    pub size_bytes_max: u64,
    /// The clock that retention goes by.
    pub clock: Clock,
    /// A disk in memory in the place of `path`.
    #[cfg(any(test, feature = "testkit"))]
    pub simulated: Option<SimulatedDisk>,
}

impl StoreOptions {
    /// The defaults, for a store in this directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache_bytes: 64 << 20,
            size_bytes_max: 10 << 30,
            clock: Clock::default(),
            #[cfg(any(test, feature = "testkit"))]
            simulated: None,
        }
    }
}

/// Proof that an outcome is on stable storage; made here only, used up by one settlement.
#[derive(Debug)]
#[must_use = "a proof is there to settle with"]
pub(crate) struct Persisted(());

/// Called when a commit is on stable storage; dropped uncalled if it never gets there.
pub(crate) type OnPersisted = Box<dyn FnOnce(Persisted) + Send>;

/// What becomes durable together, all or nothing.
pub(crate) struct Commit {
    pub(crate) queue: QueueId,
    pub(crate) record: Option<Record>,
    /// Rows beside the record.
    pub(crate) rows: Vec<Change>,
    pub(crate) submitted: Instant,
    pub(crate) on_persisted: OnPersisted,
}

/// A row beside a record.
#[derive(Debug)]
pub(crate) enum Change {
    PutAttempts(Identity, Attempts),
    RemoveAttempts(Identity),
    /// A dead letter is decided and not yet confirmed by the broker.
    PutPending(Identity),
    RemovePending(Identity),
}

/// A record that is known, with the proof that it is durable.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) committed_at_ms: u64,
    /// Of the queue that it was committed for.
    pub(crate) retention_ms: u64,
    pub(crate) proof: Persisted,
}

/// The store, shared by all that ask it; the [`Committer`] is the one that writes.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    shared: Arc<Shared>,
    commits: mpsc::Sender<Commit>,
}

/// What store and committer both hold.
struct Shared {
    path: PathBuf,
    backend: Arc<dyn Backend>,
    index: Index,
    hash_key: HashKey,
    epoch: u64,
    clock: Clock,
    rows: Mutex<Rows>,
    full: watch::Sender<bool>,
    failed: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).field("epoch", &self.epoch).finish()
    }
}

/// The small rows, mirrored in memory: there are only as many as messages in trouble.
#[derive(Debug, Default)]
struct Rows {
    queues: BTreeMap<QueueId, QueueRow>,
    attempts: HashMap<Identity, Attempts>,
    pending: HashMap<Identity, ()>,
}

impl Shared {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn damaged(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason: reason.into() }
    }
}

impl Store {
    /// The store's random key, for identities and fingerprints.
    pub(crate) fn hash_key(&self) -> &HashKey {
        &self.shared.hash_key
    }

    /// The wall clock that it goes by.
    pub(crate) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Whether it is over its size limit: then nothing new is taken in.
    pub(crate) fn full(&self) -> watch::Receiver<bool> {
        self.shared.full.subscribe()
    }

    /// Whether nothing becomes durable any more, after a failed write or with the committer's end: then nothing runs
    /// and nothing is acknowledged.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// The record of an identity, if it is known.
    ///
    /// Known means: durable, and not yet collected; that is at least its retention.
    pub(crate) async fn lookup(&self, identity: Identity) -> Result<Option<Found>, StoreError> {
        while let Some(location) = self.shared.index.candidate(identity) {
            if self.has_failed() {
                return Err(StoreError::Failed {
                    path: self.shared.path.clone(),
                    reason: "an earlier write failed".into(),
                });
            }
            match self.shared.backend.get(&location.key()).await? {
                Some(value) => {
                    let found = record::find_in_block(&value, identity).map_err(|error| {
                        self.shared.damaged(format!("block {}: {error}", location.sequence()))
                    })?;
                    let retention_ms = self.retention_ms(location.queue());
                    return Ok(found.map(|(committed_at_ms, record)| Found {
                        record,
                        committed_at_ms,
                        retention_ms,
                        proof: Persisted(()),
                    }));
                }
                // Collected between the two looks: the index has forgotten it first.
                None if self.shared.index.candidate(identity) != Some(location) => {}
                None => {
                    let sequence = location.sequence();
                    return Err(self.shared.damaged(format!("block {sequence} is missing")));
                }
            }
        }
        Ok(None)
    }

    fn retention_ms(&self, queue: QueueId) -> u64 {
        self.shared.rows().queues.get(&queue).map_or(0, |row| row.retention_ms)
    }

    /// Attempts of a message that has no outcome, as far as they are recorded.
    pub(crate) fn attempts(&self, identity: Identity) -> Option<Attempts> {
        self.shared.rows().attempts.get(&identity).copied()
    }

    /// Whether the dead letter of this identity waits for the broker's confirmation.
    pub(crate) fn is_pending(&self, identity: Identity) -> bool {
        self.shared.rows().pending.contains_key(&identity)
    }

    /// Hands the commit to the committer, in order of these calls.
    ///
    /// Waits if the committer is far behind. After a failure of the store the commit is dropped, uncalled.
    pub(crate) async fn commit(&self, commit: Commit) {
        // Boxed where it has to wait, which is rare: every actor's task would be several times as large.
        if let Err(mpsc::error::TrySendError::Full(commit)) = self.commits.try_send(commit) {
            // The committer is gone after a failed write, and with it every hope of an acknowledgement.
            let _ = Box::pin(self.commits.send(commit)).await;
        }
    }

    /// Commits what settles nothing by itself and waits until it is durable; `None` after a failure of the store.
    pub(crate) async fn persist(
        &self,
        queue: QueueId,
        record: Option<Record>,
        rows: Vec<Change>,
    ) -> Option<Persisted> {
        let (persisted, wait) = oneshot::channel();
        let on_persisted: OnPersisted = Box::new(move |proof| {
            // Nobody waits any more at the end of a drain: then nobody settles either.
            let _ = persisted.send(proof);
        });
        let submitted = Instant::now();
        self.commit(Commit { queue, record, rows, submitted, on_persisted }).await;
        wait.await.ok()
    }
}

/// A queue that the store keeps records of.
#[derive(Clone, Debug)]
pub(crate) struct QueueRetention {
    pub(crate) name: String,
    pub(crate) retention: Duration,
}

impl QueueRetention {
    fn row(&self) -> QueueRow {
        QueueRow { name: self.name.clone(), retention_ms: duration_ms(self.retention) }
    }
}
