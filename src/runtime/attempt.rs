//! The attempts at one message: counted, timed, contained, repeated with backoff while other keys go on.
//!
//! A failed attempt is durable before the next one starts. An attempt at a redelivered message is durable before it
//! starts itself: a message that kills the process is counted, and ends as `crash-loop`. Whatever a handler does,
//! panic, hang or fail, ends here as an attempt.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::{Span, warn};

use super::admission::Admitted;
use super::dead_letter::Death;
use super::queue::Queue;
use crate::clock::duration_ms;
use crate::handler::{CallError, Context, HandleError, error_chain};
use crate::identity::Identity;
use crate::message::cut;
use crate::store::{Attempts, Change, ERROR_BYTES_MAX, Reason};

/// How the attempts at a message ended.
pub(crate) enum Ended {
    Done {
        attempts: u32,
    },
    Dead(Death),
    /// The worker is leaving or the store has failed: the broker keeps the message.
    Released,
}

/// Runs the handler until the message is Done or Dead.
pub(crate) async fn attempt_until_ended(queue: &Queue, message: &Admitted) -> Ended {
    let known = queue.store.attempts(message.identity);
    let mut attempts = known.map_or(0, |known| known.started);
    let max_attempts = queue.options.retry.max_attempts.get();
    // Whoever only ran beside the one that ended the process gets one attempt more, alone.
    if let Some(known) = known
        && attempts >= max_attempts
        && (known.alone || !known.unfinished || attempts > max_attempts)
    {
        return Ended::Dead(death_before_restart(known));
    }
    let first_seen_ms = known.map_or_else(|| queue.first_seen_ms(message), |row| row.first_seen_ms);
    // Whoever was running when the process ended may have ended it: those run one at a time, so that the others
    // are not counted again for the one.
    let mut alone = match known {
        Some(known) if known.unfinished => match Box::pin(permit(queue, &queue.suspects)).await {
            Some(alone) => Some(alone),
            None => return Ended::Released,
        },
        Some(_) | None => None,
    };
    loop {
        let Some(permit) = permit(queue, &queue.permits).await else {
            return Ended::Released;
        };
        attempts += 1;
        let is_alone = alone.is_some();
        let row = |unfinished| Attempts {
            queue: queue.id,
            started: attempts,
            unfinished,
            alone: is_alone,
            first_seen_ms,
            updated_at_ms: queue.store.clock().now_ms(),
        };
        if message.redelivered && !Box::pin(persist(queue, message.identity, row(true))).await {
            return Ended::Released;
        }
        let failed = match attempt(queue, message, attempts).await {
            Ok(()) => return Ended::Done { attempts },
            Err(failed) => failed,
        };
        drop((permit, alone.take()));
        let (error, after) = match failed {
            Failed::Permanent(reason, error) => {
                return Ended::Dead(Death { reason, error, attempts });
            }
            Failed::Transient(error, after) => (error, after),
        };
        if attempts >= max_attempts {
            return Ended::Dead(Death { reason: Reason::Exhausted, error, attempts });
        }
        let delay = after.unwrap_or_else(|| queue.options.retry.delay(attempts, fastrand::f64()));
        let delay_ms = duration_ms(delay);
        warn!(attempt = attempts, delay_ms, error, "handler failed, will retry");
        queue.metrics.retries.increment(1);
        if !Box::pin(wait_to_retry(queue, message.identity, row(false), delay)).await {
            return Ended::Released;
        }
    }
}

/// Makes the failed attempt durable and waits; `false` once the drain has begun or the store has failed.
async fn wait_to_retry(queue: &Queue, identity: Identity, row: Attempts, delay: Duration) -> bool {
    if !persist(queue, identity, row).await {
        return false;
    }
    tokio::select! {
        biased;
        () = queue.draining.cancelled() => false,
        () = tokio::time::sleep(delay) => true,
    }
}

fn death_before_restart(known: Attempts) -> Death {
    let (reason, error) = if known.unfinished {
        (Reason::CrashLoop, "the process ended during the last attempt")
    } else {
        (Reason::Exhausted, "the last attempt failed before a restart")
    };
    Death { reason, error: error.to_owned(), attempts: known.started }
}

/// Whether a new run may start.
fn may_run(queue: &Queue) -> bool {
    !queue.draining.is_cancelled() && !queue.store.has_failed()
}

/// `None` once the drain has begun or the store has failed.
async fn permit<'a>(queue: &Queue, permits: &'a Semaphore) -> Option<SemaphorePermit<'a>> {
    if let Ok(permit) = permits.try_acquire() {
        return may_run(queue).then_some(permit);
    }
    tokio::select! {
        biased;
        () = queue.draining.cancelled() => None,
        permit = permits.acquire() => permit.ok().filter(|_| may_run(queue)),
    }
}

/// `false` after a failure of the store.
async fn persist(queue: &Queue, identity: Identity, row: Attempts) -> bool {
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
    // All of the user's code runs and is dropped in here, destructors and `Display` of errors too.
    let run = async {
        match tokio::time::timeout_at(deadline, queue.handler.call(&mut cx)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => {
                let text = format!("the attempt timed out after {:?}", queue.options.timeout);
                Err(Failed::Transient(text, None))
            }
        }
    };
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    queue.metrics.handler_seconds.record(started.elapsed().as_secs_f64());
    ended.unwrap_or_else(|panic| Err(Failed::Transient(panic_text(panic.as_ref()), None)))
}

fn failed(error: CallError) -> Failed {
    match error {
        CallError::Decode(error) => {
            Failed::Permanent(Reason::Decode, error_chain(&error, ERROR_BYTES_MAX))
        }
        CallError::Handle(HandleError::Reject { error }) => {
            Failed::Permanent(Reason::Rejected, error_chain(error.as_ref(), ERROR_BYTES_MAX))
        }
        CallError::Handle(HandleError::Retry { error, after }) => {
            Failed::Transient(error_chain(error.as_ref(), ERROR_BYTES_MAX), after)
        }
    }
}

/// What a panic says; the payload is text nearly always.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let mut text = format!("the handler panicked: {}", text.unwrap_or("no text"));
    cut(&mut text, ERROR_BYTES_MAX);
    text
}
