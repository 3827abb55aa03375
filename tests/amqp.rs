//! Goal: what `AmqpBroker` promises the runtime holds on a real RabbitMQ.
//!
//! Method: each test has a vhost of its own, a broker of ours in it, and a plain client beside it that arranges and
//! looks. Bytes that no client sends come from a hand-written publisher.

mod support;

use std::net::TcpListener;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::QueueDeclareOptions;
use lapin::types::AMQPValue;
use onceward::{
    AmqpBroker, AmqpOptions, Broker, BrokerError, Declare, Delivery, HEADER_DEPTH_MAX, HeaderValue,
    Message, Owner, Published, Session, Subscription,
};
use support::rabbitmq::{Client, Vhost, arguments};
use support::raw_amqp::{self, RawMessage};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes on a slow machine.
const SOON: Duration = Duration::from_secs(20);

/// A vhost, our broker in it, and a plain client. The client goes first: a vhost is deleted under nobody.
struct Fixture {
    client: Client,
    broker: AmqpBroker,
    vhost: Vhost,
}

impl Fixture {
    async fn new() -> Self {
        let vhost = Vhost::new();
        let options = AmqpOptions::new(&vhost.url()).expect("a good url");
        Self { client: vhost.client().await, broker: AmqpBroker::new(options), vhost }
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Session {
        let subscription = subscription(queue, prefetch);
        self.try_consume(&subscription).await.expect("a session")
    }

    async fn try_consume(&self, subscription: &Subscription) -> Result<Session, BrokerError> {
        let consuming = self.broker.consume(subscription);
        timeout(SOON, consuming).await.expect("an answer in time")
    }
}

fn subscription(queue: &str, prefetch: u16) -> Subscription {
    Subscription {
        queue: queue.to_owned(),
        declare: Declare::Passive,
        owner: Owner::Single,
        prefetch: NonZeroU16::new(prefetch).expect("a prefetch"),
    }
}

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

async fn next(session: &mut Session) -> Result<Delivery, BrokerError> {
    let next = timeout(SOON, session.deliveries.next()).await;
    next.expect("something in time").expect("not ended")
}

async fn bodies(session: &mut Session, count: usize) -> Vec<(u64, bool, String)> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let delivery = next(session).await.expect("a delivery");
        let body = String::from_utf8_lossy(&delivery.message.body).into_owned();
        bodies.push((delivery.tag, delivery.redelivered, body));
    }
    bodies
}

/// Waits until the queue has this many messages ready: acks and closes are read some time after they are written.
async fn depth_becomes(client: &Client, queue: &str, expected: u32) {
    let deadline = Instant::now() + SOON;
    loop {
        let depth = client.depth(queue).await;
        if depth == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{queue} has {depth} messages, not {expected}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn lost_reason(result: Result<Session, BrokerError>) -> String {
    match result {
        Err(BrokerError::Lost { reason, .. }) => reason,
        other => panic!("expected a lost session, got {other:?}"),
    }
}

#[tokio::test]
async fn a_closed_session_returns_what_is_unacked_in_order() {
    let fixture = Fixture::new().await;
    for queue in ["classic", "quorum"] {
        match queue {
            "classic" => fixture.client.declare_classic(queue).await,
            _ => fixture.client.declare_quorum(queue).await,
        }
        fixture.client.publish(queue, numbers(10)).await;
        let mut session = fixture.consume(queue, 6).await;
        let first = bodies(&mut session, 6).await;
        assert_eq!(first[5], (6, false, "6".to_owned()));
        session.acks.ack(2, true).await.expect("outstanding");
        session.acks.ack(4, false).await.expect("outstanding");
        drop(session.deliveries);
        session.acks.close().await;
        depth_becomes(&fixture.client, queue, 7).await;
        let mut session = fixture.consume(queue, 10).await;
        let again = bodies(&mut session, 7).await;
        let order: Vec<_> = again.iter().map(|(_, _, body)| body.as_str()).collect();
        assert_eq!(order, ["3", "5", "6", "7", "8", "9", "10"], "{queue}");
        assert!(again[0].1, "{queue}: the first one was delivered before");
        session.acks.close().await;
    }
}

#[tokio::test]
async fn a_dropped_session_frees_the_queue() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    fixture.client.publish("q", numbers(3)).await;
    let mut session = fixture.consume("q", 5).await;
    bodies(&mut session, 3).await;
    drop(session);
    depth_becomes(&fixture.client, "q", 3).await;
}

#[tokio::test]
async fn prefetch_bounds_what_is_outstanding() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    fixture.client.publish("q", numbers(5)).await;
    let mut session = fixture.consume("q", 2).await;
    bodies(&mut session, 2).await;
    sleep(Duration::from_millis(300)).await;
    assert!(session.deliveries.next().now_or_never().is_none());
    assert_eq!(fixture.client.depth("q").await, 3);
    session.acks.ack(1, false).await.expect("outstanding");
    assert_eq!(bodies(&mut session, 1).await[0].0, 3);
}

