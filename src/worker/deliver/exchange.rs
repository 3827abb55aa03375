//! Delivers a message by publishing it to another exchange, confirmed, under an id that never changes.
//!
//! Done means that the broker has it in every queue it was routed to. The id is derived from the inbound one, so an
//! attempt that is made again after a crash publishes a twin that the next hop recognizes. No options send to the
//! queue that the message came from: each copy would have a new id, for ever.

use std::fmt;
use std::sync::Arc;

use crate::message::{HeaderValue, Message};
use crate::{Body, Context, Handler, OUTGOING_ID_HEADER, Publisher, Result};

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
    publisher: Publisher,
}

impl Exchange {
    pub(crate) const fn new(options: ExchangeOptions, publisher: Publisher) -> Self {
        Self { options, publisher }
    }

    /// The inbound message as it goes out: other target, id and origin; the rest as it came.
    fn outgoing(&self, cx: &Context, body: Body) -> Message {
        let inbound = cx.message();
        let mut properties = inbound.properties.clone();
        let headers = &mut properties.headers;
        // An earlier hop's; left in, it would be taken for the id of this publish.
        headers.remove(OUTGOING_ID_HEADER);
        for name in ROUTING_HEADERS {
            headers.remove(name);
        }
        headers.insert(QUEUE_HEADER.to_owned(), cx.queue().into());
        if let Some(id) = properties.message_id.take() {
            headers.insert(ORIGIN_ID_HEADER.to_owned(), HeaderValue::from(id));
        }
        properties.message_id = Some(cx.effect_key("exchange"));
        properties.delivery_mode = Some(2);
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
        Ok(self.publisher.publish(Arc::new(message)).await?)
    }
}

#[cfg(test)]
mod tests {

    use tokio::task::JoinSet;

    use super::super::Verdict;
    use super::*;
    use crate::MemoryBroker;
    use crate::broker::PublisherTask;
    use crate::message::Properties;

    struct Fixture {
        broker: MemoryBroker,
        publisher: Publisher,
        _task: JoinSet<()>,
    }

    fn fixture() -> Fixture {
        let broker = MemoryBroker::new();
        let (publisher, task) =
            PublisherTask::new(Arc::new(broker.clone()), crate::Health::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(tokio_util::sync::CancellationToken::new()));
        Fixture { broker, publisher, _task: tasks }
    }

    fn options(exchange: &str, key: Option<&str>) -> Result<ExchangeOptions, String> {
        ExchangeOptions::new(exchange.to_owned(), key.map(str::to_owned), "orders")
    }

    impl Fixture {
        async fn deliver(&self, exchange: &str, key: Option<&str>, cx: &mut Context) -> Verdict {
            let options = options(exchange, key).expect("another queue");
            let target = Exchange::new(options, self.publisher.clone());
            let body = Body(cx.message().body.clone());
            target.handle(cx, body).await.into()
        }
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
    async fn a_confirmed_message_is_out_with_a_stable_id_and_its_properties() {
        let fixture = fixture();
        fixture.broker.bind("clean", "orders.new", "out");
        let mut cx = Context::for_tests(inbound());
        for attempt in 1..=2 {
            cx.attempt = attempt;
            assert_eq!(fixture.deliver("clean", None, &mut cx).await, Verdict::Done);
        }
        let sent = fixture.broker.take_all("out");
        let mut expected = inbound();
        expected.exchange = "clean".to_owned();
        expected.properties.message_id = Some(cx.effect_key("exchange"));
        expected.properties.user_id = None;
        expected.properties.delivery_mode = Some(2);
        let headers =
            [("x-key", "k"), ("x-onceward-origin-id", "m-1"), ("x-onceward-queue", "orders")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into()));
        expected.properties.headers = headers.into();
        assert_eq!(sent.len(), 2);
        for message in sent {
            assert_eq!(*message, expected);
        }
    }

    #[tokio::test]
    async fn an_unroutable_message_is_tried_again() {
        let fixture = fixture();
        let mut cx = Context::for_tests(inbound());
        let verdict = fixture.deliver("clean", Some("k"), &mut cx).await;
        let Verdict::Retry(text, None) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(
            text,
            "no queue takes messages of exchange \"clean\" with routing key \"k\": NO_ROUTE"
        );
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

    #[tokio::test]
    async fn a_publisher_that_is_gone_is_a_retry() {
        let mut fixture = fixture();
        fixture._task.shutdown().await;
        let mut cx = Context::for_tests(inbound());
        let verdict = fixture.deliver("", Some("out"), &mut cx).await;
        assert!(matches!(verdict, Verdict::Retry(..)), "{verdict:?}");
    }
}
