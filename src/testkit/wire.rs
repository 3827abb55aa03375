//! The wire between a worker and the broker in the process: notes what is published, and can keep acks to itself.
//!
//! Order and contents are the broker's; nothing is changed on the way. Knows nothing of stores.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};

use super::fault::Faults;
use crate::broker::{
    AckChannel, Broker, BrokerError, MemoryBroker, PublishChannel, Published, Session, Subscription,
};
use crate::message::Message;

/// Who published a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Test,
    Worker,
}

/// A message that the broker took.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) message: Arc<Message>,
    pub(super) by: By,
}

/// A broker that stands before the one in the process; clones are the same wire.
#[derive(Clone)]
pub(super) struct Wire {
    broker: MemoryBroker,
    shared: Arc<Shared>,
}

struct Shared {
    faults: Arc<Faults>,
    log: Mutex<Vec<Logged>>,
    /// Acks are not passed on.
    holds_acks: AtomicBool,
    /// Per queue the tags of its last session that its consumer has not acked.
    outstanding: Mutex<HashMap<String, BTreeSet<u64>>>,
}

impl Shared {
    fn outstanding(&self) -> MutexGuard<'_, HashMap<String, BTreeSet<u64>>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// Whether the test has published anything.
    pub(super) fn has_inbound(&self) -> bool {
        self.log().iter().any(|logged| logged.by == By::Test)
    }

    pub(super) fn new(broker: MemoryBroker, faults: Arc<Faults>) -> Self {
        let shared = Shared {
            faults,
            log: Mutex::default(),
            holds_acks: AtomicBool::new(false),
            outstanding: Mutex::default(),
        };
        Self { broker, shared: Arc::new(shared) }
    }

    /// Publishes for the test; `false` if no queue takes the message.
    pub(super) fn publish(&self, message: Message) -> bool {
        let message = Arc::new(message);
        // Noted first: whoever is woken by it may publish at once.
        self.shared.log().push(Logged { message: Arc::clone(&message), by: By::Test });
        self.broker.publish(message)
    }

    /// All that the broker took, in order.
    pub(super) fn log(&self) -> Vec<Logged> {
        self.shared.log().clone()
    }

    pub(super) fn hold_acks(&self) {
        self.shared.holds_acks.store(true, Ordering::Release);
    }

    /// Has the broker deliver again what was acked meanwhile; `false` if nothing was held.
    pub(super) fn deliver_again(&self) -> bool {
        let held = self.shared.holds_acks.swap(false, Ordering::AcqRel);
        if held {
            self.broker.disconnect_all();
        }
        held
    }

    /// Whether the consumer of the queue has acked all that it can get.
    pub(super) fn is_settled(&self, queue: &str, prefetch: u16) -> bool {
        let (ready, unacked) = self.broker.depth(queue);
        if !self.shared.holds_acks.load(Ordering::Acquire) {
            return (ready, unacked) == (0, 0);
        }
        let is_acked = self.shared.outstanding().get(queue).is_none_or(BTreeSet::is_empty);
        is_acked && (ready == 0 || unacked >= usize::from(prefetch))
    }
}

impl Broker for Wire {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let Session { deliveries, acks } = self.broker.consume(subscription).await?;
            let queue = subscription.queue.clone();
            self.shared.outstanding().insert(queue.clone(), BTreeSet::new());
            let deliveries = deliveries.inspect({
                let (shared, queue) = (Arc::clone(&self.shared), queue.clone());
                move |delivery| {
                    if let Ok(delivery) = delivery {
                        let mut outstanding = shared.outstanding();
                        outstanding.entry(queue.clone()).or_default().insert(delivery.tag);
                    }
                }
            });
            let acks = Box::new(WireAcks { acks, queue, shared: Arc::clone(&self.shared) });
            Ok(Session { deliveries: deliveries.boxed(), acks })
        }
        .boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        async move {
            let channel = self.broker.publish_channel().await?;
            let shared = Arc::clone(&self.shared);
            let channel: Box<dyn PublishChannel> = Box::new(WireChannel { channel, shared });
            Ok(channel)
        }
        .boxed()
    }

    fn address(&self) -> String {
        self.broker.address()
    }
}

struct WireAcks {
    acks: Box<dyn AckChannel>,
    queue: String,
    shared: Arc<Shared>,
}

impl AckChannel for WireAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        if let Some(tags) = self.shared.outstanding().get_mut(&self.queue) {
            if multiple {
                tags.retain(|outstanding| *outstanding > tag);
            } else {
                tags.remove(&tag);
            }
        }
        if self.shared.holds_acks.load(Ordering::Acquire) {
            return std::future::ready(Ok(())).boxed();
        }
        self.acks.ack(tag, multiple)
    }

    fn closed(&self) -> BoxFuture<'static, BrokerError> {
        self.acks.closed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.acks.close()
    }
}

struct WireChannel {
    channel: Box<dyn PublishChannel>,
    shared: Arc<Shared>,
}

impl PublishChannel for WireChannel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.channel.ensure_queue(queue)
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        async move {
            let answers = self.channel.publish(batch).await?;
            let confirmed: Vec<Arc<Message>> = batch
                .iter()
                .zip(&answers)
                .filter(|(_, answer)| **answer == Published::Confirmed)
                .map(|(message, _)| Arc::clone(message))
                .collect();
            let logged = confirmed.iter().cloned();
            self.shared.log().extend(logged.map(|message| Logged { message, by: By::Worker }));
            if !confirmed.is_empty() && self.shared.faults.at_publish(&confirmed) {
                return std::future::pending().await;
            }
            Ok(answers)
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.channel.close()
    }
}
