//! The actor: one task a key, from its first waiting message to its last.
//!
//! A message is judged by the store, run until it ends, and committed; the next one of the key starts while the disk
//! still syncs, because commits are durable in the order in which they are handed in. An actor never acks: it hands in
//! commits that settle when they are durable.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, debug, field, warn};

use super::admission::Admitted;
use super::dead_letter::{self, Burial};
use super::queue::Queue;
use crate::clock::duration_ms;
use crate::handler::{CallError, Context, HandleError, error_chain};
use crate::identity::Identity;
use crate::options::OnConflict;
use crate::store::{
    Attempts, Change, Commit, DeadNote, ERROR_BYTES_MAX, Outcome, Persisted, Reason, Record,
    StoreError,
};

/// Works off the key of `first` until its mailbox is empty.
///
/// # Errors
///
/// The store's: nothing of the worker may go on then.
pub(crate) async fn run(queue: Arc<Queue>, first: Admitted) -> Result<(), StoreError> {
    let key = first.key.clone();
    let mut next = Some(first);
    while let Some(message) = next {
        if queue.draining.is_cancelled() {
            queue.release(message.identity);
        } else {
            let span = message_span(&queue, &message);
            work_off(&queue, message).instrument(span).await?;
        }
        next = queue.next(&key);
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

/// How the attempts at a message ended.
enum Ended {
    Done {
        attempts: u32,
    },
    Dead {
        reason: Reason,
        error: String,
        attempts: u32,
    },
    /// The worker is leaving: the broker keeps the message.
    Released,
}

async fn work_off(queue: &Arc<Queue>, message: Admitted) -> Result<(), StoreError> {
    if let Some((reason, error)) = message.defect.clone() {
        return work_off_defect(queue, message, reason, error).await;
    }
    match judge(queue, message.identity, &message).await? {
        Verdict::Known(proof) => {
            outcome("duplicate");
            queue.metrics.duplicates.increment(1);
            queue.finish(message.identity, proof);
        }
        Verdict::Conflict => work_off_conflict(queue, message).await?,
        Verdict::Unconfirmed { note, attempts } => {
            let recorded = message.identity;
            dead_letter::confirm(
                queue,
                Burial {
                    message,
                    recorded,
                    note,
                    attempts,
                },
            )
            .await;
        }
        Verdict::New => match attempt_until_ended(queue, &message).await {
            Ended::Done { attempts } => commit_done(queue, message, attempts).await,
            Ended::Dead {
                reason,
                error,
                attempts,
            } => {
                let recorded = message.identity;
                bury(
                    queue,
                    message,
                    recorded,
                    Death {
                        reason,
                        error,
                        attempts,
                    },
                )
                .await;
            }
            Ended::Released => {
                outcome("returned");
                queue.release(message.identity);
            }
        },
    }
    Ok(())
}

/// A message that cannot be worked on. Its identity, if it has one, may be known all the same.
async fn work_off_defect(
    queue: &Arc<Queue>,
    message: Admitted,
    reason: Reason,
    error: String,
) -> Result<(), StoreError> {
    let recorded = message.identity;
    match judge(queue, recorded, &message).await? {
        Verdict::Known(proof) => {
            outcome("duplicate");
            queue.metrics.duplicates.increment(1);
            queue.finish(message.identity, proof);
        }
        Verdict::Unconfirmed { note, attempts } => {
            dead_letter::confirm(
                queue,
                Burial {
                    message,
                    recorded,
                    note,
                    attempts,
                },
            )
            .await;
        }
        Verdict::Conflict => work_off_conflict(queue, message).await?,
        Verdict::New => {
            bury(
                queue,
                message,
                recorded,
                Death {
                    reason,
                    error,
                    attempts: 0,
                },
            )
            .await
        }
    }
    Ok(())
}

/// A known id with another body: on record under an identity of its own, so that it too ends once.
async fn work_off_conflict(queue: &Arc<Queue>, message: Admitted) -> Result<(), StoreError> {
    queue.metrics.conflicts.increment(1);
    let recorded = queue
        .store
        .hash_key()
        .conflict(message.identity, message.fingerprint);
    match (
        judge(queue, recorded, &message).await?,
        queue.options.on_conflict,
    ) {
        (Verdict::Known(proof), _) => queue.finish(message.identity, proof),
        (Verdict::Unconfirmed { note, attempts }, _) => {
            dead_letter::confirm(
                queue,
                Burial {
                    message,
                    recorded,
                    note,
                    attempts,
                },
            )
            .await;
        }
        (Verdict::New | Verdict::Conflict, OnConflict::Skip) => {
            outcome("conflict");
            let record = record(&message, recorded, 0, Outcome::Done);
            commit(queue, message.identity, Some(record), Vec::new()).await;
        }
        (Verdict::New | Verdict::Conflict, OnConflict::DeadLetter) => {
            let error = "the id is known with another body".to_owned();
            let death = Death {
                reason: Reason::Conflict,
                error,
                attempts: 0,
            };
            bury(queue, message, recorded, death).await;
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
        Outcome::Dead(note) if queue.store.is_pending(identity) => Ok(Verdict::Unconfirmed {
            note,
            attempts: found.record.attempts,
        }),
        Outcome::Dead(_) | Outcome::Done => Ok(Verdict::Known(found.proof)),
    }
}

/// Runs the handler until it is Done or Dead, waiting between attempts while other keys go on.
///
/// A failed attempt is durable before the next one starts. An attempt at a redelivered message is durable before it
/// starts itself: a message that kills the process is counted, and ends as `crash-loop`.
async fn attempt_until_ended(queue: &Arc<Queue>, message: &Admitted) -> Ended {
    let known = if message.redelivered {
        queue.store.attempts(message.identity)
    } else {
        None
    };
    let mut attempts = known.map_or(0, |known| known.started);
    let max_attempts = queue.options.retry.max_attempts.get();
    if let Some(known) = known
        && attempts >= max_attempts
    {
        let (reason, error) = if known.unfinished {
            (
                Reason::CrashLoop,
                "the process ended during the last attempt",
            )
        } else {
            (
                Reason::Exhausted,
                "the last attempt failed before a restart",
            )
        };
        return Ended::Dead {
            reason,
            error: error.to_owned(),
            attempts,
        };
    }
    let first_seen_ms =
        known.map_or_else(|| first_seen_ms(queue, message), |row| row.first_seen_ms);
    loop {
        let Some(permit) = permit(queue).await else {
            return Ended::Released;
        };
        attempts += 1;
        let row = |unfinished| Attempts {
            queue: queue.id,
            started: attempts,
            unfinished,
            first_seen_ms,
            updated_at_ms: queue.store.clock().now_ms(),
        };
        if message.redelivered && !persist_attempt(queue, message.identity, row(true)).await {
            return Ended::Released;
        }
        let failed = match attempt(queue, message, attempts).await {
            Ok(()) => return Ended::Done { attempts },
            Err(failed) => failed,
        };
        drop(permit);
        let (error, after) = match failed {
            Failed::Permanent(reason, error) => {
                return Ended::Dead {
                    reason,
                    error,
                    attempts,
                };
            }
            Failed::Transient(error, after) => (error, after),
        };
        if attempts >= max_attempts {
            return Ended::Dead {
                reason: Reason::Exhausted,
                error,
                attempts,
            };
        }
        let delay = after.unwrap_or_else(|| queue.options.retry.delay(attempts, fastrand::f64()));
        let delay_ms = duration_ms(delay);
        warn!(
            attempt = attempts,
            delay_ms, error, "handler failed, will retry"
        );
        queue.metrics.retries.increment(1);
        if !persist_attempt(queue, message.identity, row(false)).await {
            return Ended::Released;
        }
        tokio::select! {
            biased;
            () = queue.draining.cancelled() => return Ended::Released,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// `None` once the drain has begun.
async fn permit(queue: &Queue) -> Option<SemaphorePermit<'_>> {
    if let Ok(permit) = queue.permits.try_acquire() {
        return if queue.draining.is_cancelled() {
            None
        } else {
            Some(permit)
        };
    }
    tokio::select! {
        biased;
        () = queue.draining.cancelled() => None,
        permit = queue.permits.acquire() => permit.ok(),
    }
}

/// `false` after a failure of the store.
async fn persist_attempt(queue: &Queue, identity: Identity, row: Attempts) -> bool {
    let rows = vec![Change::PutAttempts(identity, row)];
    queue.store.persist(queue.id, None, rows).await.is_some()
}

enum Failed {
    /// Worth another attempt, after this delay if the handler gave one.
    Transient(String, Option<Duration>),
    Permanent(Reason, String),
}

async fn attempt(queue: &Queue, message: &Admitted, attempt: u32) -> Result<(), Failed> {
    let Some((id, scope)) = message.id.clone() else {
        return Err(Failed::Permanent(Reason::MissingId, "no id".to_owned()));
    };
    Span::current().record("attempt", attempt);
    let started = Instant::now();
    let deadline = started + queue.options.timeout;
    let mut cx = Context {
        message: Arc::clone(&message.message),
        queue: Arc::clone(&queue.name),
        id,
        scope,
        key: message.named_key().cloned(),
        attempt,
        redelivered: message.redelivered,
        deadline: deadline.into_std(),
    };
    let run = AssertUnwindSafe(queue.handler.call(&mut cx)).catch_unwind();
    let ended = tokio::time::timeout_at(deadline, run).await;
    queue
        .metrics
        .handler_seconds
        .record(started.elapsed().as_secs_f64());
    let error = match ended {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(error))) => error,
        Ok(Err(panic)) => {
            return Err(Failed::Transient(panic_text(panic.as_ref()), None));
        }
        Err(_) => {
            let text = format!("the attempt timed out after {:?}", queue.options.timeout);
            return Err(Failed::Transient(text, None));
        }
    };
    Err(match error {
        CallError::Decode(error) => {
            Failed::Permanent(Reason::Decode, error_chain(&error, ERROR_BYTES_MAX))
        }
        CallError::Handle(HandleError::Reject { error }) => Failed::Permanent(
            Reason::Rejected,
            error_chain(error.as_ref(), ERROR_BYTES_MAX),
        ),
        CallError::Handle(HandleError::Retry { error, after }) => {
            Failed::Transient(error_chain(error.as_ref(), ERROR_BYTES_MAX), after)
        }
    })
}

/// What a panic says; the payload is text nearly always.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned());
    let mut text = format!("the handler panicked: {text}");
    let cut = (0..=ERROR_BYTES_MAX.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    text.truncate(cut.unwrap_or(0));
    text
}

async fn commit_done(queue: &Arc<Queue>, message: Admitted, attempts: u32) {
    outcome("done");
    debug!(attempts, "done");
    let record = record(&message, message.identity, attempts, Outcome::Done);
    let mut rows = Vec::new();
    if message.redelivered || attempts > 1 {
        rows.push(Change::RemoveAttempts(message.identity));
    }
    let guard = queue.count_commit();
    let identity = message.identity;
    let commit = Commit {
        queue: queue.id,
        record: Some(record),
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| {
            guard.queue().metrics.done.increment(1);
            guard.queue().finish(identity, proof);
        }),
    };
    queue.store.commit(commit).await;
}

/// Hands in a commit that settles the claim of `identity`.
pub(super) async fn commit(
    queue: &Arc<Queue>,
    identity: Identity,
    record: Option<Record>,
    rows: Vec<Change>,
) {
    let guard = queue.count_commit();
    let commit = Commit {
        queue: queue.id,
        record,
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| guard.queue().finish(identity, proof)),
    };
    queue.store.commit(commit).await;
}

/// Why and after how many attempts a message is given up.
struct Death {
    reason: Reason,
    error: String,
    attempts: u32,
}

async fn bury(queue: &Arc<Queue>, message: Admitted, recorded: Identity, death: Death) {
    let Death {
        reason,
        mut error,
        attempts,
    } = death;
    let cut = (0..=ERROR_BYTES_MAX.min(error.len()))
        .rev()
        .find(|&at| error.is_char_boundary(at));
    error.truncate(cut.unwrap_or(0));
    outcome(reason.name());
    let id = message
        .id
        .as_ref()
        .map_or_else(Vec::new, |(id, _)| id.as_bytes().to_vec());
    let known = queue.store.attempts(message.identity);
    let first_seen_ms =
        known.map_or_else(|| first_seen_ms(queue, &message), |row| row.first_seen_ms);
    let note = Box::new(DeadNote {
        reason,
        error,
        id,
        first_seen_ms,
    });
    dead_letter::bury(
        queue,
        Burial {
            message,
            recorded,
            note,
            attempts,
        },
    )
    .await;
}

pub(super) fn record(
    message: &Admitted,
    identity: Identity,
    attempts: u32,
    outcome: Outcome,
) -> Record {
    Record {
        identity,
        fingerprint: message.fingerprint,
        attempts,
        outcome,
    }
}

fn first_seen_ms(queue: &Queue, message: &Admitted) -> u64 {
    let waited_ms = duration_ms(message.tag.received.elapsed());
    queue.store.clock().now_ms().saturating_sub(waited_ms)
}

fn outcome(name: &'static str) {
    Span::current().record("outcome", name);
}
