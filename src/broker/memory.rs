//! A broker in this process with RabbitMQ's semantics, for the demo, for tests and for benches.
//!
//! Delivery tags belong to a channel; an ack of an unknown tag closes the channel; what is unacknowledged when a
//! channel ends goes back to its original place, marked as redelivered. One exclusive consumer a queue. Messages
//! live in memory only and are gone with the process.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{
    AckChannel, Broker, BrokerError, Declare, Delivery, PublishChannel, Published, Session,
    Subscription,
};
use crate::message::Message;

/// The in-process broker; clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker {
    state: Arc<Mutex<State>>,
}

/// What happened so far, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryBrokerStats {
    /// Messages that were routed to a queue.
    pub published: u64,
    /// Deliveries, redeliveries among them.
    pub delivered: u64,
    /// Deliveries that were acknowledged.
    pub acked: u64,
    /// Channels closed for an ack of a tag that was not outstanding (RabbitMQ's 406).
    pub precondition_failed: u64,
}

impl MemoryBroker {
    /// An empty broker: queues must be declared before they are consumed or published to.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the queue if there is none of this name.
    pub fn declare(&self, queue: &str) {
        self.lock().queues.entry(queue.to_owned()).or_default();
    }

    /// Routes messages with this exchange and routing key to the queue as well.
    pub fn bind(&self, exchange: &str, routing_key: &str, queue: &str) {
        self.declare(queue);
        let binding = (exchange.to_owned(), routing_key.to_owned());
        self.lock().bindings.entry(binding).or_default().push(queue.to_owned());
    }

    /// Puts the message into the queues that it is routed to, and says whether there is any.
    pub fn publish(&self, message: impl Into<Arc<Message>>) -> bool {
        let message = message.into();
        let (routed, wakers) = self.lock().publish(&message);
        wakers.into_iter().for_each(Waker::wake);
        routed
    }

    /// Cuts every connection, as a restart of the broker does; the messages stay.
    pub fn disconnect_all(&self) {
        let wakers = {
            let mut state = self.lock();
            state.publish_generation += 1;
            let open: Vec<u64> = state.channels.keys().copied().collect();
            open.into_iter().filter_map(|channel| state.close(channel)).collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Messages in the queue: waiting ones and unacknowledged ones.
    #[must_use]
    pub fn depth(&self, queue: &str) -> (usize, usize) {
        let state = self.lock();
        let Some(found) = state.queues.get(queue) else {
            return (0, 0);
        };
        let unacked = found.channel.and_then(|id| state.channels.get(&id));
        (found.ready.len(), unacked.map_or(0, |channel| channel.unacked.len()))
    }

    /// Takes out all that waits in the queue, oldest first.
    #[must_use]
    pub fn take_all(&self, queue: &str) -> Vec<Arc<Message>> {
        let mut state = self.lock();
        let Some(found) = state.queues.get_mut(queue) else {
            return Vec::new();
        };
        found.ready.drain(..).map(|stored| stored.message).collect()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> MemoryBrokerStats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, subscription: &Subscription) -> Result<Session, BrokerError> {
        let name = &subscription.queue;
        let mut state = self.lock();
        if subscription.declare != Declare::Passive {
            state.queues.entry(name.clone()).or_default();
        }
        let channel = state.next_channel;
        let Some(queue) = state.queues.get_mut(name) else {
            return Err(lost(format!("no queue {name:?}")));
        };
        if queue.channel.is_some() {
            return Err(lost(format!("queue {name:?} is consumed by another consumer")));
        }
        queue.channel = Some(channel);
        state.next_channel += 1;
        state.channels.insert(
            channel,
            Channel {
                queue: name.clone(),
                prefetch: usize::from(subscription.prefetch.get()),
                next_tag: 1,
                unacked: VecDeque::new(),
                waker: None,
                over: CancellationToken::new(),
            },
        );
        drop(state);
        let handle = Arc::new(ChannelHandle { broker: self.clone(), channel });
        let deliveries = DeliveryStream { handle: Arc::clone(&handle), ended: false };
        Ok(Session { deliveries: deliveries.boxed(), acks: Box::new(MemoryAcks { handle }) })
    }
}

impl Broker for MemoryBroker {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move { self.open(subscription) }.boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        async move {
            let generation = self.lock().publish_generation;
            let channel: Box<dyn PublishChannel> =
                Box::new(MemoryPublishChannel { broker: self.clone(), generation });
            Ok(channel)
        }
        .boxed()
    }

    fn address(&self) -> String {
        "memory:".to_owned()
    }
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<String, Queue>,
    bindings: HashMap<(String, String), Vec<String>>,
    channels: HashMap<u64, Channel>,
    next_channel: u64,
    publish_generation: u64,
    stats: MemoryBrokerStats,
}

#[derive(Debug, Default)]
struct Queue {
    /// In order of position, which is the order of publishing.
    ready: VecDeque<Stored>,
    next_position: u64,
    channel: Option<u64>,
}

#[derive(Debug)]
struct Stored {
    position: u64,
    redelivered: bool,
    message: Arc<Message>,
}

#[derive(Debug)]
struct Channel {
    queue: String,
    prefetch: usize,
    next_tag: u64,
    /// By rising tag.
    unacked: VecDeque<(u64, Stored)>,
    waker: Option<Waker>,
    over: CancellationToken,
}

impl State {
    fn publish(&mut self, message: &Arc<Message>) -> (bool, Vec<Waker>) {
        let mut wakers = Vec::new();
        let mut routed = false;
        if message.exchange.is_empty() {
            routed |= self.enqueue(&message.routing_key, message, &mut wakers);
        }
        let binding = (message.exchange.clone(), message.routing_key.clone());
        for queue in self.bindings.get(&binding).cloned().unwrap_or_default() {
            routed |= self.enqueue(&queue, message, &mut wakers);
        }
        (routed, wakers)
    }

