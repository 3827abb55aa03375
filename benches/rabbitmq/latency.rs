//! How long does a message take from its publisher to its ack, at which rate?
//!
//! Measured is the time from the moment a message was *due* at its publisher (an open loop, see `load.rs`) to when its
//! ack, or the `multiple` ack that covers it, was written to the socket: publisher, broker, waiting in the broker,
//! handler, commit, sync and the wait for earlier acks. The publisher runs in the parent, `onceward` in a process of
//! its own, with a handler that does nothing; both read the system's monotonic clock. CPU of the broker has the
//! publisher's side in it, and what the broker does when it is idle.
//!
//! A rate is *sustained* if the queue does not grow: in the last second in which it is offered there is a moment when
//! less than a tenth of a second's messages are due and not acked. The highest one is searched from half of the rate of
//! the drains upwards, in steps of a tenth of it, each offered for `--latency-seconds`; the last step is halved once.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tokio::time::Instant;

use crate::child::Serve;
use crate::load::{Load, Schedule};
use crate::node::Node;
use crate::served::{Served, Taken};
use crate::support::rounds::{Rounds, rounded};

/// How often the acks are counted while a rate is offered.
const LOOK: Duration = Duration::from_millis(100);
/// In which part of the end of its time a rate has to show that it is sustained.
const JUDGED: Duration = Duration::from_secs(1);
/// How many seconds' worth of messages may wait at a rate that is sustained.
const WAITING_MAX_S: f64 = 0.1;
/// How long the queue may take to be empty after a rate that was not.
const EMPTY_WITHIN: Duration = Duration::from_secs(120);

/// Steps of the search for the highest rate, in parts of the rate of the drains.
const FIRST: f64 = 0.5;
const STEP: f64 = 0.1;
const LAST: f64 = 1.5;

/// As by default.
const RETENTION_S: u64 = 7 * 24 * 60 * 60;

/// A rate at which there is room for the unforeseen.
pub(crate) fn comfortable(highest_per_s: f64) -> f64 {
    0.7 * highest_per_s
}

/// One rate, offered for a time.
struct Offered {
    messages: u64,
    sustained: bool,
    /// How late the publisher was, for 99 of 100 messages.
    late_p99_ms: f64,
    taken: Taken,
}

pub(crate) struct Latencies<'a> {
    node: &'a Node,
    queue: String,
    served: Served,
    load: Load,
    time: Duration,
}

impl<'a> Latencies<'a> {
    /// Each rate is offered for this time.
    pub(crate) async fn start(node: &'a Node, time: Duration) -> Result<Self> {
        let queue = node.declare().await?;
        let served = Served::start(Serve { node: node.task(&queue), retention_s: RETENTION_S })?;
        let load = Load::new(node, &queue).await?;
        let mut latencies = Self { node, queue, served, load, time };
        // Until the worker has connected and its pools are warm.
        let warm_up = Schedule::new(1_000.0, Duration::from_secs(2));
        latencies.offer(warm_up).await?;
        Ok(latencies)
    }

    /// The highest rate that is sustained, in messages a second.
    pub(crate) async fn highest_rate(&mut self, drain_per_s: f64) -> Result<f64> {
        let mut part = FIRST;
        while !self.is_sustained(part * drain_per_s).await? {
            part /= 2.0;
            ensure!(part > FIRST / 32.0, "no rate is sustained");
        }
        while part + STEP <= LAST && self.is_sustained((part + STEP) * drain_per_s).await? {
            part += STEP;
        }
        if self.is_sustained((part + STEP / 2.0) * drain_per_s).await? {
            part += STEP / 2.0;
        }
        Ok(part * drain_per_s)
    }

    async fn is_sustained(&mut self, per_s: f64) -> Result<bool> {
        let offered = self.offer(Schedule::new(per_s, self.time)).await?;
        let verdict = if offered.sustained { "is sustained" } else { "is too much" };
        eprintln!("offered {per_s:>8.0} messages/s: {verdict}");
        Ok(offered.sustained)
    }

    /// Latencies at rates that say something, in turn, for so many rounds: JSON lines, and a table for people.
    pub(crate) async fn measure(&mut self, highest_per_s: f64, rounds: usize) -> Result<()> {
        let mut points = [
            Point::new("1000", 1_000.0),
            Point::new("5000", 5_000.0),
            Point::new("highest sustained", highest_per_s),
            Point::new("0.7 of the highest", comfortable(highest_per_s)),
        ];
        for _ in 0..rounds {
            for point in &mut points {
                let offered = self.offer(Schedule::new(point.per_s, self.time)).await?;
                point.push(&offered, self.time);
            }
        }
        eprintln!(
            "\n{:<20} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "offered", "messages/s", "p50 ms", "p99 ms", "p99.9 ms", "worker us", "sustained"
        );
        for point in &points {
            point.report();
        }
        eprintln!();
        Ok(())
    }

