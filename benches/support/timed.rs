//! The in-process broker, with the time of each ack: how long after the moment a message was due at did it come?
//!
//! Deliveries of one channel have rising tags, so the tag says which message of the timetable it is. One channel only.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use metrics::HistogramFn as _;
use onceward::{
    AckChannel, Broker, BrokerError, MemoryBroker, PublishChannel, Session, Subscription,
};
use tokio::time::Instant;

use super::offering::Timetable;
use super::recorder::Distribution;

/// Acknowledges to the broker within, and notes when.
#[derive(Clone)]
pub(crate) struct TimedBroker {
    inner: MemoryBroker,
    per_s: NonZeroU64,
    acks: Arc<Mutex<Option<Acks>>>,
}

/// The acks of the one channel.
struct Acks {
    timetable: Timetable,
    /// All tags up to this one are acked.
    acked_to: u64,
    /// Tags above it that are.
    above: BTreeSet<u64>,
    latency_s: Distribution,
}

impl Acks {
    fn ack(&mut self, tag: u64, multiple: bool) {
        let now = Instant::now();
        let first = if multiple { self.acked_to + 1 } else { tag };
        for tag in first..=tag {
            if self.above.insert(tag) {
                let latency = now.saturating_duration_since(self.timetable.due(tag - 1));
                self.latency_s.record(latency.as_secs_f64());
            }
        }
        while self.above.remove(&(self.acked_to + 1)) {
            self.acked_to += 1;
        }
    }
}

impl TimedBroker {
    pub(crate) fn new(inner: MemoryBroker, per_s: NonZeroU64) -> Self {
        Self { inner, per_s, acks: Arc::default() }
    }

    /// The timetable, which begins when a consumer is there.
    pub(crate) async fn consumed(&self) -> Timetable {
        loop {
            if let Some(acks) = &*self.lock() {
                return acks.timetable;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Seconds from due to acked, since this was asked last.
    pub(crate) fn take_latency(&self) -> Distribution {
        let mut acks = self.lock();
        acks.as_mut().map(|acks| std::mem::take(&mut acks.latency_s)).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Acks>> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker for TimedBroker {
    fn consume<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> BoxFuture<'a, Result<Session, BrokerError>> {
        async move {
            let session = self.inner.consume(subscription).await?;
            let timetable = Timetable { started: Instant::now(), per_s: self.per_s.get() };
            let (acked_to, above, latency_s) = (0, BTreeSet::new(), Distribution::default());
            let before = self.lock().replace(Acks { timetable, acked_to, above, latency_s });
            assert!(before.is_none(), "a second channel, whose tags are others");
            let acks = Box::new(TimedAcks { inner: session.acks, broker: self.clone() });
            Ok(Session { deliveries: session.deliveries, acks })
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

struct TimedAcks {
    inner: Box<dyn AckChannel>,
    broker: TimedBroker,
}

impl AckChannel for TimedAcks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        let Self { inner, broker } = self;
        async move {
            inner.ack(tag, multiple).await?;
            if let Some(acks) = &mut *broker.lock() {
                acks.ack(tag, multiple);
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
