//! A broker that is watched: every delivery and ack between the runtime and the real broker passes here.
//!
//! Tells the ledger of an ack only after the broker's client has taken it. Loses connections on purpose: what it
//! holds of the real session is dropped, so the real broker sees a client that went away. Publishing is passed
//! through untouched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::orders::Plan;
use crate::{
    AckChannel, Broker, BrokerError, Deliveries, Delivery, PublishChannel, Session, Subscription,
};

/// A broker whose deliveries and acks are written down.
pub(super) struct ObservedBroker {
    inner: Arc<dyn Broker>,
    observer: Arc<Observer>,
}

/// Deliveries and acks, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) delivered: u64,
    pub(super) redelivered: u64,
    pub(super) acked: u64,
    /// Deliveries in open sessions that are not acked.
    pub(super) outstanding: usize,
    pub(super) sessions_open: usize,
}

struct Observer {
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    traffic: Traffic,
    sessions: BTreeMap<u64, Open>,
    sessions_ever: u64,
    delivery_to_ack: Vec<Duration>,
}

/// A session that the runtime has.
struct Open {
    cut: CancellationToken,
    outstanding: BTreeMap<u64, Outstanding>,
}

/// A delivery without an ack; a message that is not of this run has no order.
struct Outstanding {
    order: Option<usize>,
    delivered_at: Instant,
}

impl ObservedBroker {
    pub(super) fn new(inner: Arc<dyn Broker>, plan: Arc<Plan>, ledger: Arc<Ledger>) -> Self {
        let observer = Observer { plan, ledger, seen: Mutex::default() };
        Self { inner, observer: Arc::new(observer) }
    }

    /// Ends every open session as a lost connection does; the broker takes back what was not acked.
    pub(super) fn cut(&self) {
        let seen = self.observer.lock();
        seen.sessions.values().for_each(|open| open.cut.cancel());
    }

    /// What passed so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.observer.lock().traffic()
    }

    /// The time from delivery to ack that `percent` of the acked deliveries took at the most.
    pub(super) fn delivery_to_ack(&self, percent: usize) -> Duration {
        let mut waited = self.observer.lock().delivery_to_ack.clone();
        waited.sort_unstable();
        let last = waited.len().saturating_sub(1);
        let found = waited.get(last * percent.min(100) / 100);
        found.copied().unwrap_or_default()
    }
}

impl Broker for ObservedBroker {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let session = self.inner.consume(subscription).await?;
            Ok(self.observer.watch(session, self.inner.address()))
        }
        .boxed()
    }

    fn publish_channel(&self) -> BoxFuture<'_, Result<Box<dyn PublishChannel>, BrokerError>> {
        self.inner.publish_channel()
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

impl Observer {
    fn watch(self: &Arc<Self>, session: Session, address: String) -> Session {
        let cut = CancellationToken::new();
        let mut seen = self.lock();
        seen.sessions_ever += 1;
        let number = seen.sessions_ever;
        let open = Open { cut: cut.clone(), outstanding: BTreeMap::new() };
        seen.sessions.insert(number, open);
        drop(seen);
        let watched = Arc::new(Watched { observer: Arc::clone(self), number, cut, address });
        Session {
            deliveries: watch_deliveries(session.deliveries, Arc::clone(&watched)),
            acks: Box::new(ObservedAcks { inner: session.acks, watched }),
        }
    }

    fn delivered(&self, session: u64, delivery: &Delivery) {
        let id = delivery.message.properties.message_id.as_deref();
        let order = id.and_then(|id| self.plan.number(id));
        let mut seen = self.lock();
        seen.traffic.delivered += 1;
        seen.traffic.redelivered += u64::from(delivery.redelivered);
        let delivered_at = Instant::now();
        if let Some(open) = seen.sessions.get_mut(&session) {
            let delivery_seen = Outstanding { order, delivered_at };
            open.outstanding.insert(delivery.tag, delivery_seen);
        }
    }

    fn acked(&self, session: u64, tag: u64, multiple: bool) {
        let now = Instant::now();
        let mut seen = self.lock();
        let Some(open) = seen.sessions.get_mut(&session) else {
            return;
        };
        let acked: Vec<Outstanding> = if multiple {
            let later = open.outstanding.split_off(&(tag + 1));
            let acked = std::mem::replace(&mut open.outstanding, later);
            acked.into_values().collect()
        } else {
            open.outstanding.remove(&tag).into_iter().collect()
        };
        seen.traffic.acked += acked.len() as u64;
        let waited = acked.iter().map(|delivery| now.duration_since(delivery.delivered_at));
        seen.delivery_to_ack.extend(waited);
        drop(seen);
        let orders = acked.into_iter().filter_map(|delivery| delivery.order);
        orders.for_each(|number| self.ledger.acked(number));
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn traffic(&self) -> Traffic {
        let outstanding = self.sessions.values().map(|open| open.outstanding.len());
        Traffic {
            outstanding: outstanding.sum(),
            sessions_open: self.sessions.len(),
            ..self.traffic
        }
    }
}

/// One session; it is over when stream or acks are gone, or when it was cut.
struct Watched {
    observer: Arc<Observer>,
    number: u64,
    cut: CancellationToken,
    address: String,
}

impl Watched {
    fn end(&self) {
        self.observer.lock().sessions.remove(&self.number);
    }