    fn enqueue(&mut self, name: &str, message: &Arc<Message>, wakers: &mut Vec<Waker>) -> bool {
        let Some(queue) = self.queues.get_mut(name) else {
            return false;
        };
        let position = queue.next_position;
        queue.next_position += 1;
        let message = Arc::clone(message);
        queue.ready.push_back(Stored { position, redelivered: false, message });
        self.stats.published += 1;
        let channel = queue.channel.and_then(|id| self.channels.get_mut(&id));
        wakers.extend(channel.and_then(|channel| channel.waker.take()));
        true
    }

    fn deliver(&mut self, id: u64) -> Option<Delivery> {
        let channel = self.channels.get_mut(&id)?;
        if channel.unacked.len() >= channel.prefetch {
            return None;
        }
        let stored = self.queues.get_mut(&channel.queue)?.ready.pop_front()?;
        let delivery = Delivery {
            tag: channel.next_tag,
            redelivered: stored.redelivered,
            message: Arc::clone(&stored.message),
            defect: None,
        };
        channel.unacked.push_back((channel.next_tag, stored));
        channel.next_tag += 1;
        self.stats.delivered += 1;
        Some(delivery)
    }

    /// Acks, or says that the tag is not outstanding.
    fn ack(&mut self, id: u64, tag: u64, multiple: bool) -> Result<Option<Waker>, BrokerError> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Err(lost("the channel is closed".to_owned()));
        };
        let Ok(at) = channel.unacked.binary_search_by_key(&tag, |(tag, _)| *tag) else {
            self.stats.precondition_failed += 1;
            self.close(id);
            return Err(lost(format!("406 PRECONDITION_FAILED: unknown delivery tag {tag}")));
        };
        if multiple {
            self.stats.acked += channel.unacked.drain(..=at).len() as u64;
        } else {
            channel.unacked.remove(at);
            self.stats.acked += 1;
        }
        Ok(channel.waker.take())
    }

    /// Ends the channel: what it had goes back to where it came from.
    fn close(&mut self, id: u64) -> Option<Waker> {
        let channel = self.channels.remove(&id)?;
        if let Some(queue) = self.queues.get_mut(&channel.queue) {
            queue.channel = None;
            for (_, mut stored) in channel.unacked {
                stored.redelivered = true;
                queue.ready.push_back(stored);
            }
            queue.ready.make_contiguous().sort_unstable_by_key(|stored| stored.position);
        }
        channel.over.cancel();
        channel.waker
    }
}

/// Closes its channel when the last of stream and acks is gone, as a dropped connection does.
struct ChannelHandle {
    broker: MemoryBroker,
    channel: u64,
}

impl Drop for ChannelHandle {
    fn drop(&mut self) {
        self.broker.lock().close(self.channel);
    }
}

struct DeliveryStream {
    handle: Arc<ChannelHandle>,
    ended: bool,
}

