//! The actor: it has one key at a time, until none of its messages waits or its turn is over, and then takes the next.
//!
//! A message is judged by the store, run until it ends, and committed; the next one of the key starts while the disk
//! still syncs, because commits are durable in the order in which they are handed in. An actor never acks: it hands in
//! commits that settle when they are durable. It keeps nothing of a key when it lets go of it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument as _, Span, field};

use super::admission::Admitted;
use super::attempt::{Ended, attempt_until_ended};
use super::batch;
use super::commit;
use super::dead_letter::{self, Burial, Death};
use super::duplicate::{self, Unrecorded};
use super::key_memory::KeyMemory;
use super::queue::Queue;
use super::roster::Look;
use super::thread::{let_others_run, watched};
use super::verdict::{Verdict, judge, judge_with_its_death};
use crate::batch::ErasedBatchHandler;
use crate::handler::AnyHandler;
use crate::options::OnConflict;
use crate::planted::{self, Bug};
use crate::store::{Outcome, Reason, Records, StoreError};

/// How long an actor goes on before what it has woken gets its thread, which may be the only one, and other keys it.
const TURN: Duration = Duration::from_micros(200);

/// Works off one key after the other; rests while none is ready, until the drain or until enough others rest.
///
/// # Errors
///
/// The store's: nothing of the worker may go on then.
pub(crate) async fn run(queue: Arc<Queue>) -> Result<(), StoreError> {
    let mut turn = Instant::now();
    loop {
        match queue.look() {
            Look::At(first) => work_off_key(&queue, first, &mut turn).await?,
            // An error is a dismissal: the next look ends it.
            Look::Rest => {
                if let Ok(called) = queue.called.acquire().await {
                    called.forget();
                }
                turn = Instant::now();
            }
            Look::End => return Ok(()),
        }
    }
}

/// Works off the key of `first` until its mailbox is empty, or gives it back at the end of the turn if others wait.
async fn work_off_key(
    queue: &Arc<Queue>,
    first: Box<Admitted>,
    turn: &mut Instant,
) -> Result<(), StoreError> {
    let key = first.key.clone();
    let mut memory = KeyMemory::default();
    let mut next = Some(first);
    while let Some(message) = next {
        let was_idle = queue.store.commits_waiting() == 0;
        // Pinned here: handed over as it is, it would lie in the task twice.
        let work = pin!(work_off_next(queue, message, &mut memory));
        next = watched(queue, work).await?;
        if next.is_none() {
            next = queue.next(&key);
        }
        // A committer that this one has woken may have no other thread.
        let has_woken = was_idle || queue.store.commits_waiting() <= 1;
        let is_over = turn.elapsed() >= TURN;
        if is_over {
            next = next.and_then(|next| queue.turn_over(next));
        }
        if has_woken || is_over {
            let_others_run().await;
            *turn = Instant::now();
        }
    }
    Ok(())
}

/// Works off the message, with some of those behind it if they run together; gives the one that could not.
async fn work_off_next(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    memory: &mut KeyMemory,
) -> Result<Option<Box<Admitted>>, StoreError> {
    match &queue.handler {
        AnyHandler::Single(_) => {
            work_off_or_release(queue, message, memory).await?;
            Ok(None)
        }
        AnyHandler::Batch(handler) => {
            Box::pin(work_off_together(queue, &**handler, message, memory)).await
        }
    }
}

async fn work_off_or_release(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    memory: &mut KeyMemory,
) -> Result<(), StoreError> {
    // After a failure of the store too: the message before this one may have been let go without an outcome.
    if queue.is_leaving() {
        queue.release(message.identity);
        return Ok(());
    }
    let span = message_span(queue, &message);
    work_off(queue, message, memory).instrument(span).await
}

/// Runs the message with those that wait behind it, as far as they can run together; gives the one that cannot.
async fn work_off_together(
    queue: &Arc<Queue>,
    handler: &dyn ErasedBatchHandler,
    first: Box<Admitted>,
    memory: &mut KeyMemory,
) -> Result<Option<Box<Admitted>>, StoreError> {
    let key = first.key.clone();
    let (mut together, mut left) = (Vec::new(), None);
    let mut next = Some(first);
    while let Some(mut message) = next {
        if !batch::may_join(queue, &together, &mut message).await? {
            left = Some(message);
            break;
        }
        together.push(*message);
        // The mailbox stays: while it does, no other actor works on the key.
        next = (together.len() < queue.options.batch.get())
            .then(|| queue.next_waiting(&key))
            .flatten();
    }
    if together.is_empty() {
        together.extend(left.take().map(|message| *message));
    }
    if let [first, _, ..] = &*together {
        memory.load(queue, first).await?;
        together = batch::run_together(queue, handler, together, memory).await?;
    }
    // One that runs alone, or those of a batch that failed.
    for message in together {
        work_off_or_release(queue, Box::new(message), memory).await?;
    }
    Ok(left)
}

