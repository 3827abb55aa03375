//! Messages that a test publishes.

use bytes::Bytes;
use serde::Serialize;

use crate::message::{HeaderValue, Message, Properties};

/// A message for a queue, to be added to; see [`message`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "it is not published yet"]
pub struct TestMessage {
    message: Message,
}

/// A message for this queue with this `message-id` and a body in JSON.
///
/// # Panics
///
/// If the body cannot be JSON, such as a map whose keys are no strings.
pub fn message<T: Serialize + ?Sized>(queue: &str, id: &str, body: &T) -> TestMessage {
    let body = serde_json::to_vec(body)
        .unwrap_or_else(|error| panic!("the body of message {id:?} cannot be JSON: {error}"));
    let mut message = raw_message(queue, id, body);
    message.message.properties.content_type = Some("application/json".to_owned());
    message
}

/// A message for this queue with this `message-id` and these bytes as its body.
pub fn raw_message(queue: &str, id: &str, body: impl Into<Bytes>) -> TestMessage {
    let properties = Properties {
        message_id: Some(id.to_owned()),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    let (exchange, routing_key) = (String::new(), queue.to_owned());
    TestMessage { message: Message { exchange, routing_key, properties, body: body.into() } }
}

impl TestMessage {
    /// With this header.
    pub fn header(mut self, name: &str, value: impl Into<HeaderValue>) -> Self {
        self.message.properties.headers.insert(name.to_owned(), value.into());
        self
    }

    /// As a request: the reply goes to this queue, with this correlation id.
    pub fn reply_to(mut self, queue: &str, correlation_id: &str) -> Self {
        self.message.properties.reply_to = Some(queue.to_owned());
        self.message.properties.correlation_id = Some(correlation_id.to_owned());
        self
    }

    /// Published to this exchange with this routing key; bind them to a queue by
    /// [`Testbed::bind`](super::Testbed::bind).
    pub fn via(mut self, exchange: &str, routing_key: &str) -> Self {
        self.message.exchange = exchange.to_owned();
        self.message.routing_key = routing_key.to_owned();
        self
    }

    /// Its properties, for all that has no method here.
    pub const fn properties_mut(&mut self) -> &mut Properties {
        &mut self.message.properties
    }
}

impl From<TestMessage> for Message {
    fn from(message: TestMessage) -> Self {
        message.message
    }
}
