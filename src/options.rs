//! What an embedder chooses: broker, store, shutdown, and per queue what is consumed and how.
//!
//! Plain data with defaults. What options of a queue say of each other is judged in `check`; each component validates
//! its own part when it is made.

mod check;
mod protect;

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Retry;
use crate::broker::{AmqpBroker, AmqpOptions, AmqpUrlError, Broker, Declare, MemoryBroker, Owner};
use crate::identity::IdentityRules;
use crate::payload::Codec;
use crate::store::StoreOptions;

pub use self::check::OptionError;
pub use self::protect::{BREAKER_FAILURES_MAX, BreakerOptions, RATE_MAX, RateLimit};

/// Broker, store and shutdown of a worker.
#[derive(Clone)]
pub struct Options {
    /// Where messages come from and go to.
    pub broker: Arc<dyn Broker>,
    /// Where outcomes are kept.
    pub store: StoreOptions,
    /// How long running handlers may go on after the shutdown began; default 30 seconds.
    pub drain: Duration,
}

impl Options {
    /// A worker for the RabbitMQ at `url` (`amqp://user:password@host:5672/%2f`) with its store in directory `path`.
    ///
    /// The url `memory:` is a new in-process broker.
    ///
    /// # Errors
    ///
    /// If the url is not one of AMQP; the message does not repeat the password.
    pub fn new(url: &str, path: impl Into<PathBuf>) -> Result<Self, AmqpUrlError> {
        let broker: Arc<dyn Broker> = if url == "memory:" {
            Arc::new(MemoryBroker::new())
        } else {
            Arc::new(AmqpBroker::new(AmqpOptions::new(url)?))
        };
        Ok(Self::with_broker(broker, StoreOptions::new(path)))
    }

    /// A worker on a broker that is already there.
    #[must_use]
    pub fn with_broker(broker: Arc<dyn Broker>, store: StoreOptions) -> Self {
        Self { broker, store, drain: Duration::from_secs(30) }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("broker", &self.broker.address())
            .field("store", &self.store)
            .field("drain", &self.drain)
            .finish()
    }
}

/// What happens to a message whose id is known with another body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Dead-letter it as `conflict` (default).
    #[default]
    DeadLetter,
    /// Acknowledge it as if it were a duplicate, counted as a conflict.
    Skip,
}

/// One queue: what is consumed and how.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Name of the queue at the broker.
    pub queue: String,
    /// How the queue comes to exist; default: it must exist.
    pub declare: Declare,
    /// Who else may consume it; default nobody.
    pub owner: Owner,
    /// Most unacknowledged deliveries; default 500, less than 256 costs throughput.
    pub prefetch: NonZeroU16,
    /// Most handlers at once; default 64; per key always 1.
    pub concurrency: NonZeroUsize,
    /// Longest time of one attempt; default 30 seconds.
    pub timeout: Duration,
    /// How long a duplicate is still known, counted from completion; default 7 days.
    pub retention: Duration,
    /// When failed messages run again.
    pub retry: Retry,
    /// How messages are told apart and ordered.
    pub identity: IdentityRules,
    /// What happens to a known id with another body.
    pub on_conflict: OnConflict,
    /// Name of the dead-letter queue; default the queue's name and `.dead`; declared durable if missing.
    pub dead_letter: String,
    /// Longest body in bytes that a handler gets; default 1 MiB; a longer one is dead-lettered as `too-large`.
    pub body_bytes_max: usize,
    /// How bodies are decoded.
    pub codec: Codec,
    /// Retention by the value of a header, for messages that have it; default none.
    pub retention_by: Option<RetentionBy>,
    /// What happens to a message whose record has expired.
    pub on_expired: OnExpired,
    /// What a duplicate of a message gets whose handler returned a value.
    pub on_duplicate: OnDuplicate,
    /// What happens to an outgoing message that no queue takes.
    pub on_unroutable: OnUnroutable,
    /// Largest state of one key, in bytes; default 64 KiB.
    pub state_bytes_max: usize,
    /// Largest result of a handler or a step, in bytes; default 64 KiB.
    pub result_bytes_max: usize,
    /// Most bytes of all that one message sends; default 16 MiB, the limit of RabbitMQ 4 for one message.
    pub outgoing_bytes_max: usize,
    /// Most messages of a key that a batch handler gets at once, at most [`BATCH_MAX`]; default 100.
    pub batch: NonZeroUsize,
    /// When it stops starting attempts because what the handler calls seems to be dead; `None` is never.
    pub breaker: Option<BreakerOptions>,
    /// Most attempts that start in a time; default any number.
    pub rate: Option<RateLimit>,
    /// The same for each tenant, if the scope of ids is a header; default any number.
    pub tenant_rate: Option<RateLimit>,
    /// The `consumer_timeout` of the broker, after which it takes back what is not acknowledged; default 30 minutes, as
    /// RabbitMQ's; `None` if it has none.
    ///
    /// A delivery older than half of it is told, and in the last tenth nothing more is taken in: it would be taken back
    /// with the old one.
    pub consumer_timeout: Option<Duration>,
    /// Most bytes of messages in work; default 256 MiB. With more nothing is taken in, one message always is.
    ///
    /// The client buffers what the broker has sent ahead, which can be as much again: when it may be more, the queue is
    /// consumed with a smaller prefetch.
    pub in_flight_bytes_max: usize,
}

