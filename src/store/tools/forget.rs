//! Has a store forget one message that has ended, so that its next delivery runs.
//!
//! A tombstone with who and why takes the record's place. Finished steps of a dead message stay, so that it does not
//! repeat what was done when it is sent again. Steps that were begun and of which nobody knows the end go: the operator
//! has found out, or takes the risk. Forgets nothing of which something waits for the broker.

use tokio_util::sync::CancellationToken;

use super::super::inspect::numbered;
use super::super::outcome::{ForgetNote, Outcome};
use super::super::watermark::Watermark;
use super::super::{Change, InspectScope, Record, Records, Store, StoreError, StoreOptions};
use crate::message::cut;

/// Most steps that one commit removes.
const STEPS_MAX: usize = 64;

/// Longest reason in a tombstone, in bytes.
const REASON_BYTES_MAX: usize = 512;

/// Which message is to be forgotten, and why.
#[derive(Clone, Copy, Debug)]
pub struct ForgetRequest<'a> {
    /// The namespace of the id.
    pub scope: InspectScope<'a>,
    /// The id, as the producer sent it.
    pub id: &'a [u8],
    /// Kept with the tombstone, cut to 512 bytes.
    pub reason: &'a str,
    /// Changes nothing.
    pub dry_run: bool,
}

/// What was forgotten, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forgotten {
    /// How it had ended.
    pub outcome: Outcome,
    /// When it had, in milliseconds since 1970.
    pub committed_at_ms: u64,
    /// Attempts that it had taken.
    pub attempts: u32,
    /// Finished steps that stay, and are not repeated when it is sent again.
    pub steps: usize,
    /// Steps that were begun and not finished: forgotten too, so they run when it is sent again.
    pub begun_steps: usize,
}

/// Why nothing is forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// The store cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is known of it: there is nothing to forget.
    #[error("it is not known: never delivered, still on its first attempt, or past its retention")]
    Unknown,
    /// Its producer numbers its messages, and the watermark has passed this one: that cannot be taken back for one.
    #[error(
        "its producer numbers its messages and the watermark has passed this one: it cannot be forgotten"
    )]
    Numbered,
    /// It was tried and has not ended: its next delivery runs anyway.
    #[error("it has not ended, after {attempts} attempts: its next delivery runs anyway")]
    Unfinished {
        /// Attempts that were started.
        attempts: u32,
    },
    /// Its dead letter is not confirmed yet: start the worker, and forget it when that has published it.
    #[error("its dead letter is not confirmed yet: let the worker publish it, then forget it")]
    Pending,
    /// What it sends is not confirmed yet, and would be sent twice: start the worker, and forget it when all is sent.
    #[error("what it sends is not confirmed yet: let the worker publish it, then forget it")]
    Unsent,
    /// The clock is behind what is to be forgotten, whose record would count for the later one: set the clock.
    #[error(
        "the clock is behind: it ended at {committed_at_ms} ms since 1970, and that is in the future"
    )]
    ClockBehind {
        /// When it ended.
        committed_at_ms: u64,
    },
    /// It was forgotten before: its next delivery runs.
    #[error("it was forgotten before: its next delivery runs")]
    Already,
}

/// Has the store of a stopped worker forget a message.
///
/// # Errors
///
/// Each of [`ForgetError`]; nothing is changed then. A store that is not there is made; check for its directory first.
pub async fn forget(
    options: &StoreOptions,
    request: ForgetRequest<'_>,
) -> Result<Forgotten, ForgetError> {
    let (store, committer, _) = Store::open(options, &[], &|_| {}).await?;
    let stopping = CancellationToken::new();
    let work = async {
        let forgotten = forget_in(&store, request).await;
        stopping.cancel();
        forgotten
    };
    let (written, forgotten) = tokio::join!(committer.run(stopping.clone()), work);
    written?;
    forgotten
}

async fn forget_in(store: &Store, request: ForgetRequest<'_>) -> Result<Forgotten, ForgetError> {
    let identity = store.hash_key().identity(&request.scope.name(), request.id);
    if store.is_pending(identity) {
        return Err(ForgetError::Pending);
    }
    if store.shared.unconfirmed().is_of(identity) {
        return Err(ForgetError::Unsent);
    }
    if let Some(attempts) = store.attempts(identity) {
        return Err(ForgetError::Unfinished { attempts: attempts.started });
    }
    // Asked before the look-up, which makes sure that it is this identity.
    let location = store.shared.index.candidate(identity);
    let (Some(found), Some(location)) = (store.lookup(identity).await?, location) else {
        return Err(match numbered(store, &request.scope.name(), request.id) {
            Watermark::New => ForgetError::Unknown,
            Watermark::Done(_) | Watermark::Unsure => ForgetError::Numbered,
        });
    };
    let Record { outcome, fingerprint, attempts, .. } = found.record;
    if matches!(outcome, Outcome::Forgotten(_)) {
        return Err(ForgetError::Already);
    }
    let committed_at_ms = found.committed_at_ms;
    if store.clock().now_ms() < committed_at_ms {
        return Err(ForgetError::ClockBehind { committed_at_ms });
    }
    let (finished, begun): (Vec<_>, Vec<_>) =
        store.steps(identity).into_iter().partition(|step| step.result.is_some());
    let (steps, begun_steps) = (finished.len(), begun.len());
    if !request.dry_run {
        let mut reason = request.reason.to_owned();
        cut(&mut reason, REASON_BYTES_MAX);
        let note = ForgetNote { reason, id: request.id.to_vec() };
        let outcome = Outcome::Forgotten(Box::new(note));
        let tombstone = Record { identity, fingerprint, attempts, outcome, result: None };
        let mut rows = begun.into_iter().map(|step| Change::RemoveStep(identity, step.name));
        let mut records = Records::new();
        // More than a commit can hold go before: without its tombstone the message is known as before.
        while records.is_empty() {
            let rows: Vec<Change> = rows.by_ref().take(STEPS_MAX).collect();
            if rows.len() < STEPS_MAX {
                records.push(tombstone.clone());
            }
            let persisted = store.persist(location.queue(), records.clone(), rows).await;
            if persisted.is_none() {
                return Err(store.shared.failed_earlier().into());
            }
        }
    }
    Ok(Forgotten { outcome, committed_at_ms, attempts, steps, begun_steps })
}
