//! The attempts at one message: counted, timed, contained, repeated with backoff while other keys go on.
//!
//! A failed attempt is durable before the next one starts. An attempt at a redelivered message is durable before it
//! starts itself: a message that kills the process is counted, and ends as `crash-loop`. An attempt that fails while
//! the breaker is open is not counted: the next one has its number. Knows nothing of what a handler is or how it is
//! contained.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{debug, warn};

use super::admission::Admitted;
use super::dead_letter::Death;
use super::queue::Queue;
use super::run::{self, Failed, Success};
use crate::clock::duration_ms;
use crate::effects::CurrentState;
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::planted::{self, Bug};
use crate::store::{Attempts, Change, Reason, Records, StoreError};

/// How the attempts at a message ended.
pub(crate) enum Ended {
    Done(Box<Success>),
    Dead(Death),
    /// The worker is leaving or the store has failed: the broker keeps the message.
    Released,
    /// What a run read of the store is damaged: the worker ends.
    StoreFailed(Box<StoreError>),
}

/// Runs the handler until the message is Done or Dead; each attempt finds `state`.
pub(crate) async fn attempt_until_ended(
    queue: &Arc<Queue>,
    message: &Admitted,
    state: &CurrentState,
) -> Ended {
    let known = queue.store.attempts(message.identity);
    let max_attempts = queue.options.retry.max_attempts.get();
    // Whoever only ran beside the one that ended the process gets one attempt more, alone.
    if let Some(known) = known
        && known.started >= max_attempts
        && (known.alone || !known.unfinished || known.started > max_attempts)
    {
        return Ended::Dead(death_before_restart(known));
    }
    // What the row of the message says while none of its attempts runs.
    let mut standing = known.unwrap_or_else(|| Attempts {
        queue: queue.id,
        started: 0,
        unfinished: false,
        alone: false,
        first_seen_ms: queue.first_seen_ms(message),
        updated_at_ms: 0,
    });
    // Whoever was running when the process ended may have ended it: those run one at a time, so that the others
    // are not counted again for the one.
    let mut alone = None;
    if standing.unfinished {
        alone = Box::pin(permit(queue, &queue.suspects)).await;
        if alone.is_none() {
            return Ended::Released;
        }
    }
    loop {
        let Some(pass) = queue.pass(message, 1).await else {
            return Ended::Released;
        };
        let attempt = standing.started + 1;
        let is_alone = alone.is_some();
        if message.redelivered && !planted::is(Bug::RunNotRecordedBefore) {
            let row = Attempts { started: attempt, unfinished: true, alone: is_alone, ..standing };
            if !Box::pin(persist(queue, message.identity, row)).await {
                return Ended::Released;
            }
            if queue.is_leaving() {
                // No new run in a drain: one that never was is not to count either.
                Box::pin(persist(queue, message.identity, standing)).await;
                return Ended::Released;
            }
        }
        let ended = run::one(queue, message, attempt, state).await;
        let counts = queue.gate.heard(queue, &pass, message.identity, &ended)
            || planted::is(Bug::AttemptBurntInOutage);
        drop((pass, alone.take()));
        let (error, after) = match ended {
            Ok(success) => return Ended::Done(success),
            Err(Failed::Permanent(reason, error)) => {
                return Ended::Dead(Death { reason, error, attempts: attempt });
            }
            Err(Failed::Store(error)) => return Ended::StoreFailed(error),
            Err(Failed::Transient(error, after)) => (error, after),
            Err(Failed::Panicked(error)) => (error, None),
        };
        if counts && attempt >= max_attempts {
            return Ended::Dead(Death { reason: Reason::Exhausted, error, attempts: attempt });
        }
        let delay = after.unwrap_or_else(|| queue.options.retry.delay(attempt, fastrand::f64()));
        let delay_ms = duration_ms(delay);
        queue.metrics.retries.increment(1);
        if counts {
            standing =
                Attempts { started: attempt, unfinished: false, alone: is_alone, ..standing };
            warn!(attempt, delay_ms, error, "handler failed, will retry");
        } else {
            // One line told of all of them when the breaker opened.
            debug!(attempt, delay_ms, error, "handler failed while the breaker is open");
        }
        // An attempt that does not count leaves the row as it was: it is written again where it was written before.
        let row = (counts || message.redelivered).then_some(standing);
        if !Box::pin(wait_to_retry(queue, message.identity, row, delay)).await {
            return Ended::Released;
        }
    }
}

/// Makes the row durable and waits; `false` once the drain has begun or the store has failed.
async fn wait_to_retry(
    queue: &Queue,
    identity: Identity,
    row: Option<Attempts>,
    delay: Duration,
) -> bool {
    if let Some(row) = row
        && !planted::is(Bug::FailureNotRecorded)
        && !persist(queue, identity, row).await
    {
        return false;
    }
    tokio::select! {
        biased;
        () = queue.draining.begun() => false,
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
        () = queue.draining.begun() => None,
        permit = permits.acquire() => permit.ok().filter(|_| !queue.is_leaving()),
    }
}

/// `false` after a failure of the store.
async fn persist(queue: &Queue, identity: Identity, row: Attempts) -> bool {
    let row = Attempts { queue: queue.id, updated_at_ms: queue.store.clock().now_ms(), ..row };
    let rows = vec![Change::PutAttempts(identity, row)];
    let persisted = queue.store.persist(queue.id, Records::new(), rows).await;
    let is_durable = persisted.is_some();
    if is_durable {
        failpoint::reached(Point::AttemptRecorded);
    }
    is_durable
}