/// Most messages in one batch of a key.
pub const BATCH_MAX: usize = 100;

/// Most retentions of their own that a queue can have beside its one: each is a journal in the store.
pub const CLASSES_MAX: usize = 64;

/// How long records are kept by the value of a header: short for telemetry, long for billing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionBy {
    /// Name of the header, whose value is a string.
    pub header: String,
    /// Retention by value, at most [`CLASSES_MAX`]; a message with another value, or none, has the queue's.
    pub values: BTreeMap<String, Duration>,
}

/// What happens to a message that arrives after its record has expired.
///
/// It is noticed for one more retention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExpired {
    /// It runs again, counted in `onceward_expired_total` (default).
    #[default]
    Process,
    /// It is dead-lettered as `expired`.
    DeadLetter,
}

/// What a duplicate of a message gets whose handler returned a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDuplicate {
    /// Its acknowledgement only (default).
    #[default]
    Ack,
    /// The stored result, published to its `reply-to` with its correlation id; so does the first one.
    Replay,
}

/// What happens to an outgoing message that no queue takes, or that the broker says can never be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnroutable {
    /// It is tried again until it goes; what its key sends later waits behind it (default).
    #[default]
    Hold,
    /// It goes to the dead-letter queue of the message that sent it, as `unroutable`.
    DeadLetter,
}

impl QueueOptions {
    /// The defaults, for the queue of this name at the broker.
    #[must_use]
    pub fn new(queue: impl Into<String>) -> Self {
        let queue = queue.into();
        Self {
            dead_letter: format!("{queue}.dead"),
            queue,
            declare: Declare::default(),
            owner: Owner::default(),
            prefetch: NonZeroU16::MIN.saturating_add(499),
            concurrency: NonZeroUsize::MIN.saturating_add(63),
            timeout: Duration::from_secs(30),
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            retry: Retry::default(),
            identity: IdentityRules::default(),
            on_conflict: OnConflict::default(),
            body_bytes_max: 1024 * 1024,
            codec: Codec::default(),
            retention_by: None,
            on_expired: OnExpired::default(),
            on_duplicate: OnDuplicate::default(),
            on_unroutable: OnUnroutable::default(),
            state_bytes_max: 64 * 1024,
            result_bytes_max: 64 * 1024,
            outgoing_bytes_max: 16 * 1024 * 1024,
            batch: NonZeroUsize::MIN.saturating_add(BATCH_MAX - 1),
            breaker: Some(BreakerOptions::default()),
            rate: None,
            tenant_rate: None,
            consumer_timeout: Some(Duration::from_secs(30 * 60)),
            in_flight_bytes_max: 256 * 1024 * 1024,
        }
    }
}
