//! Consume RabbitMQ queues so that the effect of every message happens once.
//!
//! RabbitMQ delivers at least once: connections drop, consumers crash, producers repeat. A [`Worker`] remembers what
//! was done in a store beside it, runs the messages of one key in order, and acknowledges a message only after its
//! outcome is on stable storage. You write an async function; one process runs it, and no database server is needed.
//!
//! # The promise
//!
//! For what is delivered to the one worker that owns its queue and its store:
//!
//! - Nothing is lost after its ack: the outcome was written and fdatasync'ed before, and a dead letter confirmed.
//! - State of the key, outgoing messages, result and record of a message are one atomic commit: all or nothing.
//! - A message that is done does not run again while its retention lasts, whatever is delivered.
//! - A handler runs at least once, and never twice at a time for one message id or one key. After a crash, a timeout
//!   or an error it runs again, so call other systems in steps: [`Context::once`].
//! - Outgoing messages leave in commit order per key, confirmed, under ids that never change.
//! - Messages of one key run in delivery order, and a failing one holds back its own key only.
//! - Every delivery ends done, as a duplicate, dead-lettered with its reason, or back at the broker.
//! - After a failed write nothing more is acknowledged, and the worker ends with an error.
//!
//! # Example
//!
//! ```no_run
//! use onceward::{Context, Options, QueueOptions, Source, Worker};
//!
//! #[derive(serde::Deserialize)]
//! struct Charge {
//!     cents: i64,
//! }
//!
//! async fn on_charge(cx: &mut Context, charge: Charge) -> onceward::Result {
//!     if charge.cents <= 0 {
//!         return Err(onceward::reject("nothing to charge")); // Dead-lettered now.
//!     }
//!     // An error by `?` would be another attempt.
//!     println!("{} cents under key {}", charge.cents, cx.effect_key("charge"));
//!     Ok(())
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let options = Options::new("amqp://guest:guest@127.0.0.1:5672/%2f", "./onceward-data")?;
//!     let mut charges = QueueOptions::new("charges");
//!     charges.identity.key = vec![Source::Header("x-account".to_owned())];
//!     Worker::new(options).queue_with(charges, on_charge).run().await?;
//!     Ok(())
//! }
//! ```
//!
//! # What to look at
//!
//! - **Running it:** [`Worker`], [`Options`] and [`QueueOptions`]; [`RunError`] says why it stopped.
//!   [`Worker::run`] drains on SIGTERM and SIGINT, [`Worker::run_until`] touches no signals.
//! - **Handling:** [`Handler`] for a function or a struct, [`Context`] for one attempt, [`reject`] and [`retry_after`]
//!   for what is no ordinary error, [`Retry`] for when the next attempt is. Bodies are JSON or postcard by [`Codec`],
//!   or raw as [`Body`]. [`BatchHandler`] takes several messages of a key at once.
//! - **Effects:** [`Context::state`] and [`State`], or [`stateful`]; [`Context::publish`] and [`Context::send`];
//!   [`Context::once`] and its kin for calls to other systems; a value that the handler returns, by [`OnDuplicate`].
//! - **Telling messages apart:** [`IdentityRules`]. A [`Source`] says where the id and the ordering key are, a
//!   [`Scope`] where an id is unique, [`OnMissingId`] and [`OnConflict`] what happens without an id and with another
//!   body under a known one.
//! - **Brokers:** [`AmqpBroker`] is RabbitMQ, [`MemoryBroker`] a broker in the process (the URL `memory:`);
//!   [`Owner`] and [`Declare`] say whose the queue is and how it comes to exist. [`Worker::publisher`] publishes,
//!   confirmed.
//! - **The store:** [`StoreOptions`]; [`inspect`] tells what it knows of one id once its worker has stopped.
//! - **Seeing it:** [`Health`], and [`METRICS`] for the table of all metrics. Metrics and logs go through the facades
//!   `metrics` and `tracing`: install a recorder and a subscriber of your own, this library installs none.
//!
//! # Features
//!
//! - `worker` (default): the stock binary with its command line, configuration file, HTTP and command targets.
//!   Without it an embedder's tree has neither clap nor axum nor reqwest.
//! - `tls`: TLS to the broker, and to HTTP targets.
//! - `testkit`: a test kit for your own handlers, module `testkit`: a broker and a disk in memory, crashes where you
//!   say, and `assert_idempotent`.
//! - `simulation`: for this project's own tests; it promises nothing to others.
//!
//! It runs on Unix, as the store locks and syncs its files by Unix means.
//!
//! # Stack
//!
//! A producer can nest headers so deep that the AMQP client overflows a thread of the usual size, and the broker
//! delivers that message again after the crash. Start your process with the environment variable `RUST_MIN_STACK` set
//! to [`STACK_BYTES_MIN`] or more (`RUST_MIN_STACK=134217728` for a release build). It is read when the first thread
//! starts, so a library cannot set it; the stock binary starts itself again with it.

mod backoff;
mod batch;
mod broker;
mod clock;
mod context;
mod effects;
mod failpoint;
#[cfg(test)]
mod fuzz;
mod handler;
mod identity;
mod message;
mod options;
mod outbox;
mod payload;
mod planted;
mod runtime;
#[cfg(feature = "simulation")]
pub mod simulation;
mod store;
mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
#[cfg(feature = "worker")]
pub mod worker;

pub use crate::backoff::Retry;
pub use crate::batch::{Batch, BatchFn, BatchHandler, BatchItem};
pub use crate::broker::{
    AckChannel, AmqpBroker, AmqpOptions, AmqpTls, AmqpUrlError, Broker, BrokerError, Declare,
    Deliveries, Delivery, MemoryBroker, OUTGOING_ID_HEADER, Owner, PublishChannel, PublishError,
    Published, Publisher, STACK_BYTES_MIN, Session, Subscription,
};
pub use crate::clock::Clock;
pub use crate::context::Context;
pub use crate::effects::{Asked, EffectError, OldState, State};
pub use crate::handler::{
    HandleError, Handler, HandlerFn, Result, Stateful, StatefulFn, reject, retry_after, stateful,
};
pub use crate::identity::{
    ID_BYTES_MAX, IdentityRules, KEY_BYTES_MAX, OnMissingId, ParseSourceError, SEQUENCE_MAX,
    SOURCE_NAMES, Scope, Source,
};
pub use crate::message::{
    HEADER_DEPTH_MAX, HeaderValue, Headers, Key, Message, MessageId, Properties, escape,
};
pub use crate::options::{
    BATCH_MAX, BREAKER_FAILURES_MAX, BreakerOptions, CLASSES_MAX, OnConflict, OnDuplicate,
    OnExpired, OnUnroutable, OptionError, Options, QueueOptions, RATE_MAX, RateLimit, RetentionBy,
};
pub use crate::payload::{Body, Codec, DecodeError, FromMessage, Reply};
pub use crate::runtime::{RunError, Worker};
#[cfg(any(test, feature = "testkit"))]
pub use crate::store::SimulatedDisk;
pub use crate::store::{
    Compacted, Damage, DeadNote, ExportError, Exported, ForgetError, ForgetNote, ForgetRequest,
    Forgotten, ImportError, Imported, InspectScope, Inspection, Known, MEMORY_BYTES_PER_ID,
    Outcome, QueueStats, Reason, StoreError, StoreKey, StoreKeyError, StoreOptions, StoreStats,
    Verified, Watch, compact, export, forget, import, inspect, stats, verify,
};
pub use crate::telemetry::{Health, METRICS, Metric, MetricKind, Readiness};

/// Keeps the code in the README compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