    fn lost(&self) -> BrokerError {
        BrokerError::Lost {
            address: self.address.clone(),
            reason: "the demo cut the connection".to_owned(),
        }
    }
}

/// Ends its session when it is dropped.
struct EndOnDrop(Arc<Watched>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn watch_deliveries(inner: Deliveries, watched: Arc<Watched>) -> Deliveries {
    let open = Some((inner, EndOnDrop(watched)));
    let next = |open: Option<(Deliveries, EndOnDrop)>| async move {
        let (mut inner, watched) = open?;
        // Cancel-safe: a delivery that is not taken stays in the stream.
        let delivery = tokio::select! {
            biased;
            () = watched.0.cut.cancelled() => None,
            delivery = inner.next() => Some(delivery),
        };
        match delivery {
            None => Some((Err(watched.0.lost()), None)),
            Some(None) => None,
            Some(Some(Err(error))) => Some((Err(error), None)),
            Some(Some(Ok(delivery))) => {
                watched.0.observer.delivered(watched.0.number, &delivery);
                Some((Ok(delivery), Some((inner, watched))))
            }
        }
    };
    stream::unfold(open, next).fuse().boxed()
}

struct ObservedAcks {
    inner: Box<dyn AckChannel>,
    watched: Arc<Watched>,
}

impl AckChannel for ObservedAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        async move {
            if self.watched.cut.is_cancelled() {
                return Err(self.watched.lost());
            }
            self.inner.ack(tag, multiple).await?;
            let observer = &self.watched.observer;
            observer.acked(self.watched.number, tag, multiple);
            Ok(())
        }
        .boxed()
    }

    fn closed(&self) -> BoxFuture<'static, BrokerError> {
        self.inner.closed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::super::orders::Size;
    use super::*;
    use crate::{Declare, MemoryBroker, Owner};

    async fn fixture() -> (ObservedBroker, Arc<Ledger>) {
        let size = Size { orders: 10, keys: 1, duplicates: 0.0 };
        let plan = Arc::new(Plan::new(size, 1, 1));
        let ledger = Arc::new(Ledger::new(Arc::clone(&plan)));
        let memory = MemoryBroker::new();
        memory.declare("q");
        for number in 0..10 {
            memory.publish(plan.message(number, "q").expect("one of ten"));
        }
        let broker = ObservedBroker::new(Arc::new(memory), plan, Arc::clone(&ledger));
        (broker, ledger)
    }

    async fn session(broker: &ObservedBroker) -> Session {
        let subscription = Subscription {
            queue: "q".to_owned(),
            declare: Declare::Passive,
            owner: Owner::Single,
            prefetch: NonZeroU16::MIN.saturating_add(4),
        };
        broker.consume(&subscription).await.expect("a session")
    }

    async fn next(session: &mut Session) -> Result<Delivery, BrokerError> {
        session.deliveries.next().await.expect("not ended")
    }

    #[tokio::test]
    async fn a_multiple_ack_is_one_of_every_outstanding_delivery_before_it() {
        let (broker, ledger) = fixture().await;
        let mut session = session(&broker).await;
        for tag in 1..=5 {
            assert_eq!(next(&mut session).await.expect("five").tag, tag);
        }
        session.acks.ack(2, false).await.expect("outstanding");
        session.acks.ack(4, true).await.expect("outstanding");
        let traffic = broker.traffic();
        assert_eq!((traffic.delivered, traffic.acked), (5, 4));
        assert_eq!((traffic.outstanding, traffic.sessions_open), (1, 1));
        // A run of any of the four is one after its ack, and no other is.
        (0..5).for_each(|number| ledger.start(number).fail());
        assert_eq!(ledger.judge(&BTreeMap::new()).doubled, [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_cut_ends_the_session_and_the_broker_delivers_again() {
        let (broker, _) = fixture().await;
        let mut first = session(&broker).await;
        next(&mut first).await.expect("a delivery");
        broker.cut();
        assert!(first.acks.ack(1, false).await.is_err());
        assert!(matches!(next(&mut first).await, Err(BrokerError::Lost { .. })));
        assert!(first.deliveries.next().await.is_none());
        assert_eq!(broker.traffic().sessions_open, 0);
        drop(first);
        let again = next(&mut session(&broker).await).await.expect("again");
        assert!(again.redelivered);
        assert_eq!((again.tag, broker.traffic().redelivered), (1, 1));
    }
}
