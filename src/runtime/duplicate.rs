//! Deliveries that are known, or were known once: what settles them, and what they get beside their acknowledgement.
//!
//! A duplicate is acknowledged only when what its first delivery sends is confirmed, also if an earlier process left
//! that behind.

use std::sync::Arc;

use super::admission::Admitted;
use super::dead_letter::Death;
use super::queue::Queue;
use super::reply;
use crate::options::OnExpired;
use crate::outbox::{End, OnEnd};
use crate::planted::{self, Bug};
use crate::store::{Persisted, Reason, ResultRow, StoreError, Watermark};

/// What is known of a message that has no record.
pub(crate) enum Unrecorded {
    New,
    /// Its producer's watermark has passed it.
    Done(Persisted),
    /// Nobody can tell any more whether it was done.
    Late(Death),
}

pub(crate) fn without_record(queue: &Queue, message: &Admitted) -> Unrecorded {
    let late = |error: &str| {
        Unrecorded::Late(Death { reason: Reason::Expired, error: error.to_owned(), attempts: 0 })
    };
    if let Some(sequence) = message.sequence {
        return match queue.store.watermark(sequence) {
            Watermark::New => Unrecorded::New,
            Watermark::Done(proof) => Unrecorded::Done(proof),
            Watermark::Unsure => {
                queue.metrics.unsure.increment(1);
                late("its sequence number is below a gap that was given up: it may have been done")
            }
        };
    }
    if !queue.store.has_expired(message.identity) {
        return Unrecorded::New;
    }
    queue.metrics.expired.increment(1);
    match queue.options.on_expired {
        OnExpired::Process => Unrecorded::New,
        OnExpired::DeadLetter => late("its record has expired: it was done once"),
    }
}

/// Settles a duplicate, after what its first delivery left unsent, and with the stored result if it asks for one.
pub(crate) async fn settle(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    proof: Persisted,
    result: Option<Box<ResultRow>>,
) -> Result<(), StoreError> {
    let reply = match result {
        Some(result) => Box::pin(reply::stored(queue, &message, &result)).await?,
        None => None,
    };
    let identity = message.identity;
    let counted = queue.count_commit();
    let settle: OnEnd = Box::new(move |end| {
        counted.settle(|queue| match (end, reply) {
            (End::Sent, Some(reply)) => reply::send(queue, message, reply, proof),
            (End::Sent, None) => queue.finish(identity, proof),
            (End::Returned, _) => queue.release(identity),
        });
        None
    });
    let waited = match planted::is(Bug::DuplicateSettledUnsent) {
        true => Some(settle),
        false => queue.relay.wait(identity, settle),
    };
    if let Some(settle) = waited {
        // There is nothing to commit for a duplicate.
        let _ = settle(End::Sent);
    }
    Ok(())
}