async fn work_off(
    queue: &Arc<Queue>,
    mut message: Box<Admitted>,
    memory: &mut KeyMemory,
) -> Result<(), StoreError> {
    if let Some(locks) = &queue.shared_identities
        && message.shared.is_none()
        && !planted::is(Bug::SharedIdentityNotLocked)
    {
        message.shared = Some(Box::pin(locks.lock(message.identity)).await);
        // A drain lets go of whoever held it: what that one had begun is not for this queue to end.
        if queue.is_leaving() {
            queue.release(message.identity);
            return Ok(());
        }
    }
    let (recorded, verdict) = judge_with_its_death(queue, &message).await?;
    match verdict {
        Verdict::Known(proof, result) => {
            outcome("duplicate");
            queue.metrics.duplicates.increment(1);
            Box::pin(duplicate::settle(queue, message, proof, result)).await?;
        }
        // Rare ways are boxed: they would make every actor's task several times as large.
        Verdict::Conflict => Box::pin(work_off_conflict(queue, message)).await?,
        Verdict::Unconfirmed { note, attempts } => {
            dead_letter::confirm(queue, Burial { message, recorded, note, attempts });
        }
        Verdict::Forgotten => {
            // Its number is done, and so its record must be what says that it is done again.
            message.sequence = None;
            return work_off_new(queue, message, memory).await;
        }
        Verdict::New => match duplicate::without_record(queue, &message) {
            Unrecorded::New => return work_off_new(queue, message, memory).await,
            Unrecorded::Done(proof) => {
                outcome("duplicate");
                queue.metrics.duplicates.increment(1);
                Box::pin(duplicate::settle(queue, message, proof, None)).await?;
            }
            Unrecorded::Late(death) => {
                outcome(death.reason.name());
                Box::pin(dead_letter::bury(queue, message, recorded, death)).await;
            }
        },
    }
    Ok(())
}

async fn work_off_new(
    queue: &Arc<Queue>,
    mut message: Box<Admitted>,
    memory: &mut KeyMemory,
) -> Result<(), StoreError> {
    let recorded = message.identity;
    if let Some((reason, error)) = message.defect.take() {
        outcome(reason.name());
        let death = Death { reason, error, attempts: 0 };
        Box::pin(dead_letter::bury(queue, message, recorded, death)).await;
        return Ok(());
    }
    memory.load(queue, &message).await?;
    if planted::is(Bug::MarkBeforeRun) {
        let record = commit::record(&message, recorded, 0, Outcome::Done);
        queue.store.persist(queue.id, Records::from_elem(record, 1), Vec::new()).await;
    }
    match attempt_until_ended(queue, &message, memory.current()).await {
        Ended::Done(success) => {
            outcome("done");
            commit::done(queue, message, success, memory).await;
        }
        Ended::Dead(death) => {
            outcome(death.reason.name());
            Box::pin(dead_letter::bury(queue, message, recorded, death)).await;
        }
        Ended::Released => {
            outcome("returned");
            queue.release(message.identity);
        }
        Ended::StoreFailed(error) => return Err(*error),
    }
    Ok(())
}

/// A known id with another body: on record under an identity of its own, so that it too ends once.
async fn work_off_conflict(queue: &Arc<Queue>, message: Box<Admitted>) -> Result<(), StoreError> {
    outcome("conflict");
    queue.metrics.conflicts.increment(1);
    let recorded = queue.store.hash_key().conflict(message.identity, message.fingerprint);
    match (judge(queue, recorded, &message).await?, queue.options.on_conflict) {
        (Verdict::Known(proof, _), _) => queue.finish(message.identity, proof),
        (Verdict::Unconfirmed { note, attempts }, _) => {
            dead_letter::confirm(queue, Burial { message, recorded, note, attempts });
        }
        (Verdict::New | Verdict::Forgotten | Verdict::Conflict, OnConflict::Skip) => {
            let record = commit::record(&message, recorded, 0, Outcome::Done);
            commit::settled(queue, message, Some(record), Vec::new()).await;
        }
        (Verdict::New | Verdict::Forgotten | Verdict::Conflict, OnConflict::DeadLetter) => {
            let error = "the id is known with another body".to_owned();
            let death = Death { reason: Reason::Conflict, error, attempts: 0 };
            dead_letter::bury(queue, message, recorded, death).await;
        }
    }
    Ok(())
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

    /// A flood of keys whose handlers wait has a task for each.
    #[test]
    fn the_task_of_an_actor_stays_small() {
        fn size_of_task<F>(_: fn(Arc<Queue>) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size_of_task(run);
        assert!(bytes <= 2304, "{bytes} bytes");
    }
}
