//! What the runtime needs of a broker: deliveries, acks on one channel, confirmed publishing.
//!
//! A [`Broker`] makes sessions; it never reconnects by itself and never settles by itself. A session that broke is
//! dropped whole: its tags mean nothing to the next one. Knows nothing of stores, claims or handlers.

use std::num::NonZeroU16;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use crate::message::OUTGOING_ID_HEADER;
use crate::message::{HeaderValue, Message, Properties};

pub(crate) mod amqp;
pub(crate) mod memory;
mod publisher;

pub use self::amqp::{AmqpBroker, AmqpOptions, AmqpTls, AmqpUrlError, STACK_BYTES_MIN};
pub use self::memory::MemoryBroker;
pub(crate) use self::publisher::PublisherTask;
pub use self::publisher::{PublishError, Publisher};

/// A message on a channel.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Number of the delivery on its channel, rising from 1; worthless on any other channel.
    pub tag: u64,
    /// Whether this queue delivered the message before.
    pub redelivered: bool,
    /// The message.
    pub message: Arc<Message>,
    /// What of the message could not be represented, if anything: it is dead-lettered as `decode`.
    pub defect: Option<String>,
}

/// How a queue comes to exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declare {
    /// It must exist (default).
    #[default]
    Passive,
    /// Declared as a durable quorum queue with a single active consumer.
    Quorum,
    /// Declared as a durable classic queue.
    Classic,
}

/// Who may consume the queue beside this worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: exclusive on classic queues, `x-single-active-consumer` demanded on quorum queues (default).
    #[default]
    Single,
    /// Anybody: another worker with a store of its own makes the same effects again, and order per key is gone.
    Shared,
}

/// What to consume and how.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Name of the queue at the broker.
    pub queue: String,
    /// How it comes to exist.
    pub declare: Declare,
    /// Who else may consume it.
    pub owner: Owner,
    /// Most unacknowledged deliveries at a time.
    pub prefetch: NonZeroU16,
}

/// Deliveries of one channel in order; an error is the last thing it yields.
pub type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

/// One consuming channel on a connection of its own.
pub struct Session {
    /// What arrives.
    pub deliveries: Deliveries,
    /// How it is acknowledged.
    pub acks: Box<dyn AckChannel>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session { .. }")
    }
}

/// Acknowledges deliveries of its own channel, by one caller at a time.
pub trait AckChannel: Send {
    /// Acks `tag`, with `multiple` also every earlier one that is outstanding.
    ///
    /// `Ok` means that the frame was written, not that the broker has read it.
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// Ready when the channel is gone, with why: also while nobody looks for deliveries or acks.
    ///
    /// A channel that cannot tell is never ready.
    fn closed(&self) -> BoxFuture<'static, BrokerError> {
        Box::pin(std::future::pending())
    }

    /// Closes channel and connection: the broker requeues what is not acked, in its place.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A publishing channel with confirms, on a connection of its own, used by one task.
pub trait PublishChannel: Send {
    /// Makes sure that a durable queue of this name exists.
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Publishes all, persistent and mandatory, and waits until the broker has said of each what became of it.
    ///
    /// An error says nothing about any of them: publish them again, under the same ids.
    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>>;

    /// Closes channel and connection.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What became of one published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// In all the queues that it was routed to, on stable storage there.
    Confirmed,
    /// No queue is bound for it, or it may not be written there: the broker has dropped it.
    Unroutable(String),
    /// The broker could not take it (a full queue, an internal error).
    Refused,
    /// It cannot be sent as it is, at no time: too long a name, headers beyond a frame.
    Unsendable(String),
}

/// Makes sessions.
pub trait Broker: Send + Sync + 'static {
    /// Opens a connection and a channel, sets the prefetch and consumes.
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>>;

    /// Opens a connection and a channel with confirms.
    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>>;

    /// Where it is, without the password.
    fn address(&self) -> String;
}

/// What went wrong with a session, by what is to be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The connection or channel is gone, or never came to be: connect again.
    #[error("broker {address}: {reason}")]
    Lost {
        /// Where the broker is, without the password.
        address: String,
        /// What was being done and what the broker or the system said.
        reason: String,
    },
    /// The broker sent what the client cannot parse: perhaps the message at the head of the queue.
    #[error("queue {queue:?} delivered bytes that the client cannot parse: {reason}")]
    Unreadable {
        /// The queue that was being consumed.
        queue: String,
        /// What the parser said.
        reason: String,
    },
    /// The queue cannot be owned by this worker alone: change the queue or the options.
    #[error("queue {queue:?} {problem}; {remedy}")]
    NotOwnable {
        /// The queue.
        queue: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: String,
    },
}

/// Whether two sets of properties belong to the same message of ours.
///
/// RabbitMQ gives back an unroutable message whole but without its number, and lapin attaches it to the wrong confirm
/// (4.12.3: 35-58 of 429); so it is found by the ids that we gave it.
pub(crate) fn same_outgoing(a: &Properties, b: &Properties) -> bool {
    let id = |properties: &Properties| match properties.headers.get(OUTGOING_ID_HEADER) {
        Some(HeaderValue::Bytes(bytes)) => Some(bytes.clone()),
        _ => None,
    };
    a.message_id == b.message_id && id(a) == id(b)
}
