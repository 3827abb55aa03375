//! The one publishing task: everything that the worker publishes goes through it, in groups, until confirmed.
//!
//! A request is answered only when the broker has said what became of its message. A lost connection is opened again
//! and the group published again under the same ids. lapin swaps the confirms of tasks that share a channel, so there
//! is one task and one channel, on a connection that consumes nothing: a publishing connection stops sending while
//! the broker is in alarm, and acks must not wait for that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Broker, BrokerError, PublishChannel, Published};
use crate::backoff::Reconnect;
use crate::failpoint::{self, Point};
use crate::message::Message;
use crate::telemetry::Health;

/// Most messages in one group; a group is confirmed as a whole before the next one is sent.
const GROUP_MAX: usize = 256;

/// Requests that may wait while a group is under way: one more group.
const WAITING_MAX: usize = GROUP_MAX;

/// How often queues that are gone are made again: each time costs a connection that others publish on.
const ENSURE_INTERVAL: Duration = Duration::from_secs(5);

/// Name in [`Health`].
const PART: &str = "publishing connection";

/// Publishes messages and waits for the broker's confirmation; clones share one channel.
#[derive(Clone, Debug)]
pub struct Publisher {
    requests: mpsc::Sender<Request>,
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No queue is bound for it, or it may not be written there: create the queue or the binding, or grant the right.
    #[error(
        "no queue takes messages of exchange {exchange:?} with routing key {routing_key:?}: {reason}"
    )]
    Unroutable {
        /// The exchange, empty for the default one.
        exchange: String,
        /// The routing key.
        routing_key: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker refused it with a nack, for a full queue or an internal error: try again later.
    #[error(
        "the broker refused a message for exchange {exchange:?} with routing key {routing_key:?}"
    )]
    Refused {
        /// The exchange, empty for the default one.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The message cannot be sent as it is: change it.
    #[error(
        "a message for exchange {exchange:?} with routing key {routing_key:?} cannot be sent: {reason}"
    )]
    Unsendable {
        /// The exchange, empty for the default one.
        exchange: String,
        /// The routing key.
        routing_key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The worker is shutting down: the message may or may not have been published.
    #[error("the worker is shutting down")]
    Closed,
}

#[derive(Debug)]
struct Request {
    message: Arc<Message>,
    answer: oneshot::Sender<Published>,
}

impl Publisher {
    /// Publishes persistent and mandatory, and returns when the broker has confirmed it.
    ///
    /// Give the message an id that is the same at each try: it is published again after a lost connection.
    ///
    /// # Errors
    ///
    /// [`PublishError::Unroutable`], [`PublishError::Refused`] and [`PublishError::Unsendable`] are the broker's
    /// answers, [`PublishError::Closed`] is a shutdown. A broker that is not there is waited for.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the message may or may not be published.
    pub async fn publish(&self, message: impl Into<Arc<Message>>) -> Result<(), PublishError> {
        let message = message.into();
        let (answer, answered) = oneshot::channel();
        let request = Request { message: Arc::clone(&message), answer };
        self.requests.send(request).await.map_err(|_| PublishError::Closed)?;
        let target = || (message.exchange.clone(), message.routing_key.clone());
        match answered.await {
            Ok(Published::Confirmed) => Ok(()),
            Ok(Published::Unroutable(reason)) => {
                let (exchange, routing_key) = target();
                Err(PublishError::Unroutable { exchange, routing_key, reason })
            }
            Ok(Published::Refused) => {
                let (exchange, routing_key) = target();
                Err(PublishError::Refused { exchange, routing_key })
            }
            Ok(Published::Unsendable(reason)) => {
                let (exchange, routing_key) = target();
                Err(PublishError::Unsendable { exchange, routing_key, reason })
            }
            Err(_) => Err(PublishError::Closed),
        }
    }
}

/// The task behind [`Publisher`], run by the supervisor.
pub(crate) struct PublisherTask {
    broker: Arc<dyn Broker>,
    /// Queues that must exist before anything is published.
    queues: BTreeSet<String>,
    /// Those of them that could not be made sure of on the last channel.
    refused: BTreeSet<String>,
    requests: mpsc::Receiver<Request>,
    channel: Option<Box<dyn PublishChannel>>,
    /// When it was opened, or last tried.
    opened: Instant,
    reconnect: Reconnect,
    health: Health,
}

