//! How a message dies: decided durably, then published to the dead-letter queue and confirmed, then settled.
//!
//! The decision comes first, so that a crash in between cannot end with the message both dead and done. The body is not
//! stored: the broker keeps the message until the ack, and after a crash its redelivery is published again, under the
//! same outgoing id. The key waits meanwhile; if the dead-letter queue takes nothing, that is a fault for all to see.
//!
//! A message without an id is never the same as another: nothing is on record before its dead letter is confirmed, so a
//! lost connection or a crash in between publishes it again under another outgoing id.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::admission::Admitted;
use super::commit;
use super::queue::Queue;
use crate::backoff::Reconnect;
use crate::broker::{OUTGOING_ID_HEADER, PublishError};
use crate::clock::duration_ms;
use crate::identity::{self, Identity};
use crate::message::{HeaderValue, Message, cut};
use crate::store::{Change, DeadNote, ERROR_BYTES_MAX, Outcome, Reason};

/// Why and after how many attempts a message is given up.
pub(crate) struct Death {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    pub(crate) attempts: u32,
}

/// A message on its way to the dead-letter queue.
pub(crate) struct Burial {
    pub(crate) message: Box<Admitted>,
    /// The identity that its record is under; that of a conflict is not the message's own.
    pub(crate) recorded: Identity,
    pub(crate) note: Box<DeadNote>,
    pub(crate) attempts: u32,
}

/// Records the death and brings the dead letter to its queue.
///
/// Boxed, as [`confirm`] is: few messages die, and every actor's task would be several times as large.
pub(crate) fn bury(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    recorded: Identity,
    death: Death,
) -> BoxFuture<'_, ()> {
    async move {
        let Death { reason, mut error, attempts } = death;
        cut(&mut error, ERROR_BYTES_MAX);
        let id = message.id.as_ref().map_or_else(Vec::new, |(id, _)| id.as_bytes().to_vec());
        let known = queue.store.attempts(message.identity);
        let first_seen_ms =
            known.map_or_else(|| queue.first_seen_ms(&message), |row| row.first_seen_ms);
        let note = Box::new(DeadNote { reason, error, id, first_seen_ms });
        if message.id.is_some() {
            let dead = commit::record(&message, recorded, attempts, Outcome::Dead(note.clone()));
            let rows = vec![Change::RemoveAttempts(message.identity), Change::PutPending(recorded)];
            if queue.store.persist(queue.id, Some(dead), rows).await.is_none() {
                return queue.release(message.identity);
            }
        }
        confirm(queue, Burial { message, recorded, note, attempts }).await;
    }
    .boxed()
}

/// Publishes the dead letter until the broker confirms it, and settles the message.
pub(crate) fn confirm(queue: &Arc<Queue>, burial: Burial) -> BoxFuture<'_, ()> {
    async move {
        if !publish_until_confirmed(queue, &burial).await {
            return queue.release(burial.message.identity);
        }
        let Burial { message, recorded, note, attempts } = burial;
        queue.metrics.count_dead(note.reason);
        info!(
            reason = note.reason.name(),
            attempts,
            error = note.error,
            dead_letter_queue = queue.options.dead_letter,
            "message is dead-lettered"
        );
        let (record, rows) = if message.id.is_some() {
            (None, vec![Change::RemovePending(recorded)])
        } else {
            (Some(commit::record(&message, recorded, attempts, Outcome::Dead(note))), Vec::new())
        };
        commit::settled(queue, message, record, rows).await;
    }
    .boxed()
}

/// `false` if the worker is leaving before the broker confirmed it, or if the broker has the message again anyway.
async fn publish_until_confirmed(queue: &Queue, burial: &Burial) -> bool {
    let part = format!("dead-letter queue {}", queue.options.dead_letter);
    let mut delays = Reconnect::default();
    let mut letter = Arc::new(dead_letter(queue, burial, Headers::All));
    // A message without an id cannot be joined by its redelivery: copies would pile up behind a broker that takes none.
    let never = CancellationToken::new();
    let returned = burial.message.returned.as_ref().unwrap_or(&never);
    loop {
        if queue.store.has_failed() {
            return false;
        }
        // A drain lets it finish, as it lets a running handler; its deadline drops both.
        let published = tokio::select! {
            biased;
            published = queue.publisher.publish(Arc::clone(&letter)) => published,
            () = returned.cancelled() => {
                queue.health.clear(&part);
                return false;
            }
        };
        let refused = match published {
            Ok(()) => {
                queue.health.clear(&part);
                return true;
            }
            Err(PublishError::Closed) => return false,
            Err(unsendable @ PublishError::Unsendable { .. }) => {
                // With our own headers added, the table may be too large for a frame.
                letter = Arc::new(dead_letter(queue, burial, Headers::OwnOnly));
                unsendable
            }
            Err(refused) => refused,
        };
        let delay = delays.delay_after_loss();
        error!(
            error = %refused, delay_ms = duration_ms(delay),
            "a dead letter cannot be published, its key waits, will try again"
        );
        queue.health.fault(&part, refused.to_string());
        tokio::select! {
            biased;
            () = queue.draining.cancelled() => return false,
            () = returned.cancelled() => {
                queue.health.clear(&part);
                return false;
            }
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// Which headers a dead letter carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Headers {
    All,
    OwnOnly,
}

/// The message as it came, with the reason in its headers.
fn dead_letter(queue: &Queue, burial: &Burial, which: Headers) -> Message {
    let Burial { message, recorded, note, attempts } = burial;
    let original = &*message.message;
    let mut properties = original.properties.clone();
    let headers = &mut properties.headers;
    if which == Headers::OwnOnly {
        headers.clear();
    }
    // The broker would route by these again, to queues that are none of ours.
    for name in ["CC", "BCC"] {
        if let Some(copies) = headers.remove(name) {
            headers.insert(format!("x-onceward-{}", name.to_lowercase()), copies);
        }
    }
    let mut put = |name: &str, value: HeaderValue| {
        headers.insert(format!("x-onceward-{name}"), value);
    };
    put("reason", note.reason.name().into());
    put("error", note.error.clone().into());
    put("attempts", (*attempts).into());
    put("queue", (&*queue.name).into());
    put("first-seen", HeaderValue::Timestamp(note.first_seen_ms / 1000));
    put("exchange", original.exchange.clone().into());
    put("routing-key", original.routing_key.clone().into());
    // Left in place, the first would let the dead letter vanish, the second have the broker refuse it.
    if let Some(expiration) = properties.expiration.take() {
        put("expiration", expiration.into());
    }
    if let Some(user_id) = properties.user_id.take() {
        put("user-id", user_id.into());
    }
    let outgoing_id = format!("dead-{}", identity::hex(recorded.as_bytes()));
    properties.headers.insert(OUTGOING_ID_HEADER.to_owned(), outgoing_id.into());
    Message {
        exchange: String::new(),
        routing_key: queue.options.dead_letter.clone(),
        properties,
        body: original.body.clone(),
    }
}
