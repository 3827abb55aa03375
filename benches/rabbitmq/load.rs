//! An open loop: messages are published when they are due, at a steady rate, whatever becomes of the earlier ones.
//!
//! Every message says when it was *due*, not when it was published, so what the publisher is late counts as latency:
//! a system that makes its publishers wait does not look fast.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::FutureExt as _;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Connection, PublisherConfirm};
use metrics::HistogramFn as _;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::clock::monotonic_ns;
use crate::mix::Mix;
use crate::node::Node;
use crate::support::recorder::Distribution;

/// Shorter sleeps would only burn a core; what is due meanwhile is published at once.
const SLEEP_MIN: Duration = Duration::from_micros(200);

const REFUSED: &str = "the broker refused a message";

/// A publisher with confirms; on a thread of its own, as timers of tokio are a millisecond coarse.
pub(crate) struct Load {
    connection: Connection,
    channel: Channel,
    queue: String,
    mix: Option<Mix>,
}

/// A rate that is being offered.
pub(crate) struct Offering {
    started_ns: u64,
    pub(crate) schedule: Schedule,
    publishing: JoinHandle<Result<(Mix, Distribution)>>,
}

#[derive(Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) per_s: f64,
    pub(crate) messages: u64,
}

impl Schedule {
    pub(crate) fn new(per_s: f64, time: Duration) -> Self {
        Self { per_s, messages: (per_s * time.as_secs_f64()) as u64 }
    }

    fn due_ns(&self, number: u64) -> u64 {
        (number as f64 / self.per_s * 1e9) as u64
    }
}

impl Load {
    pub(crate) async fn new(node: &Node, queue: &str) -> Result<Self> {
        let (connection, channel) = node.publishing().await?;
        Ok(Self { connection, channel, queue: queue.to_owned(), mix: Some(Mix::new()) })
    }

    /// Begins now.
    pub(crate) fn offer(&mut self, schedule: Schedule) -> Result<Offering> {
        let started_ns = monotonic_ns()?;
        let publishing = Publishing {
            runtime: Handle::current(),
            channel: self.channel.clone(),
            queue: self.queue.clone(),
            mix: self.mix.take().context("another rate is being offered")?,
            late_s: Distribution::default(),
            unconfirmed: VecDeque::new(),
        };
        let publishing = tokio::task::spawn_blocking(move || publishing.run(started_ns, schedule));
        Ok(Offering { started_ns, schedule, publishing })
    }

    /// Waits for the end; the part of a second that the publisher was late, for 99 of 100 messages.
    pub(crate) async fn end_of(&mut self, offering: Offering) -> Result<f64> {
        let (mix, late_s) = offering.publishing.await??;
        self.mix = Some(mix);
        Ok(late_s.quantile(0.99))
    }

    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.connection.close(200, "OK".into()).await?)
    }
}

impl Offering {
    /// How many messages should have been published by now.
    pub(crate) fn due(&self) -> Result<u64> {
        let due = self.elapsed()?.as_secs_f64() * self.schedule.per_s;
        Ok(self.schedule.messages.min(due as u64))
    }

    pub(crate) fn elapsed(&self) -> Result<Duration> {
        Ok(Duration::from_nanos(monotonic_ns()?.saturating_sub(self.started_ns)))
    }
}

struct Publishing {
    runtime: Handle,
    channel: Channel,
    queue: String,
    mix: Mix,
    late_s: Distribution,
    unconfirmed: VecDeque<PublisherConfirm>,
}

impl Publishing {
    fn run(mut self, started_ns: u64, schedule: Schedule) -> Result<(Mix, Distribution)> {
        for number in 0..schedule.messages {
            let due_ns = started_ns + schedule.due_ns(number);
            let early = Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()?));
            if !early.is_zero() {
                self.see_confirms()?;
                std::thread::sleep(early.max(SLEEP_MIN));
            }
            self.publish(due_ns)?;
            let late_ns = monotonic_ns()?.saturating_sub(due_ns);
            self.late_s.record(late_ns as f64 / 1e9);
        }
        for confirm in self.unconfirmed {
            ensure!(self.runtime.block_on(confirm)?.is_ack(), REFUSED);
        }
        Ok((self.mix, self.late_s))
    }

    fn publish(&mut self, due_ns: u64) -> Result<()> {
        let made = self.mix.make(Some(due_ns));
        let (queue, options) = (self.queue.as_str().into(), BasicPublishOptions::default());
        let (body, properties) = (&made.body, made.properties);
        let publish = self.channel.basic_publish("".into(), queue, options, body, properties);
        self.unconfirmed.push_back(self.runtime.block_on(publish)?);
        Ok(())
    }

    /// Takes the confirms that are there, and waits for none.
    fn see_confirms(&mut self) -> Result<()> {
        while let Some(confirm) =
            self.unconfirmed.front_mut().and_then(|first| first.now_or_never())
        {
            ensure!(confirm?.is_ack(), REFUSED);
            self.unconfirmed.pop_front();
        }
        Ok(())
    }
}
