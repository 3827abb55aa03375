//! A broker with RabbitMQ's rules and a network before it that loses, delays and cuts, by the seed.
//!
//! `queues.rs` has the rules, `network.rs` the frames under way and what happens to them, `consume.rs` and `publish.rs`
//! what a worker holds. Every frame takes time; what is under way when a connection is lost may arrive or not, and the
//! two sides notice the loss at different times. Writes into the history what broker and worker could see.

use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};

use crate::broker::{Broker, BrokerError, PublishChannel, Session, Subscription};

mod consume;
mod losses;
mod network;
mod publish;
mod queues;
mod routes;

pub(super) use self::losses::Loss;
pub(super) use self::network::{Network, Weather};
pub(super) use self::queues::Kind;
pub(super) use self::routes::Counts;

/// The broker as one life of a worker sees it.
#[derive(Clone)]
pub(super) struct BrokerOf {
    pub(super) network: Network,
    pub(super) life: u32,
}

impl Broker for BrokerOf {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            self.network.connect(self.life).await?;
            consume::open(&self.network, self.life, subscription)
        }
        .boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        async move {
            self.network.connect(self.life).await?;
            Ok(publish::open(&self.network, self.life))
        }
        .boxed()
    }

    fn address(&self) -> String {
        "simulated".to_owned()
    }
}

fn lost(reason: &str) -> BrokerError {
    BrokerError::Lost { address: "simulated".to_owned(), reason: reason.to_owned() }
}

/// As milliseconds.
const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
