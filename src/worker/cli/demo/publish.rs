//! The producer of the demo: publishes the plan in its sequence, and writes down what the broker confirmed.
//!
//! A batch whose confirmation got lost is published again under the same ids, as any careful producer does; that makes
//! more twins and loses nothing.

use std::sync::Arc;
use std::time::Duration;

use super::ledger::Ledger;
use super::orders::Plan;
use crate::{Broker, BrokerError, Message, PublishChannel, Published};

/// Messages that are confirmed together.
const BATCH: usize = 256;

/// Connections that are tried, one after the other, to get one batch confirmed.
const TRIES_MAX: u32 = 20;

const TRY_AGAIN_DELAY: Duration = Duration::from_millis(500);

/// What to publish, where to, and who is told.
pub(super) struct Producer {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) queue: String,
}

/// Why the producer gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishingError {
    #[error("publishing the orders: {0}")]
    Broker(#[source] BrokerError),
    #[error("publishing order {id}: the broker said {answer:?}")]
    NotTaken { id: String, answer: Published },
}

impl Producer {
    /// Publishes all until it is confirmed.
    pub(super) async fn run(self) -> Result<(), PublishingError> {
        let mut channel = None;
        for numbers in self.plan.sequence().chunks(BATCH) {
            let message = |number: &usize| self.plan.message(*number, &self.queue).map(Arc::new);
            let batch: Vec<Arc<Message>> = numbers.iter().filter_map(message).collect();
            let answers = self.publish(&mut channel, &batch).await?;
            for (&number, answer) in numbers.iter().zip(answers) {
                if answer != Published::Confirmed {
                    let id = self.plan.id(number);
                    return Err(PublishingError::NotTaken { id, answer });
                }
                self.ledger.confirmed(number);
            }
            // The in-process broker answers at once: the consumer shall have its turn all the same.
            tokio::task::yield_now().await;
        }
        if let Some(channel) = channel {
            channel.close().await;
        }
        Ok(())
    }

    async fn publish(
        &self,
        channel: &mut Option<Box<dyn PublishChannel>>,
        batch: &[Arc<Message>],
    ) -> Result<Vec<Published>, PublishingError> {
        let mut tries = 0;
        loop {
            match self.try_publish(channel, batch).await {
                Ok(answers) => return Ok(answers),
                Err(error) if tries == TRIES_MAX => return Err(PublishingError::Broker(error)),
                Err(_) => *channel = None,
            }
            tries += 1;
            tokio::time::sleep(TRY_AGAIN_DELAY).await;
        }
    }

    async fn try_publish(
        &self,
        channel: &mut Option<Box<dyn PublishChannel>>,
        batch: &[Arc<Message>],
    ) -> Result<Vec<Published>, BrokerError> {
        let open = match channel {
            Some(open) => open,
            None => channel.insert(self.broker.publish_channel().await?),
        };
        open.publish(batch).await
    }
}
