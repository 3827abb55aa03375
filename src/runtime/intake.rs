//! Whether more is taken in from the broker, and how much it may send ahead.
//!
//! Intake stops while the store is full, while more bytes are in flight than may be, while a delivery is so old that
//! the broker will soon take it back, and for a moment while many gather: each ends by itself, and what is in work goes
//! on. Nothing that was taken in is given back here.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::burst::Bursts;
use super::prefetch::Prefetch;
use super::queue::Queue;
use crate::planted::{self, Bug};
use crate::store::Fullness;

/// How often RabbitMQ looks for deliveries past its limit.
const BROKER_TICK: Duration = Duration::from_secs(60);

/// What a queue takes in.
pub(crate) struct Intake {
    queue: Arc<Queue>,
    fullness: Arc<Fullness>,
    /// As it was when somebody looked.
    seen_full: bool,
    prefetch: Prefetch,
    bursts: Bursts,
    oldest: Age,
    /// Name in [`crate::Health`].
    part: String,
}

impl Intake {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        let options = &queue.options;
        Self {
            fullness: queue.store.fullness(),
            seen_full: false,
            prefetch: Prefetch::new(options.prefetch, options.in_flight_bytes_max),
            bursts: Bursts::new(Instant::now()),
            oldest: Age::Young,
            part: format!("queue {} deliveries", queue.name),
            queue,
        }
    }

    /// Most unacknowledged deliveries of the next connection.
    pub(crate) fn prefetch(&self) -> NonZeroU16 {
        if planted::is(Bug::PrefetchIgnored) {
            return NonZeroU16::MAX;
        }
        self.prefetch.current()
    }

    pub(crate) fn store_is_full(&self) -> bool {
        self.fullness.is_full()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        let is_full = self.store_is_full() && !planted::is(Bug::FullStoreTakesIn);
        self.bursts.rest.is_some()
            || self.oldest == Age::Late
            || self.queue.in_flight.is_too_much()
            || is_full
    }

    /// Waits until intake may have changed.
    ///
    /// Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let rest = self.bursts.rest;
        let rested = async {
            match rest {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            is_full = self.fullness.changed_from(self.seen_full) => self.seen_full = is_full,
            () = self.queue.in_flight.fits_again() => {}
            () = rested => self.bursts.rested(),
        }
    }

    /// A message of so many bytes was taken in; whether the queue is to be consumed anew, with another prefetch.
    pub(crate) fn took(&mut self, bytes: usize) -> bool {
        self.bursts.took();
        if self.prefetch.took(bytes) {
            let prefetch = self.prefetch().get();
            info!(queue = &*self.queue.name, prefetch, "messages are small again");
            return true;
        }
        if !self.queue.in_flight.is_too_much() {
            return false;
        }
        let (messages, bytes) = (self.queue.claimed(), self.queue.in_flight.bytes());
        let lowered = self.prefetch.lower(messages, bytes);
        if lowered {
            warn!(
                queue = &*self.queue.name,
                messages,
                bytes,
                max_in_flight_bytes = self.queue.options.in_flight_bytes_max,
                prefetch = self.prefetch().get(),
                "messages are so large that the prefetch must be smaller: consuming anew"
            );
        }
        lowered
    }

    /// All that had arrived is taken in.
    pub(crate) fn drained(&mut self, now: Instant) {
        self.bursts.drained(now, !self.queue.unacked.is_full());
    }

    /// Looks at the oldest delivery of the connection.
    pub(crate) fn look(&mut self, generation: u32, now: Instant) {
        let queue = &self.queue;
        let oldest = queue.oldest(generation);
        let age = oldest.as_ref().map_or(Duration::ZERO, |oldest| now - oldest.received);
        queue.metrics.oldest_unacked_seconds.set(age.as_secs_f64());
        queue.metrics.in_flight_bytes.set(queue.in_flight.bytes() as f64);
        let Some(limit) = queue.options.consumer_timeout else { return };
        let before = std::mem::replace(&mut self.oldest, Age::of(age, limit));
        if let Some(oldest) = oldest.filter(|_| self.oldest != Age::Young) {
            let id = oldest.message.upgrade().and_then(|message| queue.id_of(&message));
            let id = id.unwrap_or_else(|| "whose handler has finished".to_owned());
            let (age_s, limit_s) = (age.as_secs(), limit.as_secs_f64());
            queue.health.fault(
                &self.part,
                format!("message {id} is unacknowledged for {age_s} s, the broker takes it back after {limit_s} s"),
            );
            if before == Age::Young {
                warn!(
                    queue = &*queue.name,
                    message_id = id,
                    age_s,
                    consumer_timeout_s = limit_s,
                    "a message is unacknowledged for so long that the broker may take it back, with all others: give it \
                     more time there, or its handler less"
                );
            }
        } else if before != Age::Young {
            queue.health.clear(&self.part);
            info!(queue = &*queue.name, "the old message is settled or back at the broker");
        }
    }
}

/// How old a delivery is, by what the broker allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Young,
    /// Past half of it.
    Old,
    /// So near to it that what is taken in now would only be taken back.
    Late,
}

impl Age {
    fn of(age: Duration, limit: Duration) -> Self {
        let tenth = limit / 10;
        // A broker that has not acted by then has another limit, and intake would stop for nothing.
        let late = limit - tenth..limit.saturating_add(tenth).saturating_add(BROKER_TICK);
        if late.contains(&age) {
            Self::Late
        } else if age >= limit / 2 {
            Self::Old
        } else {
            Self::Young
        }
    }
}