impl PublisherTask {
    pub(crate) fn new(broker: Arc<dyn Broker>, health: Health) -> (Publisher, Self) {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let queues = BTreeSet::new();
        let task = Self {
            broker,
            queues,
            refused: BTreeSet::new(),
            requests,
            channel: None,
            opened: Instant::now(),
            reconnect: Reconnect::default(),
            health,
        };
        (Publisher { requests: sender }, task)
    }

    /// Queues that must exist before anything is published, from now on.
    pub(crate) fn keep_queues(&mut self, queues: BTreeSet<String>) {
        self.queues = queues;
    }

    /// Runs until `stopping`; requests that wait then are answered with [`PublishError::Closed`].
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                // Cancel-safe: what it received is in the group only if it returned.
                received = self.requests.recv_many(&mut group, GROUP_MAX) => {
                    if received == 0 {
                        break;
                    }
                }
            }
            // Whoever asked may have given up, after a timeout or in a drain: nothing is published for nobody.
            group.retain(|request: &Request| !request.answer.is_closed());
            let messages: Vec<_> =
                group.iter().map(|request| Arc::clone(&request.message)).collect();
            let published = tokio::select! {
                biased;
                published = self.publish_until_answered(&messages, &group) => published,
                // Every consumer has ended by then: nobody of ours waits for the answer.
                () = stopping.cancelled() => break,
            };
            if published.contains(&Published::Confirmed) {
                failpoint::reached(Point::Confirmed);
            }
            if published
                .iter()
                .zip(&messages)
                .any(|(outcome, message)| self.lost_queue(outcome, message))
            {
                // Somebody deleted a queue that we need, or it could not be made: a new channel tries again.
                if self.opened.elapsed() >= ENSURE_INTERVAL {
                    self.channel = None;
                    self.refused.clear();
                }
            }
            for (request, outcome) in group.drain(..).zip(published) {
                // The requester may be gone by now; the message is out, under its stable id.
                let _ = request.answer.send(outcome);
            }
        }
        if let Some(channel) = self.channel.take() {
            channel.close().await;
        }
    }

    fn lost_queue(&self, outcome: &Published, message: &Message) -> bool {
        matches!(outcome, Published::Unroutable(_))
            && message.exchange.is_empty()
            && self.queues.contains(&message.routing_key)
    }

    /// Empty only if nobody waits for the answer any more.
    async fn publish_until_answered(
        &mut self,
        messages: &[Arc<Message>],
        group: &[Request],
    ) -> Vec<Published> {
        while group.iter().any(|request| !request.answer.is_closed()) {
            match self.publish_once(messages).await {
                Ok(published) => {
                    assert_eq!(published.len(), messages.len(), "one answer a message");
                    return published;
                }
                Err(error) => {
                    self.channel = None;
                    let delay = self.reconnect.delay_after_loss();
                    self.health.fault(PART, error.to_string());
                    warn!(
                        error = %error, delay_ms = delay.as_millis() as u64,
                        "publishing connection lost, will connect again"
                    );
                    tokio::time::sleep(delay).await;
                }
            }
        }
        // What is wrong with the connection, whoever asks next finds out again.
        self.health.clear(PART);
        Vec::new()
    }

    async fn publish_once(
        &mut self,
        messages: &[Arc<Message>],
    ) -> Result<Vec<Published>, BrokerError> {
        let channel = match &mut self.channel {
            Some(channel) => channel,
            None => {
                let channel = self.open().await?;
                self.channel.insert(channel)
            }
        };
        let published = channel.publish(messages).await?;
        self.reconnect.connected();
        self.health.clear(PART);
        Ok(published)
    }

    async fn open(&mut self) -> Result<Box<dyn PublishChannel>, BrokerError> {
        self.opened = Instant::now();
        let mut channel = self.broker.publish_channel().await?;
        for queue in &self.queues {
            if self.refused.contains(queue) {
                continue;
            }
            if let Err(error) = channel.ensure_queue(queue).await {
                // Not again on the next channel: one queue that cannot be made is not to stop all publishing. What
                // is meant for it comes back as unroutable, and is a fault of whoever sent it.
                warn!(queue, error = %error, "a queue that is published to cannot be made sure of");
                self.refused.insert(queue.clone());
                return Err(error);
            }
        }
        info!(broker = %self.broker.address(), "publishing connection is open");
        Ok(channel)
    }
}