#[tokio::test]
async fn one_ack_can_cover_all_earlier_ones() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    fixture.client.publish("q", numbers(100)).await;
    let mut session = fixture.consume("q", 100).await;
    bodies(&mut session, 100).await;
    session.acks.ack(60, true).await.expect("outstanding");
    session.acks.ack(100, true).await.expect("outstanding");
    session.acks.close().await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fixture.client.depth("q").await, 0);
}

#[tokio::test]
async fn an_ack_on_a_session_that_broke_is_an_error() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    fixture.client.publish("q", numbers(2)).await;
    let mut session = fixture.consume("q", 2).await;
    bodies(&mut session, 2).await;
    session.acks.ack(1, false).await.expect("outstanding");
    // RabbitMQ closes the channel for a tag that is not outstanding.
    session.acks.ack(1, false).await.expect("written");
    let error = next(&mut session).await.expect_err("the channel is closed");
    assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
    assert!(session.deliveries.next().await.is_none());
    assert!(session.deliveries.next().await.is_none(), "polled after its end");
    let error = session.acks.ack(2, false).await.expect_err("no channel");
    assert!(matches!(error, BrokerError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn a_deleted_queue_ends_the_stream_with_an_error() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    let mut session = fixture.consume("q", 2).await;
    fixture.client.delete("q").await;
    let error = next(&mut session).await.expect_err("the queue is gone");
    assert!(error.to_string().contains("\"q\" was deleted"), "{error}");
    assert!(session.deliveries.next().await.is_none());
}

#[tokio::test]
async fn a_cut_connection_ends_the_stream_with_an_error() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    let mut session = fixture.consume("q", 2).await;
    let vhost = fixture.vhost.name();
    support::rabbitmq::ctl(&["close_all_connections", "--vhost", vhost, "maintenance"]);
    let error = next(&mut session).await.expect_err("the connection is gone");
    assert!(matches!(error, BrokerError::Lost { .. }), "{error}");
    assert!(session.acks.ack(1, false).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_as_deep_as_a_frame_allows_become_a_delivery_with_a_defect() {
    let fixture = Arc::new(Fixture::new().await);
    fixture.client.declare_classic("q").await;
    let deep = [
        raw_amqp::nested_arrays(b"deep", 15_000),
        raw_amqp::nested_tables(b"deep", 15_000),
        raw_amqp::nested_arrays(b"deep", 26_180),
        raw_amqp::nested_tables(b"deep", 21_820),
    ];
    let messages = deep.map(|headers| RawMessage {
        headers: Some([headers, raw_amqp::header(b"also", b"\xff")].concat()),
        body: b"body".to_vec(),
        ..RawMessage::default()
    });
    raw_amqp::publish(&fixture.vhost.url(), "q", &messages);
    // On a worker thread: like lapin's, and unlike a test's own, its stack is that of RUST_MIN_STACK.
    let inner = Arc::clone(&fixture);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut session = inner.consume("q", 10).await;
        for _ in 0..4 {
            let delivery = next(&mut session).await.expect("a delivery");
            let expected = format!("header \"deep\" nests deeper than {HEADER_DEPTH_MAX} levels");
            assert_eq!(delivery.defect, Some(expected));
            let headers = &delivery.message.properties.headers;
            assert_eq!(headers["also"], HeaderValue::Bytes(b"\xff"[..].into()));
            session.acks.ack(delivery.tag, false).await.expect("outstanding");
        }
        session.acks.close().await;
    });
    tasks.join_next().await.expect("a task").expect("no panic");
    assert_eq!(fixture.client.depth("q").await, 0);
}

