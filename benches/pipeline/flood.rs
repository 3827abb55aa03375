//! What stays in memory of a million keys that come and go within ten seconds?
//!
//! In a process of its own. Twice: with the default retention, where every id is retained on purpose and its part of
//! the index may stay, and with one of a second, where all of it has expired when it is looked at last. Sled's cache
//! is small, or it would fill meanwhile and hide the rest. What the allocator keeps for later counts as not returned.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use onceward::{MEMORY_BYTES_PER_ID, MemoryBroker, Options, StoreOptions, Worker};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::drain::all_acked;
use crate::support::load::{Messages, QUEUE, keep_for, nothing, queue};
use crate::support::machine;
use crate::support::offering::{Offering, Timetable};
use crate::support::recorder::Recorder;
use crate::support::rounds::rounded;

const MIB: f64 = (1 << 20) as f64;
const CACHE_BYTES: u64 = 4 << 20;
const OFFERED_PER_S: u64 = 100_000;
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(1);

pub(crate) const NAME: &str = "flood";
pub(crate) const RETENTIONS_S: [u64; 2] = [7 * 24 * 60 * 60, 1];

/// In the child: floods the worker once, and says what it took.
pub(crate) fn flood(keys: u64, retention_s: u64, recorder: &Recorder) -> Result<Value> {
    let broker = MemoryBroker::new();
    broker.declare(QUEUE);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut store = StoreOptions::new(directory.path());
    store.cache_bytes = CACHE_BYTES;
    let mut queue = queue();
    queue.prefetch = NonZeroU16::MAX;
    keep_for(&mut queue, Duration::from_secs(retention_s));
    let worker = Worker::new(Options::with_broker(Arc::new(broker.clone()), store))
        .queue_with(queue, nothing);
    let mut measured = None;
    let flooded = async {
        measured = Some(measure(keys, &broker).await);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(worker.run_until(flooded))?;
    let Measured { took, before, peak, after } =
        measured.context("the worker ended by itself")??;

    let retained = recorder.count("done_total") - recorder.count("collected_total");
    let retained_bytes = retained * MEMORY_BYTES_PER_ID;
    let mib = |bytes: f64| rounded(bytes / MIB, 1);
    Ok(json!({
        "case": NAME,
        "keys": keys,
        "retention_s": retention_s,
        "offered_per_s": OFFERED_PER_S,
        "took_s": rounded(took.as_secs_f64(), 1),
        "rss_mib_before": mib(before),
        "rss_mib_peak": mib(peak),
        "rss_mib_after": mib(after),
        "ids_retained": retained,
        "index_mib_at_most": mib(retained_bytes as f64),
        "rss_mib_not_returned": mib(after - before - retained_bytes as f64),
    }))
}

struct Measured {
    took: Duration,
    before: f64,
    peak: f64,
    after: f64,
}

async fn measure(keys: u64, broker: &MemoryBroker) -> Result<Measured> {
    let mut messages = Messages::of(keys);
    // The worker has opened its store and run once.
    broker.publish(messages.next_of(keys));
    all_acked(broker, 1).await;
    tokio::time::sleep(IDLE).await;
    let before = machine::rss_bytes()? as f64;

    let timetable = Timetable { started: Instant::now(), per_s: OFFERED_PER_S };
    let next = (0..keys).map(move |key| messages.next_of(key));
    let mut next = next.fuse();
    let offering = Offering::start(broker.clone(), timetable, move || next.next())?;
    offering.all_offered().await?;
    all_acked(broker, keys + 1).await;
    let took = timetable.started.elapsed();
    tokio::time::sleep(SETTLE).await;
    let (peak, after) = (machine::rss_peak_bytes()? as f64, machine::rss_bytes()? as f64);
    Ok(Measured { took, before, peak, after })
}
