//! What does a retained id cost in memory and on disk, and does the store stay as fast when it holds a million?
//!
//! Through the public API only. A first process fills a store from the in-process broker and prints a line each
//! quarter: a rate that falls would show there. Others open the full store and an empty one; opening ends when a
//! first message reaches its handler. What an id takes of memory is the difference between the two: the index, and
//! those pages of the journal that sled keeps after the scan, which are all of them here whatever its cache's size.
//! The feeding of the broker runs in the same process, so rates here are lower than those of `pipeline`.
//!
//! `cargo bench --bench store -- [--ids 1000000]`

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use onceward::{
    Body, Context, Handler, MemoryBroker, Message, Options, Properties, QueueOptions, StoreOptions,
    Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

mod support;

use support::machine;
use support::rounds::{argument, rounded};

const QUEUE: &str = "bench";
const BODY_BYTES: usize = 64;
const MIB: f64 = (1 << 20) as f64;

/// Messages that wait in the broker at most, so that they do not count as memory of the store.
const WAITING_MAX: usize = 5_000;

/// What a child is told, in its environment.
const TASK: &str = "ONCEWARD_BENCH_TASK";

#[derive(Serialize, Deserialize)]
struct Task {
    directory: String,
    cache_bytes: u64,
    /// How many ids to write; 0 is to open the store only.
    ids: u64,
}

#[derive(Serialize, Deserialize)]
struct Opened {
    open_s: f64,
    rss_bytes: u64,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::var(TASK) {
        Ok(task) => {
            let task: Task = serde_json::from_str(&task)?;
            if task.ids > 0 {
                return runtime.block_on(fill(&task));
            }
            let opened = runtime.block_on(open(&task))?;
            println!("{}", serde_json::to_string(&opened)?);
            Ok(())
        }
        Err(_) => parent(),
    }
}

fn parent() -> Result<()> {
    let ids: u64 = argument("--ids", 1_000_000)?;
    println!("{}", machine::header("store", json!({"ids": ids}))?);
    let [full, empty] = [(); 2].map(|()| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")));
    let (full, empty) = (full?, empty?);
    let default_cache = StoreOptions::new(full.path()).cache_bytes;

    child(full.path(), default_cache, ids, Stdio::inherit())?;
    let disk_bytes = machine::disk_bytes(full.path())?;
    let opened = |directory: &Path, cache_bytes| {
        let output = child(directory, cache_bytes, 0, Stdio::piped())?;
        anyhow::Ok(serde_json::from_slice::<Opened>(&output)?)
    };
    let usual = opened(full.path(), default_cache)?;
    let no_cache = opened(full.path(), 1 << 20)?;
    let nothing = opened(empty.path(), 1 << 20)?;
    let per_id = |bytes: u64| rounded(bytes as f64 / ids as f64, 1);
    println!(
        "{}",
        json!({
            "case": "open",
            "ids": ids,
            "open_s": rounded(usual.open_s, 2),
            "open_empty_s": rounded(nothing.open_s, 2),
            "rss_mib": rounded(usual.rss_bytes as f64 / MIB, 1),
            "rss_mib_cache_1_mib": rounded(no_cache.rss_bytes as f64 / MIB, 1),
            "rss_mib_empty": rounded(nothing.rss_bytes as f64 / MIB, 1),
            "rss_bytes_per_id": per_id(no_cache.rss_bytes.saturating_sub(nothing.rss_bytes)),
            "disk_mib": rounded(disk_bytes as f64 / MIB, 1),
            "disk_bytes_per_id": per_id(disk_bytes),
            "promised_index_bytes_per_id": onceward::MEMORY_BYTES_PER_ID,
            "load_1m": machine::load_1m()?,
        })
    );
    Ok(())
}

fn child(directory: &Path, cache_bytes: u64, ids: u64, stdout: Stdio) -> Result<Vec<u8>> {
    let task = Task {
        directory: directory.to_str().context("a path in UTF-8")?.to_owned(),
        cache_bytes,
        ids,
    };
    let output = Command::new(std::env::current_exe()?)
        .env(TASK, serde_json::to_string(&task)?)
        .stdout(stdout)
        .stderr(Stdio::inherit())
        .spawn()?
        .wait_with_output()?;
    ensure!(output.status.success(), "a child failed");
    Ok(output.stdout)
}

/// Tells when the first message arrives.
struct Arrived(Arc<Notify>);

impl Handler<Body> for Arrived {
    async fn handle(&self, _: &mut Context, _: Body) -> onceward::Result {
        self.0.notify_one();
        Ok(())
    }
}

fn worker(task: &Task, broker: &MemoryBroker, handler: impl Handler<Body>) -> Worker {
    let mut store = StoreOptions::new(&task.directory);
    store.cache_bytes = task.cache_bytes;
    broker.declare(QUEUE);
    Worker::new(Options::with_broker(Arc::new(broker.clone()), store))
        .queue_with(QueueOptions::new(QUEUE), handler)
}

fn message(random: &mut fastrand::Rng) -> Message {
    Message {
        routing_key: QUEUE.to_owned(),
        properties: Properties {
            message_id: Some(format!("{:032x}", random.u128(..))),
            ..Properties::default()
        },
        body: vec![7; BODY_BYTES].into(),
        ..Message::default()
    }
}

async fn open(task: &Task) -> Result<Opened> {
    let broker = MemoryBroker::new();
    let arrived = Arc::new(Notify::new());
    let worker = worker(task, &broker, Arrived(Arc::clone(&arrived)));
    broker.publish(message(&mut fastrand::Rng::new()));
    let started = Instant::now();
    let mut opened = None;
    let first_arrived = async {
        arrived.notified().await;
        let open_s = started.elapsed().as_secs_f64();
        opened = Some(machine::rss_bytes().map(|rss_bytes| Opened { open_s, rss_bytes }));
    };
    worker.run_until(first_arrived).await?;
    opened.context("the worker ended by itself")?
}

async fn nothing(_: &mut Context, _: Body) -> onceward::Result {
    Ok(())
}

async fn fill(task: &Task) -> Result<()> {
    let broker = MemoryBroker::new();
    let worker = worker(task, &broker, nothing);
    let mut filled = None;
    let all_acked = async {
        filled = Some(feed(task, &broker).await);
    };
    worker.run_until(all_acked).await?;
    filled.context("the worker ended by itself")?
}

/// Keeps the queue from running dry until all ids are acked; prints a line each quarter.
async fn feed(task: &Task, broker: &MemoryBroker) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(1);
    const QUARTERS: u64 = 4;
    let mut random = fastrand::Rng::new();
    let mut published = 0;
    for quarter in 1..=QUARTERS {
        let started = Instant::now();
        let before = broker.stats().acked;
        let goal = task.ids * quarter / QUARTERS;
        while broker.stats().acked < goal {
            while published < goal && broker.depth(QUEUE).0 < WAITING_MAX {
                broker.publish(message(&mut random));
                published += 1;
            }
            tokio::time::sleep(LOOK).await;
        }
        let rate = (goal - before) as f64 / started.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({
                "case": "fill",
                "ids": goal,
                "messages_per_s": rounded(rate, 0),
                "rss_mib": rounded(machine::rss_bytes()? as f64 / MIB, 1),
                "disk_mib": rounded(machine::disk_bytes(Path::new(&task.directory))? as f64 / MIB, 1),
            })
        );
    }
    Ok(())
}
