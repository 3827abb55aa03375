//! Delivers a message by staging it for another exchange: the relay publishes it, under an id that never changes.
//!
//! The inbound message is acknowledged when the broker has the outgoing one in every queue it was routed to. Its id is
//! derived from the inbound one, so a twin that a crash makes is recognized by the next hop. No options send to the
//! queue that the message came from: each copy would have a new id, for ever.

use std::fmt;

use crate::message::{HeaderValue, Message};
use crate::{Body, Context, Handler, Result};

/// Header with the message-id that the message had when it came in.
const ORIGIN_ID_HEADER: &str = "x-onceward-origin-id";

/// Header with the queue that the message came from.
const QUEUE_HEADER: &str = "x-onceward-queue";

/// Headers that RabbitMQ routes by, beside the routing key: kept, they would send copies where nobody configured.
const ROUTING_HEADERS: [&str; 2] = ["CC", "BCC"];

/// Options of the target `exchange`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// Empty for the default exchange; then there is a routing key, and it is not the own queue's.
    exchange: String,
    /// The inbound message's if `None`.
    routing_key: Option<String>,
}

impl ExchangeOptions {
    /// Takes names that AMQP can carry, for messages of `queue`; says what is wrong with the routing key.
    pub(crate) fn new(
        exchange: String,
        routing_key: Option<String>,
        queue: &str,
    ) -> Result<Self, String> {
        // The default exchange routes by queue name, and what came over it still has this queue's name on it.
        if exchange.is_empty() && routing_key.as_deref().is_none_or(|key| key == queue) {
            let problem =
                "would send messages back to the queue they come from; name another queue";
            return Err(problem.to_owned());
        }
        Ok(Self { exchange, routing_key })
    }
}

impl fmt::Display for ExchangeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.exchange)?;
        match &self.routing_key {
            Some(routing_key) => write!(f, ", routing key {routing_key:?}"),
            None => Ok(()),
        }
    }
}

/// The target `exchange`.
pub(crate) struct Exchange {
    options: ExchangeOptions,
}

impl Exchange {
    pub(crate) const fn new(options: ExchangeOptions) -> Self {
        Self { options }
    }

    /// The inbound message as it goes out: other target and origin; the rest as it came. Its id is the runtime's.
    fn outgoing(&self, cx: &Context, body: Body) -> Message {
        let inbound = cx.message();
        let mut properties = inbound.properties.clone();
        let headers = &mut properties.headers;
        for name in ROUTING_HEADERS {
            headers.remove(name);
        }
        headers.insert(QUEUE_HEADER.to_owned(), cx.queue().into());
        if let Some(id) = properties.message_id.take() {
            headers.insert(ORIGIN_ID_HEADER.to_owned(), HeaderValue::from(id));
        }
        // The broker refuses a message in the name of a user that this connection is not.
        properties.user_id = None;
        let routing_key = self.options.routing_key.as_ref();
        Message {
            exchange: self.options.exchange.clone(),
            routing_key: routing_key.unwrap_or(&inbound.routing_key).clone(),
            properties,
            body: body.0,
        }
    }
}

impl Handler<Body> for Exchange {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result {
        let message = self.outgoing(cx, body);
        cx.emit(message)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{OUTGOING_ID_HEADER, Properties};

    fn options(exchange: &str, key: Option<&str>) -> Result<ExchangeOptions, String> {
        ExchangeOptions::new(exchange.to_owned(), key.map(str::to_owned), "orders")
    }

    fn inbound() -> Message {
        let headers = [
            ("x-key", HeaderValue::from("k")),
            ("CC", HeaderValue::Array(vec!["elsewhere".into()])),
            (OUTGOING_ID_HEADER, HeaderValue::from("an earlier hop's")),
        ];
        Message {
            exchange: "in".to_owned(),
            routing_key: "orders.new".to_owned(),
            properties: Properties {
                message_id: Some("m-1".to_owned()),
                content_type: Some("application/json".to_owned()),
                expiration: Some("60000".to_owned()),
                user_id: Some("alice".to_owned()),
                delivery_mode: Some(1),
                headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
                ..Properties::default()
            },
            body: "{}".into(),
        }
    }

    #[tokio::test]
    async fn a_message_is_staged_with_its_properties_and_where_it_came_from() {
        let mut cx = Context::for_tests(inbound());
        let target = Exchange::new(options("clean", None).expect("another exchange"));
        let body = Body(cx.message().body.clone());
        target.handle(&mut cx, body).await.expect("it is staged");
        let staged = cx.messages.into_messages(|index| format!("id-{index}"));
        let mut expected = inbound();
        expected.exchange = "clean".to_owned();
        expected.properties.message_id = Some("id-0".to_owned());
        expected.properties.user_id = None;
        expected.properties.delivery_mode = Some(2);
        let headers =
            [("x-key", "k"), ("x-onceward-origin-id", "m-1"), ("x-onceward-queue", "orders")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into()));
        expected.properties.headers = headers.into();
        assert_eq!(staged, [expected]);
    }

    #[test]
    fn no_options_send_to_the_queue_that_messages_come_from() {
        for key in [None, Some("orders")] {
            assert!(options("", key).is_err(), "{key:?}");
        }
        for (exchange, key) in [("", Some("out")), ("clean", None), ("clean", Some("orders"))] {
            assert!(options(exchange, key).is_ok(), "{exchange} {key:?}");
        }
    }
}
