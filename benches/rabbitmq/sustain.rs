//! Does anything drift when onceward goes on for long? One line every 30 seconds.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use crate::child::Serve;
use crate::load::{Load, Schedule};
use crate::node::Node;
use crate::served::Served;
use crate::support::rounds::rounded;

const EVERY: Duration = Duration::from_secs(30);

/// So short that memory and disk come to their plateau: after twice this, as what has expired is noticed once more, and
/// when sled's cache is full.
const RETENTION_S: u64 = 120;

/// At this rate for this time; latencies are what `latency.rs` measures.
pub(crate) async fn sustain(node: &Node, per_s: f64, time: Duration) -> Result<()> {
    let queue = node.declare().await?;
    let mut served = Served::start(Serve { node: node.task(&queue), retention_s: RETENTION_S })?;
    let mut load = Load::new(node, &queue).await?;
    let began = json!({
        "sustain_s": time.as_secs(), "offered_per_s": rounded(per_s, 0),
        "retention_s": RETENTION_S,
    });
    println!("{began}");
    served.take().await?;
    let offering = load.offer(Schedule::new(per_s, time))?;
    let mut acked = 0;
    let mut last = Instant::now();
    let mut looks = tokio::time::interval_at(last + EVERY, EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..time.as_secs() / EVERY.as_secs() {
        looks.tick().await;
        let taken = served.take().await?;
        let elapsed_s = last.elapsed().as_secs_f64();
        last = Instant::now();
        acked += taken.acked;
        let mib = |bytes: u64| rounded(bytes as f64 / f64::from(1 << 20), 1);
        let line = json!({
            "at_s": offering.elapsed()?.as_secs(),
            "messages_per_s": rounded(taken.acked as f64 / elapsed_s, 0),
            "waiting": offering.due()?.saturating_sub(acked),
            "p50_ms": rounded(taken.p50_ms, 2),
            "p99_ms": rounded(taken.p99_ms, 2),
            "p999_ms": rounded(taken.p999_ms, 2),
            "syncs_per_s": rounded(taken.syncs as f64 / elapsed_s, 0),
            "rss_mib": mib(taken.rss_bytes),
            "disk_mib": mib(taken.disk_bytes),
        });
        println!("{line}");
    }
    load.end_of(offering).await?;
    load.close().await?;
    served.end().await?;
    node.delete(&queue).await
}
