//! As many new ids as asked for, as fast as they go; the feeding of the broker runs in the same process.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use onceward::{MemoryBroker, QueueOptions};
use serde_json::json;
use tokio::time::Instant;

use crate::MIB;
use crate::support::load::{QUEUE, nothing};
use crate::support::machine;
use crate::support::rounds::rounded;
use crate::task::{Task, message};

/// Messages that wait in the broker at most, so that they do not count as memory of the store.
const WAITING_MAX: usize = 5_000;
const QUARTERS: u64 = 4;
/// What the first and the last line are about, of a store that is large enough.
const ENDS: u64 = 1_000_000;

pub(crate) async fn fill(task: &Task, ids: u64) -> Result<()> {
    let broker = MemoryBroker::new();
    let worker = task.worker(&broker, QueueOptions::new(QUEUE), nothing);
    let mut filled = None;
    let all_acked = async {
        filled = Some(feed(task, &broker, ids).await);
    };
    worker.run_until(all_acked).await?;
    filled.context("the worker ended by itself")?
}

/// Numbers of ids at which a line is printed: quarters, and the first and the last million if they are less than that.
fn marks(ids: u64) -> Vec<u64> {
    let mut marks: Vec<u64> = (1..=QUARTERS).map(|quarter| ids * quarter / QUARTERS).collect();
    if ids / QUARTERS > ENDS {
        marks.extend([ENDS, ids - ENDS]);
    }
    marks.sort_unstable();
    marks
}

/// Keeps the queue from running dry until all ids are acked.
async fn feed(task: &Task, broker: &MemoryBroker, ids: u64) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(1);
    let mut published = 0;
    for goal in marks(ids) {
        let started = Instant::now();
        let before = broker.stats().acked;
        while broker.stats().acked < goal {
            let room = WAITING_MAX.saturating_sub(broker.depth(QUEUE).0) as u64;
            for _ in 0..room.min(ids - published) {
                broker.publish(message(published));
                published += 1;
            }
            tokio::time::sleep(LOOK).await;
        }
        let acked = broker.stats().acked;
        let rate = (acked - before) as f64 / started.elapsed().as_secs_f64();
        let rss_mib = machine::rss_bytes()? as f64 / MIB;
        let disk_mib = machine::disk_bytes(Path::new(&task.directory))? as f64 / MIB;
        println!(
            "{}",
            json!({
                "case": "fill",
                "of": ids,
                "ids": goal,
                "messages_per_s": rounded(rate, 0),
                "rss_mib": rounded(rss_mib, 1),
                "disk_mib": rounded(disk_mib, 1),
            })
        );
        println!(
            "fill to {goal:>9}: {rate:>8.0} a second, {rss_mib:.0} MiB, {disk_mib:.0} MiB of disk"
        );
    }
    Ok(())
}