impl Stream for DeliveryStream {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let id = self.handle.channel;
        let mut state = self.handle.broker.lock();
        if let Some(delivery) = state.deliver(id) {
            return Poll::Ready(Some(Ok(delivery)));
        }
        let Some(channel) = state.channels.get_mut(&id) else {
            drop(state);
            self.ended = true;
            return Poll::Ready(Some(Err(lost("the connection is lost".to_owned()))));
        };
        channel.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct MemoryAcks {
    handle: Arc<ChannelHandle>,
}

impl AckChannel for MemoryAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        let acked = self.handle.broker.lock().ack(self.handle.channel, tag, multiple);
        let acked = acked.map(|waker| waker.into_iter().for_each(Waker::wake));
        std::future::ready(acked).boxed()
    }

    fn closed(&self) -> BoxFuture<'static, BrokerError> {
        let over =
            self.handle.broker.lock().channels.get(&self.handle.channel).map(|of| of.over.clone());
        async move {
            if let Some(over) = over {
                over.cancelled().await;
            }
            lost("the connection is lost".to_owned())
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let waker = self.handle.broker.lock().close(self.handle.channel);
        waker.into_iter().for_each(Waker::wake);
        std::future::ready(()).boxed()
    }
}

struct MemoryPublishChannel {
    broker: MemoryBroker,
    generation: u64,
}

impl PublishChannel for MemoryPublishChannel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.broker.declare(queue);
        std::future::ready(Ok(())).boxed()
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        if self.broker.lock().publish_generation != self.generation {
            return std::future::ready(Err(lost("the connection is lost".to_owned()))).boxed();
        }
        let publish = |message: &Arc<Message>| {
            if self.broker.publish(Arc::clone(message)) {
                Published::Confirmed
            } else {
                Published::Unroutable("NO_ROUTE".to_owned())
            }
        };
        std::future::ready(Ok(batch.iter().map(publish).collect())).boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

fn lost(reason: String) -> BrokerError {
    BrokerError::Lost { address: "memory:".to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::broker::Owner;

    fn broker(messages: &[&str]) -> MemoryBroker {
        let broker = MemoryBroker::new();
        broker.declare("q");
        for body in messages {
            assert!(broker.publish(Message {
                routing_key: "q".to_owned(),
                body: body.as_bytes().to_vec().into(),
                ..Message::default()
            }));
        }
        broker
    }

    async fn session(broker: &MemoryBroker, prefetch: u16) -> Session {
        let subscription = Subscription {
            queue: "q".to_owned(),
            declare: Declare::Passive,
            owner: Owner::Single,
            prefetch: NonZeroU16::new(prefetch).unwrap_or(NonZeroU16::MIN),
        };
        broker.consume(&subscription).await.expect("the queue exists and is free")
    }

    async fn next(session: &mut Session) -> (u64, bool, String) {
        let delivery = session.deliveries.next().await.expect("not ended").expect("not lost");
        let body = String::from_utf8_lossy(&delivery.message.body).into_owned();
        (delivery.tag, delivery.redelivered, body)
    }

    #[tokio::test]
    async fn a_lost_connection_returns_what_is_unacked_to_its_place() {
        let broker = broker(&["a", "b", "c", "d"]);
        let mut first = session(&broker, 3).await;
        for body in ["a", "b", "c"] {
            assert_eq!(next(&mut first).await.2, body);
        }
        first.acks.ack(2, false).await.expect("outstanding");
        broker.disconnect_all();
        assert!(first.deliveries.next().await.expect("an error").is_err());
        assert!(first.acks.ack(1, false).await.is_err());
        let mut second = session(&broker, 3).await;
        assert_eq!(next(&mut second).await, (1, true, "a".to_owned()));
        assert_eq!(next(&mut second).await, (2, true, "c".to_owned()));
        assert_eq!(next(&mut second).await, (3, false, "d".to_owned()));
    }

    #[tokio::test]
    async fn prefetch_bounds_what_is_outstanding() {
        let broker = broker(&["a", "b", "c"]);
        let mut session = session(&broker, 2).await;
        next(&mut session).await;
        next(&mut session).await;
        assert!(session.deliveries.next().now_or_never().is_none());
        session.acks.ack(2, true).await.expect("outstanding");
        assert_eq!(next(&mut session).await.0, 3);
    }

    #[tokio::test]
    async fn an_ack_of_a_tag_that_is_not_outstanding_closes_the_channel() {
        let broker = broker(&["a"]);
        let mut session = session(&broker, 2).await;
        next(&mut session).await;
        session.acks.ack(1, false).await.expect("outstanding");
        assert!(session.acks.ack(1, true).await.is_err());
        assert_eq!(broker.stats().precondition_failed, 1);
        assert!(session.deliveries.next().await.expect("an error").is_err());
    }

    #[tokio::test]
    async fn a_dropped_session_frees_the_queue() {
        let broker = broker(&["a"]);
        let mut first = session(&broker, 2).await;
        next(&mut first).await;
        drop(first);
        assert_eq!(broker.depth("q"), (1, 0));
        assert!(next(&mut session(&broker, 2).await).await.1);
    }
}
