//! The actor: one task a key, from its first waiting message to its last.
//!
//! A message is judged by the store, run until it ends, and committed; the next one of the key starts while the disk
//! still syncs, because commits are durable in the order in which they are handed in. An actor never acks: it hands in
//! commits that settle when they are durable.

use std::sync::Arc;

use tracing::{Instrument as _, Span, field};

use super::admission::Admitted;
use super::attempt::{Ended, attempt_until_ended};
use super::commit;
use super::dead_letter::{self, Burial, Death};
use super::queue::Queue;
use crate::identity::Identity;
use crate::options::OnConflict;
use crate::store::{DeadNote, Outcome, Persisted, Reason, StoreError};

/// Works off the key of `first` until its mailbox is empty.
///
/// # Errors
///
/// The store's: nothing of the worker may go on then.
pub(crate) async fn run(queue: Arc<Queue>, first: Admitted) -> Result<(), StoreError> {
    let key = first.key.clone();
    let mut next = Some(Box::new(first));
    while let Some(message) = next {
        // After a failure of the store too: the message before this one may have been let go without an outcome.
        if queue.draining.is_cancelled() || queue.store.has_failed() {
            queue.release(message.identity);
        } else {
            let span = message_span(&queue, &message);
            work_off(&queue, message).instrument(span).await?;
        }
        next = queue.next(&key).map(Box::new);
    }
    Ok(())
}

/// What the store says of a message before it runs.
enum Verdict {
    /// Never seen, or not finished.
    New,
    /// Known and settled with this proof.
    Known(Persisted),
    /// Known under another body.
    Conflict,
    /// Dead, and its dead letter is not confirmed: it stopped there before.
    Unconfirmed { note: Box<DeadNote>, attempts: u32 },
}

async fn work_off(queue: &Arc<Queue>, mut message: Box<Admitted>) -> Result<(), StoreError> {
    if let Some(locks) = &queue.shared_identities {
        message.shared = Some(Box::pin(locks.lock(message.identity)).await);
    }
    let recorded = message.identity;
    match judge(queue, recorded, &message).await? {
        Verdict::Known(proof) => {
            outcome("duplicate");
            queue.metrics.duplicates.increment(1);
            queue.finish(message.identity, proof);
        }
        // Rare ways are boxed: they would make every actor's task several times as large.
        Verdict::Conflict => Box::pin(work_off_conflict(queue, message)).await?,
        Verdict::Unconfirmed { note, attempts } => {
            dead_letter::confirm(queue, Burial { message, recorded, note, attempts }).await;
        }
        Verdict::New => work_off_new(queue, message).await,
    }
    Ok(())
}

async fn work_off_new(queue: &Arc<Queue>, mut message: Box<Admitted>) {
    let recorded = message.identity;
    if let Some((reason, error)) = message.defect.take() {
        outcome(reason.name());
        let death = Death { reason, error, attempts: 0 };
        return dead_letter::bury(queue, message, recorded, death).await;
    }
    match attempt_until_ended(queue, &message).await {
        Ended::Done { attempts } => {
            outcome("done");
            commit::done(queue, message, attempts).await;
        }
        Ended::Dead(death) => {
            outcome(death.reason.name());
            dead_letter::bury(queue, message, recorded, death).await;
        }
        Ended::Released => {
            outcome("returned");
            queue.release(message.identity);
        }
    }
}

/// A known id with another body: on record under an identity of its own, so that it too ends once.
async fn work_off_conflict(queue: &Arc<Queue>, message: Box<Admitted>) -> Result<(), StoreError> {
    outcome("conflict");
    queue.metrics.conflicts.increment(1);
    let recorded = queue.store.hash_key().conflict(message.identity, message.fingerprint);
    match (judge(queue, recorded, &message).await?, queue.options.on_conflict) {
        (Verdict::Known(proof), _) => queue.finish(message.identity, proof),
        (Verdict::Unconfirmed { note, attempts }, _) => {
            dead_letter::confirm(queue, Burial { message, recorded, note, attempts }).await;
        }
        (Verdict::New | Verdict::Conflict, OnConflict::Skip) => {
            let record = commit::record(&message, recorded, 0, Outcome::Done);
            commit::settled(queue, message, Some(record), Vec::new()).await;
        }
        (Verdict::New | Verdict::Conflict, OnConflict::DeadLetter) => {
            let error = "the id is known with another body".to_owned();
            let death = Death { reason: Reason::Conflict, error, attempts: 0 };
            dead_letter::bury(queue, message, recorded, death).await;
        }
    }
    Ok(())
}

async fn judge(
    queue: &Queue,
    identity: Identity,
    message: &Admitted,
) -> Result<Verdict, StoreError> {
    let Some(found) = queue.store.lookup(identity).await? else {
        return Ok(Verdict::New);
    };
    if found.record.fingerprint != message.fingerprint {
        return Ok(Verdict::Conflict);
    }
    match found.record.outcome {
        Outcome::Dead(note) if queue.store.is_pending(identity) => {
            Ok(Verdict::Unconfirmed { note, attempts: found.record.attempts })
        }
        Outcome::Dead(_) | Outcome::Done => Ok(Verdict::Known(found.proof)),
    }
}

fn message_span(queue: &Queue, message: &Admitted) -> Span {
    let span = tracing::info_span!(
        "message",
        queue = &*queue.name,
        message_id = field::Empty,
        ordering_key = field::Empty,
        attempt = field::Empty,
        outcome = field::Empty,
    );
    if !span.is_disabled() {
        if let Some((id, _)) = &message.id {
            span.record("message_id", field::display(id));
        }
        if let Some(key) = message.named_key() {
            span.record("ordering_key", field::display(key));
        }
    }
    span
}

fn outcome(name: &'static str) {
    Span::current().record("outcome", name);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task is allocated and copied for nearly every message.
    #[test]
    fn the_task_of_an_actor_stays_small() {
        fn size_of_task<F>(_: fn(Arc<Queue>, Admitted) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size_of_task(run);
        assert!(bytes <= 2048, "{bytes} bytes");
    }
}
