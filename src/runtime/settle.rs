//! The settler: one a channel, serial, the only one that acknowledges.
//!
//! Takes finished tags together with the proof that their outcome is durable. A tag of another generation is counted
//! and forgotten: the broker delivers that message again, and it will be a duplicate.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::admission::Tag;
use super::claims::Tags;
use super::unacked::Unacked;
use super::window::AckWindow;
use crate::broker::{AckChannel, BrokerError};
use crate::failpoint::{self, Point};
use crate::planted::{self, Bug};
use crate::store::{Persisted, Store};
use crate::telemetry::QueueMetrics;

/// Finished tags on their way to the settler of the current generation.
#[derive(Debug, Default)]
pub(crate) struct Settlements {
    inbox: Mutex<Inbox>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    generation: u32,
    closing: bool,
    finished: Vec<Tag>,
}

impl Settlements {
    /// Settles all tags of a message whose outcome is durable.
    pub(crate) fn settle(&self, tags: &Tags, proof: Persisted, metrics: &QueueMetrics) {
        let Persisted { .. } = proof;
        let mut inbox = self.lock();
        let current = inbox.generation;
        let was_empty = inbox.finished.is_empty();
        let is_current = |tag: &&Tag| tag.generation == current || planted::is(Bug::StaleTagAcked);
        inbox.finished.extend(tags.iter().filter(is_current));
        let stale = tags.iter().filter(|tag| tag.generation != current).count();
        let wake = was_empty && !inbox.finished.is_empty();
        drop(inbox);
        if stale > 0 {
            metrics.stale.increment(stale as u64);
        }
        if wake {
            self.arrived.notify_one();
        }
    }

    /// From here on only tags of this generation count.
    pub(crate) fn begin(&self, generation: u32, metrics: &QueueMetrics) {
        let mut inbox = self.lock();
        inbox.generation = generation;
        inbox.closing = false;
        metrics.stale.increment(inbox.finished.len() as u64);
        inbox.finished.clear();
    }

    /// Lets the settler ack what is finished, close the channel and end.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Acknowledges on one channel until it breaks or [`Settlements::close`] was called.
pub(crate) struct Settler<'a> {
    pub(crate) settlements: &'a Settlements,
    pub(crate) metrics: &'a QueueMetrics,
    pub(crate) store: &'a Store,
    pub(crate) unacked: &'a Unacked,
    pub(crate) acks: Box<dyn AckChannel>,
    pub(crate) window: AckWindow,
}

impl Settler<'_> {
    /// # Errors
    ///
    /// The channel's: what was not acked comes back.
    pub(crate) async fn run(mut self) -> Result<(), BrokerError> {
        let mut finished = Vec::new();
        // Nobody else notices the end of a channel from which nothing is taken and on which nothing is acked.
        let mut closed = self.acks.closed();
        loop {
            let closing = {
                let mut inbox = self.settlements.lock();
                std::mem::swap(&mut finished, &mut inbox.finished);
                inbox.closing
            };
            let now = Instant::now();
            // In their order most of them follow the one before.
            finished.sort_unstable_by_key(|tag| tag.tag);
            for tag in &finished {
                self.window.finish(tag.tag, now);
            }
            if self.store.has_failed() {
                // Fail-stop: what was durable before is a duplicate when it comes again.
                return Ok(());
            }
            self.ack(now, closing).await?;
            for tag in finished.drain(..) {
                let waited = now.duration_since(tag.received);
                self.metrics.delivery_to_ack_seconds.record(waited.as_secs_f64());
            }
            if closing {
                drop(closed);
                self.acks.close().await;
                return Ok(());
            }
            let arrived = self.settlements.arrived.notified();
            let due = self.window.next_due();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                error = &mut closed => return Err(error),
                () = arrived => {}
                () = due => {}
            }
        }
    }

    async fn ack(&mut self, now: Instant, closing: bool) -> Result<(), BrokerError> {
        let before = self.window.unacked();
        let prefix = self.window.take_prefix().map(|tag| (tag, true));
        let alone =
            if closing { self.window.take_rest() } else { self.window.take_stragglers(now) };
        let frames = prefix.into_iter().chain(alone.into_iter().map(|tag| (tag, false)));
        let acked = before - self.window.unacked();
        for (tag, multiple) in frames {
            if let Err(error) = self.acks.ack(tag, multiple).await {
                self.metrics.failed.increment(acked as u64);
                return Err(error);
            }
            failpoint::reached(Point::AckWritten);
        }
        self.metrics.acked.increment(acked as u64);
        self.unacked.acked(acked);
        Ok(())
    }
}