#[tokio::test]
async fn bytes_that_cannot_be_parsed_are_told_apart_from_a_lost_connection() {
    let fixture = Fixture::new().await;
    let bad_id = RawMessage { message_id: Some(b"\xff\xfe".to_vec()), ..RawMessage::default() };
    let bad_header_name =
        RawMessage { headers: Some(raw_amqp::header(b"\xff", b"value")), ..RawMessage::default() };
    for (queue, message) in [("id", bad_id), ("name", bad_header_name)] {
        fixture.client.declare_classic(queue).await;
        fixture.client.publish(queue, numbers(1)).await;
        raw_amqp::publish(&fixture.vhost.url(), queue, &[message]);
        let mut session = fixture.consume(queue, 10).await;
        assert_eq!(bodies(&mut session, 1).await[0].2, "1", "what is before it arrives");
        match next(&mut session).await {
            Err(BrokerError::Unreadable { queue: named, .. }) => assert_eq!(named, queue),
            other => panic!("{queue}: expected unreadable, got {other:?}"),
        }
        assert!(session.deliveries.next().await.is_none());
        // Whoever acks may notice first.
        let error = session.acks.ack(1, false).await.expect_err("no connection");
        assert!(matches!(error, BrokerError::Unreadable { .. }), "{error}");
    }
}

#[tokio::test]
async fn long_strings_of_any_bytes_arrive_raw() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("q").await;
    let message = RawMessage {
        headers: Some(raw_amqp::header(b"key", b"\xff\x00\x1b")),
        ..RawMessage::default()
    };
    raw_amqp::publish(&fixture.vhost.url(), "q", &[message]);
    let mut session = fixture.consume("q", 1).await;
    let delivery = next(&mut session).await.expect("a delivery");
    let value = &delivery.message.properties.headers["key"];
    assert_eq!(value, &HeaderValue::Bytes(b"\xff\x00\x1b"[..].into()));
    assert_eq!(delivery.defect, None);
}

