//! What a message looks like in a dead-letter queue: as it came, with the reason in its headers.
//!
//! Pure. What the broker would route by, let expire or refuse is moved into headers of ours: left in place it would
//! send the letter elsewhere, or let it vanish.

use std::sync::Arc;

use crate::broker::OUTGOING_ID_HEADER;
use crate::message::{HeaderValue, Message};

/// A dead letter to be made.
pub(crate) struct Letter<'a> {
    pub(crate) original: &'a Message,
    pub(crate) dead_letter_queue: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) error: &'a str,
    pub(crate) attempts: u32,
    pub(crate) queue: &'a str,
    /// When the message was first delivered; unknown of one that we made.
    pub(crate) first_seen_ms: Option<u64>,
    /// Stable over restarts.
    pub(crate) outgoing_id: String,
}

/// Which headers a dead letter carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Headers {
    All,
    /// Ours only: with all of them the table may be too large for a frame.
    OwnOnly,
}

impl Letter<'_> {
    pub(crate) fn make(&self, which: Headers) -> Arc<Message> {
        let mut properties = self.original.properties.clone();
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
        put("reason", self.reason.into());
        put("error", self.error.into());
        put("attempts", self.attempts.into());
        put("queue", self.queue.into());
        if let Some(first_seen_ms) = self.first_seen_ms {
            put("first-seen", HeaderValue::Timestamp(first_seen_ms / 1000));
        }
        put("exchange", self.original.exchange.clone().into());
        put("routing-key", self.original.routing_key.clone().into());
        // Left in place, the first would let the dead letter vanish, the second have the broker refuse it.
        if let Some(expiration) = properties.expiration.take() {
            put("expiration", expiration.into());
        }
        if let Some(user_id) = properties.user_id.take() {
            put("user-id", user_id.into());
        }
        headers.insert(OUTGOING_ID_HEADER.to_owned(), self.outgoing_id.clone().into());
        Arc::new(Message {
            exchange: String::new(),
            routing_key: self.dead_letter_queue.to_owned(),
            properties,
            body: self.original.body.clone(),
        })
    }
}