    /// Offers a rate to the end, and waits until all is acked.
    async fn offer(&mut self, schedule: Schedule) -> Result<Offered> {
        let before = self.served.acked().await?;
        self.served.take().await?;
        let offering = self.load.offer(schedule)?;
        let time_s = schedule.messages as f64 / schedule.per_s;
        let judged_from = Duration::from_secs_f64(time_s).saturating_sub(JUDGED);
        let mut least_waiting = u64::MAX;
        while offering.elapsed()?.as_secs_f64() < time_s {
            tokio::time::sleep(LOOK).await;
            let acked = self.served.acked().await? - before;
            if offering.elapsed()? >= judged_from {
                least_waiting = least_waiting.min(offering.due()?.saturating_sub(acked));
            }
        }
        let late_p99_ms = self.load.end_of(offering).await? * 1e3;
        let ended = Instant::now();
        while self.served.acked().await? < before + schedule.messages {
            if ended.elapsed() > EMPTY_WITHIN {
                bail!("messages are not acked after {EMPTY_WITHIN:?}");
            }
            tokio::time::sleep(LOOK / 10).await;
        }
        Ok(Offered {
            messages: schedule.messages,
            sustained: (least_waiting as f64) < WAITING_MAX_S * schedule.per_s,
            late_p99_ms,
            taken: self.served.take().await?,
        })
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.load.close().await?;
        self.served.end().await?;
        self.node.delete(&self.queue).await
    }
}

/// All rounds at one rate.
struct Point {
    name: &'static str,
    per_s: f64,
    rounds_sustained: usize,
    p50_ms: Rounds,
    p99_ms: Rounds,
    p999_ms: Rounds,
    publisher_late_p99_ms: Rounds,
    worker_cpu_us: Rounds,
    broker_cpu_us: Rounds,
    syncs_per_s: Rounds,
}

impl Point {
    fn new(name: &'static str, per_s: f64) -> Self {
        let new = Rounds::default;
        Self {
            name,
            per_s,
            rounds_sustained: 0,
            p50_ms: new(),
            p99_ms: new(),
            p999_ms: new(),
            publisher_late_p99_ms: new(),
            worker_cpu_us: new(),
            broker_cpu_us: new(),
            syncs_per_s: new(),
        }
    }

    fn push(&mut self, offered: &Offered, time: Duration) {
        let taken = &offered.taken;
        let each = |us: u64| us as f64 / offered.messages as f64;
        self.rounds_sustained += usize::from(offered.sustained);
        self.p50_ms.push(taken.p50_ms);
        self.p99_ms.push(taken.p99_ms);
        self.p999_ms.push(taken.p999_ms);
        self.publisher_late_p99_ms.push(offered.late_p99_ms);
        self.worker_cpu_us.push(each(taken.worker_cpu_us));
        if let Some(us) = taken.broker_cpu_us {
            self.broker_cpu_us.push(each(us));
        }
        self.syncs_per_s.push(taken.syncs as f64 / time.as_secs_f64());
        eprintln!("offered {:>8.0} messages/s: p99 {:.2} ms", self.per_s, taken.p99_ms);
    }

    fn report(&self) {
        let broker = !self.broker_cpu_us.median().is_nan();
        let line = json!({
            "offered": self.name,
            "offered_per_s": rounded(self.per_s, 0),
            "rounds_sustained": self.rounds_sustained,
            "p50_ms": self.p50_ms.json(2),
            "p99_ms": self.p99_ms.json(2),
            "p999_ms": self.p999_ms.json(2),
            "publisher_late_p99_ms": self.publisher_late_p99_ms.json(2),
            "worker_cpu_us_per_message": self.worker_cpu_us.json(1),
            "broker_cpu_us_per_message": broker.then(|| self.broker_cpu_us.json(1)),
            "syncs_per_s": self.syncs_per_s.json(0),
        });
        println!("{line}");
        eprintln!(
            "{:<20} {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>9.1} {:>9}",
            self.name,
            self.per_s,
            self.p50_ms.median(),
            self.p99_ms.median(),
            self.p999_ms.median(),
            self.worker_cpu_us.median(),
            self.rounds_sustained,
        );
    }
}