/// What is declared, and `Ok` with whether a second worker is refused, or `Err` with a part of the error.
type OwnershipCase =
    (&'static str, &'static [(&'static str, Argument)], Result<bool, &'static str>);

#[derive(Clone, Copy)]
enum Argument {
    Text(&'static str),
    Number(i32),
    True,
    False,
}

const QUORUM: (&str, Argument) = ("x-queue-type", Argument::Text("quorum"));
const SINGLE: (&str, Argument) = ("x-single-active-consumer", Argument::True);

const OWNERSHIP: &[OwnershipCase] = &[
    ("classic", &[], Ok(true)),
    ("explicit", &[("x-queue-type", Argument::Text("classic"))], Ok(true)),
    (
        "limited",
        &[("x-max-length", Argument::Number(10)), ("x-message-ttl", Argument::Number(60_000))],
        Ok(true),
    ),
    (
        "dead-lettered",
        &[
            ("x-dead-letter-exchange", Argument::Text("it's 'd' but current is none")),
            ("x-dead-letter-routing-key", Argument::Text("k")),
            ("x-overflow", Argument::Text("reject-publish")),
            ("x-max-priority", Argument::Number(5)),
        ],
        Ok(true),
    ),
    ("lazy", &[("x-queue-mode", Argument::Text("lazy"))], Ok(true)),
    ("transient", &[], Ok(true)),
    ("auto-delete", &[], Ok(true)),
    ("classic-single", &[SINGLE], Ok(false)),
    ("quorum-single", &[QUORUM, SINGLE], Ok(false)),
    (
        "quorum-limited",
        &[
            QUORUM,
            SINGLE,
            ("x-delivery-limit", Argument::Number(5)),
            ("x-max-length", Argument::Number(9)),
        ],
        Ok(false),
    ),
    ("quorum", &[QUORUM], Err("without x-single-active-consumer")),
    (
        "quorum-false",
        &[
            QUORUM,
            ("x-single-active-consumer", Argument::False),
            ("x-delivery-limit", Argument::Number(5)),
        ],
        Err("owner = \"shared\""),
    ),
    ("stream", &[("x-queue-type", Argument::Text("stream"))], Err("is a stream")),
];

#[tokio::test]
async fn a_queue_has_one_owner_or_is_refused_with_the_remedy() {
    let fixture = Fixture::new().await;
    for (queue, pairs, expected) in OWNERSHIP {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| match value {
                Argument::Text(text) => (*name, AMQPValue::LongString((*text).into())),
                Argument::Number(number) => (*name, AMQPValue::LongInt(*number)),
                Argument::True => (*name, AMQPValue::Boolean(true)),
                Argument::False => (*name, AMQPValue::Boolean(false)),
            })
            .collect();
        let options = QueueDeclareOptions {
            durable: *queue != "transient",
            auto_delete: *queue == "auto-delete",
            ..QueueDeclareOptions::default()
        };
        fixture.client.declare(queue, options, arguments(&pairs)).await;
        let first = fixture.try_consume(&subscription(queue, 1)).await;
        match (first, expected) {
            (Ok(first), Ok(refused)) => {
                let second = fixture.try_consume(&subscription(queue, 1)).await;
                if *refused {
                    let reason = lost_reason(second);
                    assert!(reason.contains("consumed by somebody else"), "{queue}: {reason}");
                } else {
                    second.expect("a standby").acks.close().await;
                }
                first.acks.close().await;
            }
            (Err(BrokerError::NotOwnable { queue: named, problem, remedy }), Err(part)) => {
                assert_eq!(named, *queue);
                let text = format!("{problem}; {remedy}");
                assert!(text.contains(part), "{queue}: {text}");
            }
            (got, _) => panic!("{queue}: expected {expected:?}, got {got:?}"),
        }
    }
}

#[tokio::test]
async fn a_shared_quorum_queue_is_consumed_on_demand() {
    let fixture = Fixture::new().await;
    let quorum = arguments(&[("x-queue-type", AMQPValue::LongString("quorum".into()))]);
    fixture.client.declare("q", QueueDeclareOptions::durable(), quorum).await;
    let shared = Subscription { owner: Owner::Shared, ..subscription("q", 1) };
    let first = fixture.try_consume(&shared).await.expect("a session");
    fixture.try_consume(&shared).await.expect("another").acks.close().await;
    first.acks.close().await;
}

#[tokio::test]
async fn a_queue_is_declared_only_on_demand() {
    let fixture = Fixture::new().await;
    let reason = lost_reason(fixture.try_consume(&subscription("q", 1)).await);
    assert_eq!(reason, "queue \"q\" does not exist (404): create it, or set declare");
    for (queue, declare, other) in
        [("c", Declare::Classic, Declare::Quorum), ("q", Declare::Quorum, Declare::Classic)]
    {
        let declared = Subscription { declare, ..subscription(queue, 1) };
        // The second time it is there.
        for _ in 0..2 {
            fixture.try_consume(&declared).await.expect("a session").acks.close().await;
        }
        let mismatch = Subscription { declare: other, ..subscription(queue, 1) };
        match fixture.try_consume(&mismatch).await {
            Err(BrokerError::NotOwnable { problem, .. }) => {
                assert!(problem.starts_with("exists as a"), "{problem}");
            }
            other => panic!("{queue}: expected not ownable, got {other:?}"),
        }
    }
    let limited = arguments(&[
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-delivery-limit", AMQPValue::LongInt(3)),
    ]);
    fixture.client.declare("l", QueueDeclareOptions::durable(), limited).await;
    let declared = Subscription { declare: Declare::Quorum, ..subscription("l", 1) };
    fixture.try_consume(&declared).await.expect("other arguments are fine").acks.close().await;
}

fn message(routing_key: &str, id: &str) -> Arc<Message> {
    let mut message = Message {
        routing_key: routing_key.to_owned(),
        body: id.as_bytes().to_vec().into(),
        ..Message::default()
    };
    message.properties.message_id = Some(id.to_owned());
    Arc::new(message)
}

#[tokio::test]
async fn confirmed_messages_are_in_the_queue_in_order_and_persistent() {
    let fixture = Fixture::new().await;
    let mut channel = fixture.broker.publish_channel().await.expect("a channel");
    channel.ensure_queue("out").await.expect("declared");
    channel.ensure_queue("out").await.expect("there already");
    let batch: Vec<_> = numbers(300).iter().map(|id| message("out", id)).collect();
    let published = channel.publish(&batch).await.expect("answers");
    assert!(published.iter().all(|answer| *answer == Published::Confirmed));
    let taken = fixture.client.take_all("out").await;
    assert_eq!(taken.len(), 300);
    for (delivery, number) in taken.iter().zip(numbers(300)) {
        assert_eq!(delivery.data, number.as_bytes());
        assert_eq!(delivery.properties.delivery_mode(), &Some(2));
    }
    channel.close().await;
}

#[tokio::test]
async fn exactly_the_unroutable_messages_are_said_to_be_unroutable() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("out").await;
    let mut channel = fixture.broker.publish_channel().await.expect("a channel");
    for round in 0..5 {
        let is_bad = |number: usize| number.is_multiple_of(3 + round);
        let batch: Vec<_> = (0..200)
            .map(|number| {
                let queue = if is_bad(number) { "nowhere" } else { "out" };
                message(queue, &format!("{round}-{number}"))
            })
            .collect();
        let published = channel.publish(&batch).await.expect("answers");
        for (number, answer) in published.iter().enumerate() {
            let expected = if is_bad(number) {
                Published::Unroutable("312 NO_ROUTE".to_owned())
            } else {
                Published::Confirmed
            };
            assert_eq!(*answer, expected, "round {round}, message {number}");
        }
        let good = (0..200).filter(|number| !is_bad(*number)).count();
        assert_eq!(fixture.client.take_all("out").await.len(), good);
    }
}

#[tokio::test]
async fn a_message_that_closes_the_channel_does_not_take_the_others_along() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("out").await;
    let mut channel = fixture.broker.publish_channel().await.expect("a channel");
    let to_no_exchange =
        Message { exchange: "nowhere".to_owned(), ..Message::clone(&message("out", "x")) };
    let too_long = message(&"x".repeat(256), "long");
    let batch = [message("out", "1"), to_no_exchange.into(), too_long, message("out", "2")];
    for _ in 0..2 {
        let published = channel.publish(&batch).await.expect("answers");
        assert_eq!(published[0], Published::Confirmed);
        assert!(
            matches!(&published[1], Published::Unroutable(text) if text.contains("no exchange"))
        );
        assert!(matches!(&published[2], Published::Unsendable(text) if text.contains("256 bytes")));
        assert_eq!(published[3], Published::Confirmed);
    }
}

