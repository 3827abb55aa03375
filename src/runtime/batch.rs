//! Several waiting messages of one key in one run and one commit.
//!
//! Only messages that are new, sound and on their first attempt are run together; the first one that is not ends the
//! batch and takes its own way after it. A run that fails commits nothing: its messages then run one by one, in order,
//! so that the bad one fails alone.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::admission::Admitted;
use super::commit::{self, Room, Sends};
use super::dead_letter::{self, Death};
use super::key_memory::KeyMemory;
use super::queue::Queue;
use super::run::{self, Failed, Success};
use crate::batch::{BatchCalled, ErasedBatchHandler};
use crate::effects::{CurrentState, StagedState};
use crate::failpoint::{self, Point};
use crate::handler::{CallError, HandleError};
use crate::store::{Change, Commit, Records, StoreError};

/// Most producers of numbered messages in one batch: their rows share the room that a commit has.
const PRODUCERS_MAX: usize = 8;

/// Whether the message may run together with these.
pub(crate) async fn may_join(
    queue: &Queue,
    others: &[Admitted],
    message: &mut Admitted,
) -> Result<bool, StoreError> {
    let lane = queue.lane(&message.message);
    let is_sound = message.id.is_some() && message.defect.is_none() && !message.redelivered;
    let tenant = queue.tenant(message);
    let shares_commit = others.iter().all(|other| queue.lane(&other.message) == lane)
        && others.iter().all(|other| queue.tenant(other) == tenant)
        && producers(others, message) <= PRODUCERS_MAX;
    // While the breaker is open messages are tried one at a time.
    let may_run = !queue.draining.has_begun() && !queue.gate.breaker_is_open();
    if !is_sound || !shares_commit || !may_run {
        return Ok(false);
    }
    if let Some(locks) = &queue.shared_identities
        && message.shared.is_none()
    {
        // Not waited for: whoever holds a lock never waits for another.
        message.shared = locks.try_lock(message.identity);
        if message.shared.is_none() {
            return Ok(false);
        }
    }
    if queue.store.lookup(message.identity).await?.is_some() {
        return Ok(false);
    }
    failpoint::reached(Point::LookedUp);
    Ok(queue.store.attempts(message.identity).is_none()
        && !queue.store.has_expired(message.identity)
        && message.sequence.is_none_or(|sequence| queue.store.watermark(sequence).is_new()))
}

/// How many producers numbered these messages.
fn producers(others: &[Admitted], message: &Admitted) -> usize {
    let all = others.iter().chain([message]);
    let producers: HashSet<_> =
        all.filter_map(|message| Some(message.sequence?.producer)).collect();
    producers.len()
}

/// Runs the messages together, once; gives back those that are to run one by one.
pub(crate) async fn run_together(
    queue: &Arc<Queue>,
    handler: &dyn ErasedBatchHandler,
    messages: Vec<Admitted>,
    memory: &mut KeyMemory,
) -> Result<Vec<Admitted>, StoreError> {
    let Some(first) = messages.first() else { return Ok(messages) };
    let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let Some(pass) = queue.pass(first, count).await else {
        for message in messages {
            queue.release(message.identity);
        }
        return Ok(Vec::new());
    };
    let have_ids = messages.iter().all(|message| message.id.is_some());
    assert!(have_ids, "every message of a batch has an id");
    let ended = run::contained(queue, async |deadline| {
        let context = |message| run::context(queue, message, 1, deadline);
        let contexts: Vec<_> = messages.iter().filter_map(context).collect();
        let state = StagedState::new(memory.current().clone());
        judge(&messages, handler.call_batch(contexts, state).await)
    })
    .await;
    // It counts as an attempt of none of them: they run again one by one.
    queue.gate.heard(queue, &pass, first.identity, &ended);
    drop(pass);
    match ended {
        Ok(judged) => {
            finish(queue, messages, judged, memory).await;
            Ok(Vec::new())
        }
        Err(Failed::Store(error)) => Err(*error),
        Err(
            Failed::Transient(error, _) | Failed::Panicked(error) | Failed::Permanent(_, error),
        ) => {
            warn!(messages = count, error, "batch failed, its messages will run one by one");
            Ok(messages)
        }
    }
}

