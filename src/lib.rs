//! Consume RabbitMQ queues so that the effect of every message happens once.
mod backoff;
mod broker;
mod clock;
mod handler;
mod identity;
mod message;
mod options;
mod payload;
mod runtime;
mod store;
mod telemetry;
#[cfg(feature = "worker")]
pub mod worker;

pub use crate::backoff::Retry;
pub use crate::broker::{
    AckChannel, AmqpBroker, AmqpOptions, AmqpUrlError, Broker, BrokerError, Declare, Deliveries,
    Delivery, MemoryBroker, OUTGOING_ID_HEADER, Owner, PublishChannel, PublishError, Published,
    Publisher, STACK_BYTES_MIN, Session, Subscription,
};
pub use crate::clock::Clock;
pub use crate::handler::{Context, HandleError, Handler, HandlerFn, Result, reject, retry_after};
pub use crate::identity::{
    ID_BYTES_MAX, IdentityRules, KEY_BYTES_MAX, OnMissingId, ParseSourceError, SOURCE_NAMES, Scope,
    Source,
};
pub use crate::message::{
    HEADER_DEPTH_MAX, HeaderValue, Headers, Key, Message, MessageId, Properties, escape,
};
pub use crate::options::{OnConflict, Options, QueueOptions};
pub use crate::payload::{Body, Codec, DecodeError, FromMessage};
pub use crate::runtime::{RunError, Worker};
#[cfg(any(test, feature = "testkit"))]
pub use crate::store::SimulatedDisk;
pub use crate::store::{
    DeadNote, InspectScope, Inspection, MEMORY_BYTES_PER_ID, Outcome, Reason, StoreError,
    StoreOptions, inspect,
};
pub use crate::telemetry::{Health, METRICS, Metric, MetricKind, Readiness};