#[tokio::test]
async fn a_large_group_survives_a_message_that_closes_the_channel_under_it() {
    let fixture = Fixture::new().await;
    fixture.client.declare_classic("out").await;
    let mut channel = fixture.broker.publish_channel().await.expect("a channel");
    let mut batch: Vec<_> = numbers(256).iter().map(|id| message("out", id)).collect();
    batch[3] = Arc::new(Message { exchange: "nowhere".to_owned(), ..Message::clone(&batch[3]) });
    let published = channel.publish(&batch).await.expect("answers");
    for (number, answer) in published.iter().enumerate() {
        let is_good = *answer == Published::Confirmed;
        assert_eq!(is_good, number != 3, "message {number}: {answer:?}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let fixture = Fixture::new().await;
    let full = arguments(&[
        ("x-max-length", AMQPValue::LongInt(2)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ]);
    fixture.client.declare("full", QueueDeclareOptions::durable(), full).await;
    let mut channel = fixture.broker.publish_channel().await.expect("a channel");
    let batch: Vec<_> = numbers(4).iter().map(|id| message("full", id)).collect();
    let published = channel.publish(&batch).await.expect("answers");
    let count = |wanted| published.iter().filter(|answer| **answer == wanted).count();
    assert_eq!(count(Published::Confirmed) + count(Published::Refused), 4, "{published:?}");
    assert!(count(Published::Refused) >= 1, "{published:?}");
}

#[tokio::test]
async fn a_wrong_password_is_an_error_without_the_password() {
    let fixture = Fixture::new().await;
    let url = fixture.vhost.url();
    let (_, place) = url.split_once('@').expect("a url with a user");
    let url = format!("amqp://guest:s3cret-pass@{place}");
    let broker = AmqpBroker::new(AmqpOptions::new(&url).expect("a good url"));
    let error = broker.publish_channel().await.err().expect("refused");
    let shown = format!("{error} {error:?} {broker:?} {}", broker.address());
    assert!(shown.contains("ACCESS_REFUSED"), "{shown}");
    assert!(!shown.contains("s3cret-pass"), "{shown}");
}

#[tokio::test]
async fn a_peer_that_accepts_and_stays_silent_is_given_up_with_all_that_was_begun() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let options = AmqpOptions::new(&format!("amqp://guest:guest@{address}/%2f"));
    let broker = AmqpBroker::new(options.expect("a good url"));
    let started = Instant::now();
    let reason = lost_reason(broker.consume(&subscription("q", 1)).await);
    assert!(reason.contains("no answer within 10 s"), "{reason}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    // The other end sees the connection closed, so no thread of lapin's waits for it.
    let (mut accepted, _) = silent.accept().expect("it connected");
    accepted.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut greeting = Vec::new();
    std::io::Read::read_to_end(&mut accepted, &mut greeting).expect("closed by the broker");
    assert_eq!(greeting, b"AMQP\x00\x00\x09\x01");
}
