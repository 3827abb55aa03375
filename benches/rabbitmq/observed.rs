//! A broker that is watched: when each delivery was due at its publisher, and when its ack was written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use metrics::HistogramFn as _;
use onceward::{
    AckChannel, Broker, BrokerError, Delivery, HeaderValue, PublishChannel, Session, Subscription,
};

use crate::clock::monotonic_ns;
use crate::mix::DUE_HEADER;
use crate::support::recorder::Distribution;

/// Passes everything through.
pub(crate) struct ObservedBroker<B> {
    inner: B,
    acks: Arc<Acks>,
}

/// The acks that were written, and how long after they were due.
#[derive(Default)]
pub(crate) struct Acks {
    written: AtomicU64,
    due_to_ack_s: Mutex<Distribution>,
}

/// When the deliveries of one session that are not acked were due, by tag.
type Outstanding = Arc<Mutex<BTreeMap<u64, u64>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Acks {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Those since the last time.
    pub(crate) fn take_due_to_ack_s(&self) -> Distribution {
        std::mem::take(&mut lock(&self.due_to_ack_s))
    }

    fn write_down(&self, due_ns: impl Iterator<Item = u64>) {
        let now_ns = monotonic_ns().unwrap_or_default();
        let due_to_ack_s = lock(&self.due_to_ack_s);
        for due_ns in due_ns {
            due_to_ack_s.record(now_ns.saturating_sub(due_ns) as f64 / 1e9);
            self.written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<B> ObservedBroker<B> {
    pub(crate) const fn new(inner: B, acks: Arc<Acks>) -> Self {
        Self { inner, acks }
    }
}

fn due_ns(delivery: &Delivery) -> u64 {
    match delivery.message.properties.headers.get(DUE_HEADER) {
        Some(HeaderValue::Int(ns)) => ns.unsigned_abs(),
        // Not of this bench; its ack would be as late as the machine is old, which nobody overlooks.
        _ => 0,
    }
}

impl<B: Broker> Broker for ObservedBroker<B> {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let session = self.inner.consume(subscription).await?;
            let outstanding = Outstanding::default();
            let seen = Arc::clone(&outstanding);
            let deliveries = session.deliveries.inspect(move |delivery| {
                if let Ok(delivery) = delivery {
                    lock(&seen).insert(delivery.tag, due_ns(delivery));
                }
            });
            let acks = Arc::clone(&self.acks);
            let acks = ObservedAcks { inner: session.acks, outstanding, acks };
            Ok(Session { deliveries: deliveries.boxed(), acks: Box::new(acks) })
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

struct ObservedAcks {
    inner: Box<dyn AckChannel>,
    outstanding: Outstanding,
    acks: Arc<Acks>,
}

impl AckChannel for ObservedAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        async move {
            self.inner.ack(tag, multiple).await?;
            let mut outstanding = lock(&self.outstanding);
            if multiple {
                let later = outstanding.split_off(&(tag + 1));
                let acked = std::mem::replace(&mut *outstanding, later);
                drop(outstanding);
                self.acks.write_down(acked.into_values());
            } else {
                let acked = outstanding.remove(&tag);
                drop(outstanding);
                self.acks.write_down(acked.into_iter());
            }
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
