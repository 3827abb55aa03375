//! Replies: the result of a message, published to its `reply-to` when it is done and again for each later duplicate.
//!
//! A reply needs no row of its own: its result is in the record of the message, which is acknowledged after the reply
//! is confirmed. So a crash in between brings a redelivery, and that one the same reply under the same id. A caller
//! that is gone holds nobody up.

use std::sync::Arc;

use bytes::Bytes;

use super::admission::Admitted;
use super::queue::Queue;
use crate::identity;
use crate::message::{Message, Properties};
use crate::options::OnDuplicate;
use crate::outbox::{End, Otherwise, Outgoing};
use crate::store::{KeyId, Persisted, ResultRow, StoreError};

/// Number of the reply among the outgoing messages of its request.
const REPLY_INDEX: u32 = u32::MAX;

/// The reply that the message asks for, if the queue gives any.
pub(crate) fn to(
    queue: &Queue,
    message: &Admitted,
    body: Bytes,
    content_type: Option<String>,
) -> Option<Arc<Message>> {
    let request = &message.message.properties;
    let (id, scope) = message.id.as_ref()?;
    let reply_to = request.reply_to.as_ref().filter(|_| gives_replies(queue))?;
    let properties = Properties {
        content_type,
        correlation_id: request.correlation_id.clone(),
        message_id: Some(identity::outgoing_id(scope, id, REPLY_INDEX)),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    let (exchange, routing_key) = (String::new(), reply_to.clone());
    Some(Arc::new(Message { exchange, routing_key, properties, body }))
}

/// The reply of a message that is on record.
pub(crate) async fn stored(
    queue: &Queue,
    message: &Admitted,
    result: &ResultRow,
) -> Result<Option<Arc<Message>>, StoreError> {
    if !gives_replies(queue) || message.message.properties.reply_to.is_none() {
        return Ok(None);
    }
    let body = queue.store.fetch_result(result).await?;
    queue.metrics.replayed.increment(1);
    Ok(to(queue, message, body, result.content_type.clone()))
}

/// Sends the reply and settles the message when that is over.
pub(crate) fn send(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    reply: Arc<Message>,
    proof: Persisted,
) {
    let counted = queue.count_commit();
    let hash = *message.identity.as_bytes();
    queue.relay.send(Outgoing {
        // Of no key's order: nobody has to wait for a caller.
        key: KeyId { queue: queue.id, hash },
        row: None,
        messages: vec![reply],
        sender: Arc::clone(&queue.outgoing),
        otherwise: Otherwise::Drop,
        returned: None,
        on_end: Box::new(move |end| {
            counted.settle(|queue| match end {
                End::Sent => queue.finish(message.identity, proof),
                End::Returned => queue.release(message.identity),
            });
            None
        }),
    });
}

fn gives_replies(queue: &Queue) -> bool {
    queue.options.on_duplicate == OnDuplicate::Replay
}
