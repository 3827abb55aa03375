//! The attempts at one message: counted, timed, contained, repeated with backoff while other keys go on.
//!
//! A failed attempt is durable before the next one starts. An attempt at a redelivered message is durable before it
//! starts itself: a message that kills the process is counted, and ends as `crash-loop`. Knows nothing of what a
//! handler is or how it is contained.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

use super::admission::Admitted;
use super::dead_letter::Death;
use super::queue::Queue;
use super::run::{self, Failed, Success};
use crate::clock::duration_ms;
use crate::effects::CurrentState;
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::planted::{self, Bug};
use crate::store::{Attempts, Change, Reason, Records};

/// How the attempts at a message ended.
pub(crate) enum Ended {
    Done(Box<Success>),
    Dead(Death),
    /// The worker is leaving or the store has failed: the broker keeps the message.
    Released,
}

/// Runs the handler until the message is Done or Dead; each attempt finds `state`.
pub(crate) async fn attempt_until_ended(
    queue: &Arc<Queue>,
    message: &Admitted,
    state: &CurrentState,
) -> Ended {
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
        let is_suspect = message.redelivered && !planted::is(Bug::RunNotRecordedBefore);
        if is_suspect && !Box::pin(persist(queue, message.identity, row(true))).await {
            return Ended::Released;
        }
        let failed = match run::one(queue, message, attempts, state).await {
            Ok(success) => return Ended::Done(success),
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
    if !planted::is(Bug::FailureNotRecorded) && !persist(queue, identity, row).await {
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

/// `None` once the drain has begun or the store has failed.
pub(crate) async fn permit<'a>(
    queue: &Queue,
    permits: &'a Semaphore,
) -> Option<SemaphorePermit<'a>> {
    if let Ok(permit) = permits.try_acquire() {
        return (!queue.is_leaving()).then_some(permit);
    }
    tokio::select! {
        biased;
        () = queue.draining.cancelled() => None,
        permit = permits.acquire() => permit.ok().filter(|_| !queue.is_leaving()),
    }
}

/// `false` after a failure of the store.
async fn persist(queue: &Queue, identity: Identity, row: Attempts) -> bool {
    let rows = vec![Change::PutAttempts(identity, row)];
    let persisted = queue.store.persist(queue.id, Records::new(), rows).await;
    let is_durable = persisted.is_some();
    if is_durable {
        failpoint::reached(Point::AttemptRecorded);
    }
    is_durable
}
