//! What a worker holds of a consuming channel: the stream of deliveries, and the side that acks.
//!
//! An ack is written and not read yet: `Ok` says nothing of the broker. When the last of the two is dropped, the
//! connection is closed behind what was written.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::Stream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::history::Event;
use super::network::{Frame, Inner, Network};
use super::{lost, ms};
use crate::broker::{AckChannel, BrokerError, Delivery, Session, Subscription};

/// The worker's end of a channel.
pub(super) struct Client {
    life: u32,
    arrived: VecDeque<Result<Delivery, BrokerError>>,
    waker: Option<Waker>,
    /// An error was the last thing that came.
    is_over: bool,
    /// The connection is lost; whether the broker still gets what was written before.
    cut: Option<bool>,
    /// Frames keep their order in each direction.
    last_up: Instant,
    last_down: Instant,
}

impl Inner {
    /// Something reaches the worker on this channel.
    pub(super) fn arrive(&mut self, channel: u64, what: Result<Delivery, BrokerError>) {
        let Some(client) = self.clients.get_mut(&channel) else { return };
        if client.is_over || (client.cut.is_some() && what.is_ok()) {
            return;
        }
        client.is_over = what.is_err();
        client.arrived.push_back(what);
        client.waker.take().into_iter().for_each(Waker::wake);
    }

    /// Whether the broker hears what the worker has written on the channel.
    pub(super) fn is_heard(&self, channel: u64) -> bool {
        self.clients.get(&channel).is_none_or(|client| client.cut.unwrap_or(true))
    }

    /// When something that is sent now reaches the worker; `None` if it never does.
    pub(super) fn due_down(&mut self, channel: u64) -> Option<Instant> {
        let latency = ms(self.latency_ms());
        let client = self.clients.get_mut(&channel).filter(|client| client.cut.is_none())?;
        client.last_down = client.last_down.max(Instant::now() + latency);
        Some(client.last_down)
    }

    fn due_up(&mut self, channel: u64) -> Option<Instant> {
        let latency = ms(self.latency_ms());
        let client = self.clients.get_mut(&channel).filter(|client| client.cut.is_none())?;
        client.last_up = client.last_up.max(Instant::now() + latency);
        Some(client.last_up)
    }

    /// Loses the connection of the channel; `false` if it was lost before.
    pub(super) fn cut(&mut self, channel: u64, arrives: bool) -> bool {
        let Some(client) = self.clients.get_mut(&channel) else { return false };
        let was_up = client.cut.is_none();
        if was_up || !arrives {
            client.cut = Some(arrives);
        }
        was_up
    }

    pub(super) fn channels_of(&self, life: u32) -> Vec<u64> {
        let of = self.clients.iter().filter(|(_, client)| client.life == life);
        of.map(|(channel, _)| *channel).collect()
    }

    pub(super) fn is_of(&self, channel: u64, life: u32) -> bool {
        self.clients.get(&channel).is_some_and(|client| client.life == life)
    }
}

/// Consumes on a channel of its own.
pub(super) fn open(
    network: &Network,
    life: u32,
    subscription: &Subscription,
) -> Result<Session, BrokerError> {
    let queue: Arc<str> = subscription.queue.as_str().into();
    let prefetch = subscription.prefetch.get();
    let mut inner = network.lock();
    let channel = inner.queues.consume(&queue, prefetch).map_err(lost)?;
    inner.routes.counts.consumers_waiting += u64::from(inner.queues.waits(channel));
    let now = Instant::now();
    let client = Client {
        life,
        arrived: VecDeque::new(),
        waker: None,
        is_over: false,
        cut: None,
        last_up: now,
        last_down: now,
    };
    inner.clients.insert(channel, client);
    network.log.put_of(life, Event::Consuming { life, queue, channel, prefetch });
    network.send(&mut inner, now, Frame::Deliver(channel));
    drop(inner);
    let held = Arc::new(Held { network: network.clone(), channel });
    let deliveries = Arriving { held: Arc::clone(&held), ended: false }.boxed();
    Ok(Session { deliveries, acks: Box::new(Acks { held }) })
}

/// Closes the channel when the last that holds it is gone.
struct Held {
    network: Network,
    channel: u64,
}

impl Held {
    fn close(&self, asked: bool) -> Option<Arc<Notify>> {
        let mut inner = self.network.lock();
        let due = inner.due_up(self.channel)?;
        let done = Arc::new(Notify::new());
        let close = Frame::Close { channel: self.channel, asked, done: Arc::clone(&done) };
        self.network.send(&mut inner, due, close);
        Some(done)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.close(false));
        let mut inner = self.network.lock();
        if let Some(client) = inner.clients.get_mut(&self.channel) {
            // What was written arrives before the close.
            client.cut.get_or_insert(true);
        }
    }
}

/// Deliveries as they arrive, and one error at the end.
struct Arriving {
    held: Arc<Held>,
    ended: bool,
}

impl Stream for Arriving {
    type Item = Result<Delivery, BrokerError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = {
            let mut inner = self.held.network.lock();
            let Some(client) = inner.clients.get_mut(&self.held.channel) else {
                return Poll::Ready(None);
            };
            let next = client.arrived.pop_front();
            if next.is_none() {
                client.waker = Some(cx.waker().clone());
            }
            next
        };
        match next {
            Some(next) => {
                self.ended = next.is_err();
                Poll::Ready(Some(next))
            }
            None => Poll::Pending,
        }
    }
}

struct Acks {
    held: Arc<Held>,
}

impl AckChannel for Acks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        let (network, channel) = (&self.held.network, self.held.channel);
        let mut inner = network.lock();
        let is_over = inner.clients.get(&channel).is_none_or(|client| client.is_over);
        let written = if is_over {
            Err(lost("the channel is closed"))
        } else {
            // On a connection that is lost it goes nowhere, and nobody knows.
            match inner.due_up(channel) {
                Some(due) => network.send(&mut inner, due, Frame::Ack { channel, tag, multiple }),
                None => inner.routes.counts.lost_acks += 1,
            }
            Ok(())
        };
        drop(inner);
        std::future::ready(written).boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            if let Some(done) = self.held.close(true) {
                done.notified().await;
            }
        }
        .boxed()
    }
}
