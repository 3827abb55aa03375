//! What an embedder chooses: broker, store, shutdown, and per queue what is consumed and how.
//!
//! Plain data with defaults; each component validates its own part when it is made.

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Retry;
use crate::broker::{AmqpBroker, AmqpOptions, AmqpUrlError, Broker, Declare, MemoryBroker, Owner};
use crate::identity::IdentityRules;
use crate::payload::Codec;
use crate::store::StoreOptions;

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
        }
    }
}
