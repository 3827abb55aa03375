//! Connections that are lost, processes that are gone, and the end of all that is wrong.
//!
//! What is under way when a connection is lost may arrive or not, and each side notices at a time of its own. Of a
//! process that is gone nothing is sent any more, but what it had written may still arrive.

use tokio::time::Instant;

use super::ms;
use super::network::{Frame, Inner, Network};

/// How a connection is lost.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Loss {
    /// Whether the broker still gets what the worker has written.
    pub(in super::super) arrives: bool,
    /// After how many milliseconds the worker notices.
    pub(in super::super) worker_after_ms: u64,
    /// After how many milliseconds the broker notices.
    pub(in super::super) broker_after_ms: u64,
}

impl Network {
    /// Loses the connections of all channels, or of all that publish.
    pub(in super::super) fn lose(&self, consuming: bool, publishing: bool, loss: Loss) {
        let mut inner = self.lock();
        let now = Instant::now();
        let channels = if consuming { inner.queues.open() } else { Vec::new() };
        for channel in channels {
            if inner.cut(channel, loss.arrives) {
                inner.routes.counts.losses += 1;
                let noticed = Frame::WorkerNotices(channel, "connection reset");
                self.send(&mut inner, now + ms(loss.worker_after_ms), noticed);
                let due = now + ms(loss.broker_after_ms);
                self.send(&mut inner, due, Frame::BrokerNotices(channel));
            }
        }
        if publishing {
            for id in inner.cut_publishing(None, loss.arrives) {
                inner.routes.counts.publish_losses += 1;
                let due = now + ms(loss.worker_after_ms);
                self.send(&mut inner, due, Frame::PublisherNotices(id));
            }
        }
    }

    /// The process is gone: nothing more comes of it, but perhaps what it had written.
    pub(in super::super) fn crash(&self, life: u32, arrives: bool, broker_after_ms: u64) {
        let mut inner = self.lock();
        inner.gone.insert(life);
        if arrives {
            self.flush(&mut inner, life);
        }
        inner.cut_publishing(Some(life), false);
        for channel in inner.channels_of(life) {
            inner.cut(channel, false);
            let due = Instant::now() + ms(broker_after_ms);
            self.send(&mut inner, due, Frame::BrokerNotices(channel));
        }
    }

    /// What this life has written arrives now.
    fn flush(&self, inner: &mut Inner, life: u32) {
        let is_written = |inner: &Inner, frame: &Frame| match frame {
            Frame::Ack { channel, .. } => inner.is_of(*channel, life),
            Frame::Take(id) => inner.is_published_by(*id, life),
            _ => false,
        };
        let due: Vec<_> =
            inner.frames.iter().filter(|(_, frame)| is_written(inner, frame)).collect();
        let due: Vec<_> = due.into_iter().map(|(key, _)| *key).collect();
        for key in due {
            if let Some(frame) = inner.frames.remove(&key) {
                self.take(inner, frame);
            }
        }
    }

    /// Nobody can connect for a while.
    pub(in super::super) fn be_unreachable(&self, for_ms: u64) {
        self.lock().unreachable_until = Some(Instant::now() + ms(for_ms));
    }

    /// Ends all that is wrong.
    pub(in super::super) fn heal(&self) {
        let mut inner = self.lock();
        inner.unreachable_until = None;
        inner.weather.consumer_timeout_ms = None;
        inner.routes.heal();
    }
}
