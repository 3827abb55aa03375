//! How long from the moment a message was due at to its ack, when messages come by a timetable?
//!
//! An open loop: what comes late, or waits for a message that is late, counts from when it was due. No coordinated
//! omission.

use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use onceward::{MemoryBroker, Options, StoreOptions, Worker};
use serde_json::json;

use crate::case::MAIN_KEYS;
use crate::support::drain::all_acked;
use crate::support::load::{Messages, QUEUE, nothing, queue};
use crate::support::offering::Offering;
use crate::support::recorder::Distribution;
use crate::support::rounds::Rounds;
use crate::support::timed::TimedBroker;

const WARM_UP: Duration = Duration::from_secs(1);
const PREFETCH: NonZeroU16 = NonZeroU16::MIN.saturating_add(1999);
const QUANTILES: [(&str, f64); 4] =
    [("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999), ("max_ms", 1.0)];

pub(crate) const NAME: &str = "latency";

/// All rounds.
pub(crate) struct Latency {
    per_s: NonZeroU64,
    measured_for: Duration,
    messages: u64,
    quantiles_ms: [Rounds; QUANTILES.len()],
}

impl Latency {
    pub(crate) fn new(per_s: NonZeroU64, seconds: u64) -> Self {
        let measured_for = Duration::from_secs(seconds);
        Self { per_s, measured_for, messages: 0, quantiles_ms: Default::default() }
    }

    pub(crate) fn run(&mut self) -> Result<()> {
        let latency_s = self.measure()?;
        self.messages = latency_s.count();
        for (rounds, (_, part)) in self.quantiles_ms.iter_mut().zip(QUANTILES) {
            rounds.push(latency_s.quantile(part) * 1e3);
        }
        let (p50_ms, p99_ms) = (latency_s.quantile(0.5) * 1e3, latency_s.quantile(0.99) * 1e3);
        eprintln!("{NAME} at {}/s: p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms", self.per_s);
        Ok(())
    }

    fn measure(&self) -> Result<Distribution> {
        let broker = MemoryBroker::new();
        broker.declare(QUEUE);
        let timed = TimedBroker::new(broker.clone(), self.per_s);
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mut queue = queue();
        queue.prefetch = PREFETCH;
        let store = StoreOptions::new(directory.path());
        let worker = Worker::new(Options::with_broker(Arc::new(timed.clone()), store))
            .queue_with(queue, nothing);
        let mut measured = None;
        let offered = async {
            measured = Some(self.offer(&broker, &timed).await);
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(worker.run_until(offered))?;
        measured.context("the worker ended by itself")?
    }

    async fn offer(&self, broker: &MemoryBroker, timed: &TimedBroker) -> Result<Distribution> {
        let timetable = timed.consumed().await;
        let mut messages = Messages::of(MAIN_KEYS);
        let offering = Offering::start(broker.clone(), timetable, move || Some(messages.next()))?;
        tokio::time::sleep(WARM_UP).await;
        timed.take_latency();
        tokio::time::sleep(self.measured_for).await;
        // What is offered and not yet acked is late too, and belongs to it.
        let offered = offering.stop()?;
        all_acked(broker, offered).await;
        let latency_s = timed.take_latency();
        ensure!(latency_s.count() > 0, "nothing was acked");
        Ok(latency_s)
    }

    pub(crate) fn print(&self) {
        let mut line = json!({
            "case": NAME,
            "offered_per_s": self.per_s,
            "prefetch": PREFETCH,
            "keys": MAIN_KEYS,
            "messages": self.messages,
        });
        println!();
        for (rounds, (name, _)) in self.quantiles_ms.iter().zip(QUANTILES) {
            let (median, min, max) = (rounds.median(), rounds.min(), rounds.max());
            println!("{NAME} at {}/s, {name:<8} {median:>8.2} ({min:.2} to {max:.2})", self.per_s);
            if let Some(line) = line.as_object_mut() {
                line.insert(name.to_owned(), rounds.json(2));
            }
        }
        println!("{line}");
    }
}
