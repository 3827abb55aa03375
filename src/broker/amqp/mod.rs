//! RabbitMQ by lapin: the only place that names it.
//!
//! Owns the translation between our vocabulary and AMQP 0-9-1: one connection for each consumed queue and one for
//! publishing, because a parse error or an alarm ends or stops a whole connection. Nothing is recovered here: a
//! session that broke says so once, with its last item, and the runtime opens another. No error text, `Debug` or
//! address shows the password.
//!
//! **Stack.** A producer can nest headers as deep as fits into a frame (26,000 levels in 128 KiB), and lapin parses
//! them by recursion, on a thread of its own. Set `RUST_MIN_STACK` to [`STACK_BYTES_MIN`] or more in the environment
//! *before the
//! process starts its first thread*, tokio's among them, or one such message aborts the process for as long as it is
//! in the queue. The stock binary does so; a library cannot.

mod convert;
mod link;
mod outgoing;
mod own;
mod probe;
mod progress;
mod publish;
#[cfg(feature = "worker")]
pub(crate) mod raw;
mod session;
#[cfg(feature = "tls")]
mod tls;
mod url;

use futures_util::future::{BoxFuture, FutureExt as _};

use self::link::Link;
pub use self::url::{AmqpOptions, AmqpTls, AmqpUrlError};
use super::{Broker, BrokerError, PublishChannel, Session, Subscription};

/// Stack in bytes that every thread needs to survive the deepest headers of one frame of 128 KiB.
///
/// Threads of the standard library and of tokio get it from the environment variable `RUST_MIN_STACK`. Memory is
/// reserved, not used, until such a message comes. Measured with lapin 4.12.3: parsing takes 32 to 48 MiB when it is
/// optimized, and 256 to 288 MiB when it is not.
pub const STACK_BYTES_MIN: usize = if cfg!(debug_assertions) { 512 } else { 128 } * 1024 * 1024;

/// RabbitMQ, or another broker that speaks AMQP 0-9-1 as it does.
#[derive(Debug)]
pub struct AmqpBroker {
    options: AmqpOptions,
}

impl AmqpBroker {
    /// The broker at the options' url; nothing is connected yet.
    #[must_use]
    pub const fn new(options: AmqpOptions) -> Self {
        Self { options }
    }
}

impl Broker for AmqpBroker {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let link = Link::open(&self.options).await?;
            session::open(link, subscription).await
        }
        .boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        publish::open(&self.options).boxed()
    }

    fn address(&self) -> String {
        self.options.url().address()
    }
}