/// A run that can be committed.
struct Judged {
    state: Option<CurrentState>,
    /// Of each message its success or why it is dead.
    outcomes: Vec<Result<Box<Success>, Death>>,
}

fn judge(messages: &[Admitted], called: BatchCalled) -> Result<Judged, CallError> {
    let BatchCalled { items, state, ended } = called;
    ended.map_err(CallError::Handle)?;
    if !items.iter().map(|(cx, _)| cx.identity).eq(messages.iter().map(|of| of.identity)) {
        return Err(retry("the handler exchanged or lost messages of its batch", None));
    }
    let mut outcomes = Vec::with_capacity(items.len());
    for (cx, ended) in items {
        match ended.and_then(|()| run::checked(&cx)) {
            // The state is the batch's.
            Ok(()) => outcomes.push(Ok(Success::of(cx, StagedState::default(), None))),
            Err(error) => match run::failed(error) {
                Failed::Permanent(reason, error) => {
                    outcomes.push(Err(Death { reason, error, attempts: 1 }));
                }
                Failed::Transient(error, after) => return Err(retry(error, after)),
                Failed::Panicked(error) => return Err(retry(error, None)),
                Failed::Store(error) => return Err(retry(*error, None)),
            },
        }
    }
    Ok(Judged { state: state.into_change(), outcomes })
}

fn retry(error: impl Into<Box<dyn Error + Send + Sync>>, after: Option<Duration>) -> CallError {
    CallError::Handle(HandleError::Retry { error: error.into(), after })
}

/// Hands in one commit for all that are done, and buries the dead.
async fn finish(
    queue: &Arc<Queue>,
    messages: Vec<Admitted>,
    judged: Judged,
    memory: &mut KeyMemory,
) {
    let Judged { state, outcomes } = judged;
    let mut rows = Vec::new();
    let mut records = Records::new();
    let mut done: Vec<(Box<Admitted>, Option<Box<Sends>>)> = Vec::new();
    let mut dead = Vec::new();
    let mut later = Vec::new();
    let mut room = Room::of_a_batch();
    let mut has_store = true;
    for (message, outcome) in messages.into_iter().zip(outcomes) {
        match outcome {
            Ok(success) if has_store => {
                let staged =
                    commit::stage(queue, &message, *success, memory, &mut rows, &mut room).await;
                match staged {
                    Some(mut staged) => {
                        later.append(&mut staged.later);
                        records.extend(commit::finished(&message, 1, None, &mut rows));
                        done.push((Box::new(message), staged.sends));
                    }
                    None => {
                        has_store = false;
                        queue.release(message.identity);
                    }
                }
            }
            Ok(_) => queue.release(message.identity),
            Err(death) => dead.push((message, death)),
        }
    }
    if let (Some(state), Some((message, _))) = (state, done.first()) {
        has_store &= memory.stage(queue, message, state, &mut rows).await.is_some();
    }
    if !has_store {
        for message in done.into_iter().map(|(message, _)| message) {
            queue.release(message.identity);
        }
    } else if !done.is_empty() {
        hand_in(queue, done, records, rows).await;
        commit::forget_steps(queue, later).await;
    }
    for (message, death) in dead {
        let recorded = message.identity;
        dead_letter::bury(queue, Box::new(message), recorded, death).await;
    }
}

async fn hand_in(
    queue: &Arc<Queue>,
    done: Vec<(Box<Admitted>, Option<Box<Sends>>)>,
    records: Records,
    rows: Vec<Change>,
) {
    let Some((first, _)) = done.first() else { return };
    let lane = queue.lane(&first.message);
    let counted = queue.count_commit();
    let commit = Commit {
        queue: lane,
        records,
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| {
            counted.settle(|queue| {
                for (message, sends) in done {
                    queue.metrics.done.increment(1);
                    let proof = proof.again();
                    match sends {
                        Some(sends) => commit::send_and_settle(queue, message, *sends, proof),
                        None => queue.finish(message.identity, proof),
                    }
                }
            });
        }),
    };
    queue.store.commit(commit).await;
}
