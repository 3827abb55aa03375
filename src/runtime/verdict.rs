//! What the store says of a message before it runs.
//!
//! Reads, and decides nothing of what follows from it. A record is looked up by the whole identity, and a known id with
//! another body is never taken for a duplicate.

use super::admission::Admitted;
use super::queue::Queue;
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::planted::{self, Bug};
use crate::store::{DeadNote, Outcome, Persisted, ResultRow, StoreError};

/// What the store says of a message before it runs.
pub(crate) enum Verdict {
    /// Never seen, or not finished.
    New,
    /// Done or dead once, and forgotten by an operator: it runs, whatever else is known of it.
    Forgotten,
    /// Known and settled with this proof; with the result of its handler, if it returned one.
    Known(Persisted, Option<Box<ResultRow>>),
    /// Known under another body.
    Conflict,
    /// Dead, and its dead letter is not confirmed: it stopped there before.
    Unconfirmed { note: Box<DeadNote>, attempts: u32 },
}

/// What is known of the message under its identity, or else of its death as a conflict that is not confirmed yet: the
/// record of the body that it was in conflict with can have expired before.
pub(crate) async fn judge_with_its_death(
    queue: &Queue,
    message: &Admitted,
) -> Result<(Identity, Verdict), StoreError> {
    let identity = message.identity;
    let verdict = judge(queue, identity, message).await?;
    if matches!(verdict, Verdict::New) && queue.store.has_pending() {
        let conflict = queue.store.hash_key().conflict(identity, message.fingerprint);
        if queue.store.is_pending(conflict) {
            return Ok((conflict, judge(queue, conflict, message).await?));
        }
    }
    Ok((identity, verdict))
}

pub(crate) async fn judge(
    queue: &Queue,
    identity: Identity,
    message: &Admitted,
) -> Result<Verdict, StoreError> {
    let Some(found) = queue.store.lookup(identity).await? else {
        failpoint::reached(Point::LookedUp);
        return Ok(Verdict::New);
    };
    if matches!(found.record.outcome, Outcome::Forgotten(_)) {
        return Ok(Verdict::Forgotten);
    }
    let is_same = found.record.fingerprint == message.fingerprint;
    if !is_same && !planted::is(Bug::FingerprintNotCompared) {
        return Ok(Verdict::Conflict);
    }
    match found.record.outcome {
        Outcome::Dead(note) if queue.store.is_pending(identity) => {
            Ok(Verdict::Unconfirmed { note, attempts: found.record.attempts })
        }
        Outcome::Dead(_) | Outcome::Done => Ok(Verdict::Known(found.proof, found.record.result)),
        Outcome::Forgotten(_) => Ok(Verdict::Forgotten),
    }
}
