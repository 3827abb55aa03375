//! The two-tier memory of what was done: an index in memory over a journal on stable storage.
//!
//! Owns identities' records and the rows beside them: states, steps, what is sent, attempts and marks of unfinished
//! messages. It is the only maker of [`Persisted`], the proof without which nothing is acknowledged. It knows nothing
//! of brokers and of how handlers run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::identity::{HashKey, Identity};

mod backend;
mod change;
mod collect;
mod committed;
mod committer;
#[cfg(feature = "simulation")]
mod decoded;
#[cfg(any(test, feature = "testkit"))]
mod described;
mod directory;
mod encrypted;
mod garbage;
mod gather;
mod ghosts;
mod group;
mod index;
mod inspect;
mod journal;
mod key;
mod mirror;
mod open;
mod options;
mod outcome;
mod outgoing;
mod pace;
mod queues;
mod record;
mod recover;
mod rows;
#[cfg(any(test, feature = "testkit"))]
mod simulated;
mod size;
mod sled;
mod spill;
mod state;
mod steps;
mod swap;
#[cfg(test)]
mod tests;
mod tools;
mod unfinished;
mod watermark;
mod writer;

pub use self::backend::StoreError;
pub(crate) use self::change::{Change, Commit, Records, StateChange};
pub(crate) use self::committer::Committer;
#[cfg(feature = "simulation")]
pub(crate) use self::decoded::{Decoded, decode};
pub use self::index::MEMORY_BYTES_PER_ID;
pub use self::inspect::{InspectScope, Inspection, Known, inspect};
pub use self::key::{StoreKey, StoreKeyError};
pub use self::options::StoreOptions;
pub(crate) use self::outcome::ERROR_BYTES_MAX;
pub use self::outcome::{DeadNote, ForgetNote, Outcome, Reason};
pub(crate) use self::queues::{QueueIds, QueueRetention};
pub(crate) use self::record::{Attempts, QueueId, Record};
pub(crate) use self::rows::{
    INLINE_BYTES_MAX, KeyId, KeyState, OutgoingRow, ResultRow, SharedState, StateValue, Stored,
};
#[cfg(any(test, feature = "testkit"))]
pub use self::simulated::SimulatedDisk;
#[cfg(feature = "testkit")]
pub(crate) use self::simulated::{Fate, Op};
#[cfg(feature = "simulation")]
pub(crate) use self::simulated::{Rows, Script};
use self::sled as engine;
pub use self::tools::{
    Compacted, Damage, ExportError, Exported, ForgetError, ForgetRequest, Forgotten, ImportError,
    Imported, QueueStats, StoreStats, Verified, Watch, compact, export, forget, import, stats,
    verify,
};
#[cfg(feature = "worker")]
pub(crate) use self::tools::{Met, Reconciliation, is_store};

use self::backend::Backend;
use self::garbage::CutOff;
use self::gather::Company;
use self::ghosts::GhostSet;
use self::index::Index;
use self::mirror::Mirror;
use self::outgoing::Unconfirmed;
use self::record::Location;
pub(crate) use self::size::Fullness;
use self::state::States;
pub(crate) use self::watermark::Watermark;
use self::watermark::Watermarks;

/// Proof that an outcome is on stable storage; made here only, used up by one settlement.
#[derive(Debug)]
#[must_use = "a proof is there to settle with"]
pub(crate) struct Persisted(());

impl Persisted {
    /// The proof of the same commit, for another of its messages.
    pub(crate) const fn again(&self) -> Self {
        Self(())
    }
}

/// Called when a commit is on stable storage; dropped uncalled if it never gets there.
pub(crate) type OnPersisted = Box<dyn FnOnce(Persisted) + Send>;

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
    rows: Mutex<Mirror>,
    states: States,
    unconfirmed: Mutex<Unconfirmed>,
    watermarks: Watermarks,
    ghosts: GhostSet,
    /// The id of the next spilled value.
    next_spilled: AtomicU64,
    cut_off: CutOff,
    full: Arc<Fullness>,
    company: Company,
    failed: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).field("epoch", &self.epoch).finish()
    }
}

impl Shared {
    fn rows(&self) -> MutexGuard<'_, Mirror> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unconfirmed(&self) -> MutexGuard<'_, Unconfirmed> {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If the block that was known has an earlier record of the identity, the index is to know the later one only.
    async fn supersede(
        &self,
        identity: Identity,
        known: Location,
        later: Location,
    ) -> Result<(), StoreError> {
        if known == later {
            return Ok(());
        }
        let Some(block) = self.backend.get(&known.key()).await? else { return Ok(()) };
        let found = record::find_in_block(&block, identity)
            .map_err(|error| self.damaged(format!("block {}: {error}", known.sequence())))?;
        if found.is_some() {
            self.index.supersede(identity, later);
        }
        Ok(())
    }

    fn failed_earlier(&self) -> StoreError {
        let reason = "an earlier write failed".into();
        StoreError::Failed { path: self.path.clone(), reason }
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

    /// Commits that the committer has not taken yet.
    pub(crate) fn commits_waiting(&self) -> usize {
        self.commits.max_capacity() - self.commits.capacity()
    }

    /// What its committer is to know of the commits that will come.
    pub(crate) fn company(&self) -> &Company {
        &self.shared.company
    }

    /// Whether it is over its size limit: then nothing new is taken in.
    pub(crate) fn fullness(&self) -> Arc<Fullness> {
        Arc::clone(&self.shared.full)
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
                return Err(self.shared.failed_earlier());
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

    /// Whether any dead letter waits for the broker's confirmation.
    pub(crate) fn has_pending(&self) -> bool {
        !self.shared.rows().pending.is_empty()
    }

    /// Whether the dead letter of this identity waits for the broker's confirmation.
    pub(crate) fn is_pending(&self, identity: Identity) -> bool {
        self.shared.rows().pending.contains_key(&identity)
    }

    /// The error for what was read whole and is not what was written.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> StoreError {
        self.shared.damaged(reason)
    }
}
