//! What the removal of expired ids costs: a short retention against a long one, at full speed and at half of it.
//!
//! At full speed the time of a commit is that of the queue before it; at half, pauses show. The figures of a run are
//! those of its second half, when with a short retention as much leaves as comes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use onceward::{MemoryBroker, QueueOptions, StoreOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::load::{QUEUE, keep_for, nothing};
use crate::support::machine;
use crate::support::offering::{Offering, Timetable};
use crate::support::recorder::{Distribution, Recorder};
use crate::support::rounds::rounded;
use crate::task::{Task, What, message};
use crate::{MIB, child};

/// Windows of one run: a retention is one of them, so that records leave from the second on and what is kept of expired
/// ones from the third.
const WINDOWS: u32 = 6;
const LONG: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Churn {
    per_s: u64,
    window: Duration,
    retention: Duration,
}

/// All four runs, and a line with those of its figures that are to be compared.
pub(crate) fn compare(seconds: u64) -> Result<()> {
    let window = Duration::from_secs(seconds) / WINDOWS;
    let run = |per_s, retention| -> Result<Value> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let cache_bytes = StoreOptions::new(directory.path()).cache_bytes;
        let what = What::Churn(Churn { per_s, window, retention });
        let said = child(&Task::new(directory.path(), cache_bytes, what)?)?;
        said.into_iter().last().context("the child said nothing")
    };
    let rate = |said: &Value| said.get("messages_per_s").and_then(Value::as_f64).unwrap_or(0.0);
    let kept = run(Timetable::NO_LIMIT_PER_S, LONG)?;
    let collected = run(Timetable::NO_LIMIT_PER_S, window)?;
    println!(
        "{}",
        json!({
            "case": "churn ratio",
            "rate_with_over_without_collection": rounded(rate(&collected) / rate(&kept), 3),
        })
    );
    let half = (rate(&collected).min(rate(&kept)) / 2.0) as u64;
    run(half.max(1), LONG)?;
    run(half.max(1), window)?;
    Ok(())
}

pub(crate) async fn churn(task: &Task, churn: &Churn, recorder: &Recorder) -> Result<()> {
    let broker = MemoryBroker::new();
    let mut queue = QueueOptions::new(QUEUE);
    keep_for(&mut queue, churn.retention);
    let worker = task.worker(&broker, queue, nothing);
    let mut watched = None;
    let all_seen = async {
        watched = Some(watch(task, churn, &broker, recorder).await);
    };
    worker.run_until(all_seen).await?;
    watched.context("the worker ended by itself")?
}

async fn watch(
    task: &Task,
    churn: &Churn,
    broker: &MemoryBroker,
    recorder: &Recorder,
) -> Result<()> {
    let timetable = Timetable { started: Instant::now(), per_s: churn.per_s };
    let mut numbers = 0..;
    let offering = Offering::start(broker.clone(), timetable, move || numbers.next().map(message))?;
    let mut before = Seen::now(broker, recorder);
    let mut half = None;
    for window in 1..=WINDOWS {
        tokio::time::sleep(churn.window).await;
        let now = Seen::now(broker, recorder);
        println!("{}", churn.line("churn", task, &before, &now)?);
        before = now;
        if window == WINDOWS / 2 {
            half = Some(Seen::now(broker, recorder));
        }
    }
    offering.stop()?;
    let half = half.context("no windows")?;
    let line = churn.line("churn settled", task, &half, &before)?;
    println!("{line}");
    Ok(())
}

/// What was counted so far.
struct Seen {
    at: Instant,
    acked: u64,
    done: u64,
    collected: u64,
    commit_s: Distribution,
}

impl Seen {
    fn now(broker: &MemoryBroker, recorder: &Recorder) -> Self {
        Self {
            at: Instant::now(),
            acked: broker.stats().acked,
            done: recorder.count("done_total"),
            collected: recorder.count("collected_total"),
            commit_s: recorder.histogram("commit_seconds").snapshot(),
        }
    }
}

impl Churn {
    fn line(&self, case: &str, task: &Task, before: &Seen, now: &Seen) -> Result<Value> {
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let per_s = |before, now| rounded((now - before) as f64 / seconds, 0);
        let commit_s = now.commit_s.since(&before.commit_s);
        let commit_ms = |part| rounded(commit_s.quantile(part) * 1e3, 2);
        let is_limited = self.per_s < Timetable::NO_LIMIT_PER_S;
        Ok(json!({
            "case": case,
            "collection": self.retention < LONG,
            "offered_per_s": is_limited.then_some(self.per_s),
            "seconds": rounded(seconds, 1),
            "messages_per_s": per_s(before.acked, now.acked),
            "collected_per_s": per_s(before.collected, now.collected),
            "ids": now.done - now.collected,
            "rss_mib": rounded(machine::rss_bytes()? as f64 / MIB, 1),
            "disk_mib": rounded(machine::disk_bytes(Path::new(&task.directory))? as f64 / MIB, 1),
            "commit_p50_ms": commit_ms(0.5),
            "commit_p99_ms": commit_ms(0.99),
            "commit_max_ms": commit_ms(1.0),
        }))
    }
}
