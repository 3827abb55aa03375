//! What is handed to the committer: records and the rows beside them, durable together or not at all.
//!
//! A commit must fit a batch: one record with its result, or up to 100 without; for each the end of its attempts, a
//! number (of up to eight producers) and an outgoing row (with up to 4 KiB of messages in all); in all up to 64 steps;
//! and one state. What is larger is spilled into commits of its own before. Does not write.

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::mpsc::error::{SendError, TrySendError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backend::Batch;
use super::gather::ENOUGH;
use super::record::{self, Attempts, QueueId, Record};
use super::rows::{KeyId, OutgoingRow, SharedState, Spilled, StepRow};
use super::spill::{self, Owner};
use super::{OnPersisted, Persisted, Store, outgoing, state, steps};
use crate::identity::{Identity, SequenceId};

/// What becomes durable together, all or nothing.
pub(crate) struct Commit {
    pub(crate) queue: QueueId,
    /// Nearly always one; a batch has one for each of its messages.
    pub(crate) records: Records,
    /// Rows beside the records.
    pub(crate) rows: Vec<Change>,
    pub(crate) submitted: Instant,
    pub(crate) on_persisted: OnPersisted,
}

/// The records of one commit.
pub(crate) type Records = SmallVec<[Record; 1]>;

/// A row beside a record.
#[derive(Debug)]
pub(crate) enum Change {
    PutAttempts(Identity, Attempts),
    RemoveAttempts(Identity),
    /// A dead letter is decided and not yet confirmed by the broker.
    PutPending(Identity),
    RemovePending(Identity),
    /// Made by [`Store::stage_state`](super::Store::stage_state) only.
    PutState(StateChange),
    /// Made by [`Store::put_step`](super::Store::put_step) only.
    PutStep(Identity, StepRow),
    /// A spilled result of it goes with it.
    RemoveStep(Identity, String),
    /// Made by [`Store::stage_outgoing`](super::Store::stage_outgoing) only.
    PutOutgoing(OutgoingRow),
    /// A block of outgoing messages, all of them confirmed. Made by [`Store::sent`](super::Store::sent) only.
    RemoveOutgoing(u64),
    /// One piece of a spilled value; its first one names the owner.
    PutPiece(Spilled, u32, Owner, Bytes),
    /// What refers to it goes with this commit; its pieces go some time after.
    RemoveSpilled(Spilled),
    /// A numbered message is done.
    Advance(SequenceId),
}

/// The state of a key is another one.
#[derive(Debug)]
pub(crate) struct StateChange {
    pub(super) key: KeyId,
    pub(super) state: SharedState,
    /// The encoded row; `None` removes it.
    pub(super) row: Option<Vec<u8>>,
    /// By how many bytes it is longer than the row before.
    pub(super) grown_bytes: i64,
}

impl Change {
    /// Adds the row to the batch, unless it is one that goes into a row with others.
    pub(super) fn encode(&self, batch: &mut Batch) {
        match self {
            Self::PutAttempts(identity, attempts) => {
                batch.put_anywhere(record::attempts_key(*identity), record::seal(attempts));
            }
            Self::RemoveAttempts(identity) => batch.remove(record::attempts_key(*identity)),
            Self::PutPending(identity) => {
                batch.put_anywhere(record::pending_key(*identity), record::seal(&()));
            }
            Self::RemovePending(identity) => batch.remove(record::pending_key(*identity)),
            Self::PutState(StateChange { key, row: Some(row), .. }) => {
                batch.put_anywhere(state::state_key(*key), row.clone());
            }
            Self::PutState(StateChange { key, row: None, .. }) => {
                batch.remove_large(state::state_key(*key));
            }
            Self::PutStep(identity, step) => {
                batch.put_anywhere(steps::step_key(*identity, &step.name), record::seal(step));
            }
            Self::RemoveStep(identity, name) => batch.remove(steps::step_key(*identity, name)),
            Self::RemoveOutgoing(sequence) => batch.remove_large(outgoing::outgoing_key(*sequence)),
            Self::PutPiece(spilled, number, owner, bytes) => {
                let (key, row) = spill::piece_row(*spilled, *number, *owner, bytes);
                batch.put(key, row);
            }
            Self::PutOutgoing(_) | Self::Advance(_) | Self::RemoveSpilled(_) => {}
        }
    }
}

impl Store {
    /// Hands the commit to the committer, in order of these calls.
    ///
    /// Waits if the committer is far behind. After a failure of the store the commit is dropped, uncalled.
    pub(crate) async fn commit(&self, mut commit: Commit) {
        let place = match self.commits.try_reserve() {
            Ok(place) => Ok(place),
            // Boxed where it has to wait, which is rare: every actor's task would be several times as large.
            Err(TrySendError::Full(())) => Box::pin(self.commits.reserve()).await,
            Err(TrySendError::Closed(())) => Err(SendError(())),
        };
        // Or else the committer is gone after a failed write, and with it every hope of an acknowledgement.
        if let Ok(place) = place {
            // With a place of its own nothing keeps the commit back any more: now the key's next message may see it.
            for change in &commit.rows {
                if let Change::PutState(change) = change {
                    self.shared.states.hand_in(change);
                }
            }
            self.shared.cut_off.leave_with(&mut commit.rows);
            place.send(commit);
            if self.commits_waiting() >= ENOUGH {
                self.shared.company.closes();
            }
        }
    }

    /// Commits what settles nothing by itself and waits until it is durable; `None` after a failure of the store.
    pub(crate) async fn persist(
        &self,
        queue: QueueId,
        records: Records,
        rows: Vec<Change>,
    ) -> Option<Persisted> {
        let (persisted, wait) = oneshot::channel();
        let on_persisted: OnPersisted = Box::new(move |proof| {
            // Nobody waits any more at the end of a drain: then nobody settles either.
            let _ = persisted.send(proof);
        });
        let submitted = Instant::now();
        self.commit(Commit { queue, records, rows, submitted, on_persisted }).await;
        wait.await.ok()
    }
}
