//! Messages as they are told apart: each copy by a mark, what the worker sends by its own id, and whole or not.
//!
//! Pure.

use std::sync::Arc;

use super::model;
use crate::broker::OUTGOING_ID_HEADER;
use crate::message::{HeaderValue, Message};

/// By which a reader knows a message of the worker again.
pub(super) fn sent_as(message: &Message) -> Arc<str> {
    let own = message.properties.headers.get(OUTGOING_ID_HEADER).and_then(HeaderValue::as_str);
    own.or(message.properties.message_id.as_deref()).unwrap_or_default().into()
}

/// The header that says which copy it is, put there when it comes into a queue.
const COPY_HEADER: &str = "sim-copy";

/// Marks a message as this copy.
pub(super) fn mark(message: &mut Message, copy: u64) {
    message.properties.headers.insert(COPY_HEADER.to_owned(), HeaderValue::UInt(copy));
}

/// Which copy it is.
pub(super) fn copy_of(message: &Message) -> Option<u64> {
    match message.properties.headers.get(COPY_HEADER) {
        Some(HeaderValue::UInt(copy)) => Some(*copy),
        _ => None,
    }
}

/// Whether all of the original is in the dead letter.
pub(super) fn is_whole(letter: &Message, original: &Message) -> bool {
    let (there, were) = (&letter.properties.headers, &original.properties.headers);
    let has_all = were.iter().all(|(name, value)| there.get(name) == Some(value));
    let mut properties = letter.properties.clone();
    properties.headers.clone_from(were);
    has_all && properties == original.properties && letter.body == original.body
}

/// A hash of all of a message.
pub(super) fn hash_of(message: &Message) -> u64 {
    let properties = format!("{:?}", message.properties);
    model::hash(&[
        message.exchange.as_bytes(),
        message.routing_key.as_bytes(),
        properties.as_bytes(),
        &message.body,
    ])
}
