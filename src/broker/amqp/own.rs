//! Makes sure that the queue exists and that nobody consumes it beside us.
//!
//! A classic queue is consumed exclusively; a quorum queue must have `x-single-active-consumer`, because the broker
//! does not know exclusive consumers there. Declarations are made on channels that are thrown away: a refusal closes
//! the channel. Declares a queue under its own name only if it was there a moment before, or if asked to.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use tracing::warn;

use super::link::Link;
use super::probe::{Description, Kind, QUEUE_TYPE, SINGLE_ACTIVE_CONSUMER};
use crate::broker::{BrokerError, Declare, Owner, Subscription};

/// Most declarations to find out what a queue is; it has about 20 arguments.
const ROUNDS_MAX: usize = 32;

const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// How the queue is to be consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consume {
    /// The broker refuses everybody else.
    Exclusive,
    /// The queue has a single active consumer, or is shared on purpose.
    Plain,
}

/// What the broker said to a declaration.
pub(super) enum Declared {
    Ok,
    Refused { code: u16, text: String },
}

/// Declares the queue as the subscription wants it, and finds out how to be its only consumer.
pub(super) async fn own(link: &Link, subscription: &Subscription) -> Result<Consume, BrokerError> {
    let is_as_declared = declare(link, subscription).await?;
    match (subscription.owner, subscription.declare) {
        (Owner::Shared, _) => Ok(Consume::Plain),
        (Owner::Single, Declare::Quorum) if is_as_declared => Ok(Consume::Plain),
        (Owner::Single, Declare::Classic) if is_as_declared => Ok(Consume::Exclusive),
        (Owner::Single, _) => {
            let found = describe(link, &subscription.queue).await?;
            decide(subscription, &found)
        }
    }
}

/// Makes sure that the queue exists; false if it was there with other arguments than ours.
async fn declare(link: &Link, subscription: &Subscription) -> Result<bool, BrokerError> {
    let queue = &subscription.queue;
    let mut options = QueueDeclareOptions::durable();
    let mut arguments = FieldTable::default();
    match subscription.declare {
        Declare::Passive => options = options.passive(),
        Declare::Quorum => {
            arguments.insert(QUEUE_TYPE.into(), AMQPValue::LongString("quorum".into()));
            arguments.insert(SINGLE_ACTIVE_CONSUMER.into(), AMQPValue::Boolean(true));
        }
        // Said in so many words, for vhosts whose default is another type.
        Declare::Classic => {
            arguments.insert(QUEUE_TYPE.into(), AMQPValue::LongString("classic".into()));
        }
    }
    match try_declare(link, queue, options, arguments).await? {
        Declared::Ok => Ok(subscription.declare != Declare::Passive),
        Declared::Refused { code: PRECONDITION_FAILED, .. } => Ok(false),
        Declared::Refused { code: NOT_FOUND, .. } => Err(link
            .place
            .lost_by(format!("queue {queue:?} does not exist (404): create it, or set declare"))),
        Declared::Refused { text, .. } => {
            Err(link.place.lost_by(format!("declaring queue {queue:?}: {text}")))
        }
    }
}

/// Asks until the broker agrees to our description of the queue.
async fn describe(link: &Link, queue: &str) -> Result<Description, BrokerError> {
    let mut description = Description::new();
    let mut last = "its arguments do not settle".to_owned();
    for _ in 0..ROUNDS_MAX {
        let Some(arguments) = description.arguments() else {
            break;
        };
        let options = QueueDeclareOptions {
            durable: description.durable,
            auto_delete: description.auto_delete,
            ..QueueDeclareOptions::default()
        };
        match try_declare(link, queue, options, arguments).await? {
            Declared::Ok => return Ok(description),
            Declared::Refused { text, .. } => {
                let learned = description.learn(&text, queue, link.place.url().vhost());
                last = text;
                // A stream refuses most of what can be asked about it.
                if learned && description.kind() == Some(Kind::Stream) {
                    return Ok(description);
                }
                if !learned {
                    break;
                }
            }
        }
    }
    Err(BrokerError::NotOwnable {
        queue: queue.to_owned(),
        problem: format!("does not say whether it can have a single consumer: {last}"),
        remedy: "give the user the permission to configure the queue, or set owner = \"shared\" if nobody else \
                 consumes it"
            .to_owned(),
    })
}

fn decide(subscription: &Subscription, found: &Description) -> Result<Consume, BrokerError> {
    let queue = &subscription.queue;
    let not_ownable = |problem: &str, remedy: &str| BrokerError::NotOwnable {
        queue: queue.clone(),
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    };
    match (found.kind(), subscription.declare) {
        (Some(Kind::Classic), Declare::Quorum) => {
            return Err(not_ownable(
                "exists as a classic queue",
                "delete it, or set declare = \"passive\"",
            ));
        }
        (Some(Kind::Quorum), Declare::Classic) => {
            return Err(not_ownable(
                "exists as a quorum queue",
                "delete it, or set declare = \"passive\"",
            ));
        }
        _ => {}
    }
    if found.auto_delete {
        warn!(
            queue,
            "the broker deletes this queue, with its messages, when the worker disconnects"
        );
    }
    if let Some(message_ttl_ms) = found.message_ttl_ms() {
        warn!(
            queue,
            message_ttl_ms,
            "the broker drops messages that wait longer in this queue, handled or not: declare it without x-message-ttl"
        );
    }
    match found.kind() {
        // An exclusive consumer is refused there.
        Some(Kind::Classic | Kind::Quorum) if found.single_active_consumer() => Ok(Consume::Plain),
        Some(Kind::Classic) => Ok(Consume::Exclusive),
        Some(Kind::Quorum) => Err(not_ownable(
            "is a quorum queue without x-single-active-consumer: another worker could consume it at the same time",
            "declare it anew with x-single-active-consumer = true, or set owner = \"shared\"",
        )),
        Some(Kind::Stream) => Err(not_ownable(
            "is a stream, from which an ack removes nothing",
            "use a quorum or a classic queue",
        )),
        None => Err(not_ownable(
            "is of an unknown type",
            "use a quorum or a classic queue, or set owner = \"shared\"",
        )),
    }
}

/// Declares on a channel of its own, which a refusal closes.
pub(super) async fn try_declare(
    link: &Link,
    queue: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<Declared, BrokerError> {
    let doing = "declaring a queue";
    let name = ShortString::try_new(queue)
        .map_err(|error| link.place.lost_by(format!("queue {queue:?}: {error}")))?;
    let channel = link.channel().await?;
    let asked = channel.queue_declare(name, options, arguments);
    match link.place.reply(doing, asked).await? {
        Ok(_) => {
            link.place.answer(doing, channel.close(200, "OK".into())).await?;
            Ok(Declared::Ok)
        }
        Err(error) => match error.kind() {
            lapin::ErrorKind::ProtocolError(refusal) if error.is_amqp_soft_error() => {
                Ok(Declared::Refused {
                    code: refusal.get_id(),
                    text: refusal.get_message().to_string(),
                })
            }
            _ => Err(link.place.lost(doing, &error)),
        },
    }
}
