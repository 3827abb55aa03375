//! Does anything drift when the worker carries 70 % of what it can for a long time?
//!
//! First, in a process of its own, how much it can: as fast as possible, with records that are collected meanwhile.
//! Then so much of it by a timetable, with a line for each window. The retention is short, so that memory and disk
//! reach their plateau soon: after it for records, after twice that for what is kept of expired ones.

use std::num::{NonZeroU16, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use onceward::{MemoryBroker, Options, StoreOptions, Worker};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::case::MAIN_KEYS;
use crate::support::load::{Messages, QUEUE, keep_for, nothing, queue};
use crate::support::machine;
use crate::support::offering::{Offering, Timetable};
use crate::support::recorder::Recorder;
use crate::support::rounds::{Rounds, rounded};
use crate::support::timed::TimedBroker;

const MIB: f64 = (1 << 20) as f64;
const PREFETCH: NonZeroU16 = NonZeroU16::MIN.saturating_add(1999);
const LOAD_PERCENT: f64 = 70.0;
/// Retentions until memory and disk are level, with some to spare.
const SETTLED_AFTER: u32 = 3;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sustain {
    pub(crate) measured_for: Duration,
    pub(crate) window: Duration,
    pub(crate) retention: Duration,
}

/// What is seen of one window.
#[derive(Clone, Copy, Debug)]
struct Window {
    at_s: f64,
    acked_per_s: f64,
    rss_mib: f64,
    disk_mib: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Sustain {
    /// In the child: what it can carry while it collects.
    pub(crate) fn rate(&self) -> Result<Value> {
        let acked_per_s = self.worker(Timetable::NO_LIMIT_PER_S, async |offered| {
            tokio::time::sleep(self.retention * (SETTLED_AFTER - 1)).await;
            let (started, before) = (Instant::now(), offered.broker.stats().acked);
            tokio::time::sleep(self.retention).await;
            let acked = offered.broker.stats().acked - before;
            Ok(acked as f64 / started.elapsed().as_secs_f64())
        })?;
        Ok(json!({"case": "sustain rate", "acked_per_s": rounded(acked_per_s, 0)}))
    }

    /// 70 % of this rate, with a line for each window.
    pub(crate) fn run(&self, most_per_s: f64, recorder: &Recorder) -> Result<()> {
        let per_s = (most_per_s * LOAD_PERCENT / 100.0) as u64;
        println!(
            "{:>8} {:>10} {:>10} {:>9} {:>9} {:>8} {:>8}",
            "s", "offered/s", "acked/s", "RSS MiB", "disk MiB", "p50 ms", "p99 ms"
        );
        let windows = self.worker(per_s, async |offered| {
            let mut windows: Vec<Window> = Vec::new();
            while offered.started.elapsed() < self.measured_for {
                let (started, acked_before) = (Instant::now(), offered.broker.stats().acked);
                tokio::time::sleep(self.window).await;
                let acked = offered.broker.stats().acked - acked_before;
                let latency_s = offered.timed.take_latency();
                let window = Window {
                    at_s: offered.started.elapsed().as_secs_f64(),
                    acked_per_s: acked as f64 / started.elapsed().as_secs_f64(),
                    rss_mib: machine::rss_bytes()? as f64 / MIB,
                    disk_mib: machine::disk_bytes(offered.directory)? as f64 / MIB,
                    p50_ms: latency_s.quantile(0.5) * 1e3,
                    p99_ms: latency_s.quantile(0.99) * 1e3,
                };
                let ids = recorder.count("done_total") - recorder.count("collected_total");
                window.print(per_s, ids);
                windows.push(window);
            }
            Ok(windows)
        })?;
        let settled_s = (self.retention * SETTLED_AFTER).as_secs_f64();
        let settled: Vec<Window> =
            windows.into_iter().filter(|window| window.at_s > settled_s).collect();
        ensure!(settled.len() > 1, "too short for a drift: --sustain more, or --window-s less");
        println!("{}", drift(&settled));
        Ok(())
    }

    /// Runs a worker that is offered so much, while `watch` watches.
    fn worker<T>(
        &self,
        per_s: u64,
        watch: impl AsyncFnOnce(Offered<'_>) -> Result<T>,
    ) -> Result<T> {
        let broker = MemoryBroker::new();
        broker.declare(QUEUE);
        let per_s = NonZeroU64::new(per_s).context("a rate of 0")?;
        let timed = TimedBroker::new(broker.clone(), per_s);
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mut queue = queue();
        queue.prefetch = PREFETCH;
        keep_for(&mut queue, self.retention);
        let store = StoreOptions::new(directory.path());
        let worker = Worker::new(Options::with_broker(Arc::new(timed.clone()), store))
            .queue_with(queue, nothing);
        let mut watched = None;
        let offered = async {
            let timetable = timed.consumed().await;
            let mut messages = Messages::of(MAIN_KEYS);
            let offering =
                Offering::start(broker.clone(), timetable, move || Some(messages.next()));
            let offered = Offered {
                broker: &broker,
                timed: &timed,
                directory: directory.path(),
                started: timetable.started,
            };
            let seen = watch(offered).await;
            watched = Some(offering.and_then(Offering::stop).and(seen));
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(worker.run_until(offered))?;
        watched.context("the worker ended by itself")?
    }
}

struct Offered<'a> {
    broker: &'a MemoryBroker,
    timed: &'a TimedBroker,
    directory: &'a std::path::Path,
    started: Instant,
}

impl Window {
    fn print(&self, offered_per_s: u64, ids: u64) {
        let Self { at_s, acked_per_s, rss_mib, disk_mib, p50_ms, p99_ms } = *self;
        println!(
            "{}",
            json!({
                "case": "sustain",
                "at_s": rounded(at_s, 0),
                "offered_per_s": offered_per_s,
                "acked_per_s": rounded(acked_per_s, 0),
                "rss_mib": rounded(rss_mib, 1),
                "disk_mib": rounded(disk_mib, 1),
                "ids": ids,
                "p50_ms": rounded(p50_ms, 2),
                "p99_ms": rounded(p99_ms, 2),
            })
        );
        println!(
            "{at_s:>8.0} {offered_per_s:>10} {acked_per_s:>10.0} {rss_mib:>9.1} {disk_mib:>9.1} {p50_ms:>8.2} {p99_ms:>8.2}"
        );
    }
}

/// By how much each figure moves in an hour, by the line that fits the windows best, and the spread of p99.
fn drift(windows: &[Window]) -> Value {
    let per_hour = |figure: fn(&Window) -> f64| {
        let count = windows.len() as f64;
        let mean = |of: &dyn Fn(&Window) -> f64| windows.iter().map(of).sum::<f64>() / count;
        let (mean_s, mean_figure) = (mean(&|window| window.at_s), mean(&figure));
        let above = mean(&|window| (window.at_s - mean_s) * (figure(window) - mean_figure));
        above / mean(&|window| (window.at_s - mean_s).powi(2)) * 3600.0
    };
    let p99_ms: Rounds = windows.iter().map(|window| window.p99_ms).collect();
    let acked_per_s: Rounds = windows.iter().map(|window| window.acked_per_s).collect();
    json!({
        "case": "sustain drift",
        "windows": windows.len(),
        "acked_per_s": acked_per_s.json(0),
        "acked_per_s_an_hour": rounded(per_hour(|window| window.acked_per_s), 0),
        "rss_mib_an_hour": rounded(per_hour(|window| window.rss_mib), 1),
        "disk_mib_an_hour": rounded(per_hour(|window| window.disk_mib), 1),
        "p99_ms": p99_ms.json(2),
        "p99_ms_an_hour": rounded(per_hour(|window| window.p99_ms), 2),
    })
}
