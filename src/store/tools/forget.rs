//! Has a store forget one message that has ended, so that its next delivery runs.
//!
//! Nothing is removed: a tombstone with who and why takes the record's place. Steps of a dead message stay, so that it
//! does not repeat what was done when it is sent again.

use tokio_util::sync::CancellationToken;

use super::super::outcome::{ForgetNote, Outcome};
use super::super::{InspectScope, Record, Records, Store, StoreError, StoreOptions};
use crate::message::cut;

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
    /// Steps that stay, and are not repeated when it is sent again.
    pub steps: usize,
}

/// Why nothing is forgotten.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// The store cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is known of it: there is nothing to forget.
    #[error(
        "it is not known: never delivered, still on its first attempt, past its retention, or of a producer that \
         numbers its messages"
    )]
    Unknown,
    /// It was tried and has not ended: its next delivery runs anyway.
    #[error("it has not ended, after {attempts} attempts: its next delivery runs anyway")]
    Unfinished {
        /// Attempts that were started.
        attempts: u32,
    },
    /// Its dead letter is not confirmed yet: start the worker, and forget it when that has published it.
    #[error("its dead letter is not confirmed yet: let the worker publish it, then forget it")]
    Pending,
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
    if let Some(attempts) = store.attempts(identity) {
        return Err(ForgetError::Unfinished { attempts: attempts.started });
    }
    // Asked before the look-up, which makes sure that it is this identity.
    let location = store.shared.index.candidate(identity);
    let (Some(found), Some(location)) = (store.lookup(identity).await?, location) else {
        return Err(ForgetError::Unknown);
    };
    let Record { outcome, fingerprint, attempts, .. } = found.record;
    if matches!(outcome, Outcome::Forgotten(_)) {
        return Err(ForgetError::Already);
    }
    let committed_at_ms = found.committed_at_ms;
    if store.clock().now_ms() < committed_at_ms {
        return Err(ForgetError::ClockBehind { committed_at_ms });
    }
    if !request.dry_run {
        let mut reason = request.reason.to_owned();
        cut(&mut reason, REASON_BYTES_MAX);
        let note = ForgetNote { reason, id: request.id.to_vec() };
        let outcome = Outcome::Forgotten(Box::new(note));
        let tombstone = Record { identity, fingerprint, attempts, outcome, result: None };
        let records = Records::from_elem(tombstone, 1);
        let persisted = store.persist(location.queue(), records, Vec::new()).await;
        if persisted.is_none() {
            return Err(store.shared.failed_earlier().into());
        }
    }
    let steps = store.steps(identity).len();
    Ok(Forgotten { outcome, committed_at_ms, attempts, steps })
}
