//! What does a retained id cost in memory and on disk, is the store as fast with twenty million as with one, and what
//! does the removal of expired ones cost?
//!
//! Through the public API only; each part in a process of its own, so that memory is its own.
//!
//! - Fill: a line each part of the way, so the rate at the last million is in the same run as that at the first.
//! - Open: of the full store and an empty one; it ends when a first message reaches its handler. What an id takes of
//!   memory is the difference: the index, and the pages that sled keeps after the scan, whatever its cache's size.
//! - Look-ups: duplicates spread over the store (each reads its block) against new ids (which need no disk), and new
//!   ids in an empty store; with a prefetch of 1 the time of each.
//! - Churn: steady input with a short retention against a long one: rate, memory, disk, and the time of commits.
//!
//! `cargo bench --bench store -- [--ids 1000000,20000000] [--look-ups 200000] [--churn-s 36] [--only churn]` with
//! `--only` one of `fill` (then nothing but it, opening and look-ups) and `churn`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use onceward::StoreOptions;
use serde_json::{Value, json};

#[path = "../support/mod.rs"]
mod support;

mod churn;
mod fill;
mod look_up;
mod open;
mod task;

use support::machine;
use support::recorder::Recorder;
use support::rounds::{argument, rounded};
use task::{Task, What};

const MIB: f64 = (1 << 20) as f64;

/// A cache that holds next to nothing.
const NO_CACHE_BYTES: u64 = 1 << 20;

/// What a child is told, in its environment.
const TASK: &str = "ONCEWARD_BENCH_TASK";

fn main() -> Result<()> {
    let Ok(task) = std::env::var(TASK) else { return parent() };
    let task: Task = serde_json::from_str(&task)?;
    let recorder = Recorder::install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match &task.what {
            What::Fill { ids } => fill::fill(&task, *ids).await,
            What::Open => open::open(&task).await,
            What::LookUp(look_up) => look_up::look_up(&task, look_up, &recorder).await,
            What::Churn(churn) => churn::churn(&task, churn, &recorder).await,
        }
    })
}

fn parent() -> Result<()> {
    let ids: String = argument("--ids", "1000000".to_owned())?;
    let look_ups: u64 = argument("--look-ups", 200_000)?;
    let churn_s: u64 = argument("--churn-s", 36)?;
    let only: String = argument("--only", String::new())?;
    let settings = json!({"ids": ids, "look_ups": look_ups, "churn_s": churn_s});
    println!("{}", machine::header("store", settings)?);
    if "fill".contains(&only) {
        for ids in ids.split(',') {
            let ids = ids.trim().parse().with_context(|| format!("--ids {ids:?}"))?;
            retained(ids, look_ups)?;
        }
    }
    if "churn".contains(&only) {
        churn::compare(churn_s)?;
    }
    println!("load of the machine at the end: {}", machine::load_1m()?);
    Ok(())
}

/// A store with so many ids: filling, opening, looking up.
fn retained(ids: u64, look_ups: u64) -> Result<()> {
    let [full, empty] = [(); 2].map(|()| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")));
    let (full, empty) = (full?, empty?);
    let default_cache = StoreOptions::new(full.path()).cache_bytes;
    let task = |directory: &Path, cache_bytes, what| Task::new(directory, cache_bytes, what);

    let filled = child(&task(full.path(), default_cache, What::Fill { ids })?)?;
    let rates: Vec<f64> =
        filled.iter().filter_map(|line| line.get("messages_per_s")?.as_f64()).collect();
    if let (Some(first), Some(last)) = (rates.first(), rates.last()) {
        let times = rounded(last / first, 3);
        println!("{}", json!({"case": "fill ratio", "ids": ids, "last_over_first": times}));
    }

    let disk_bytes = machine::disk_bytes(full.path())?;
    let opened = |directory: &Path, cache_bytes| -> Result<(f64, f64)> {
        let said = child(&task(directory, cache_bytes, What::Open)?)?;
        let figure = |name: &str| said.first()?.get(name)?.as_f64();
        Ok((figure("open_s").context("no time")?, figure("rss_bytes").context("no memory")?))
    };
    let (open_s, rss_bytes) = opened(full.path(), default_cache)?;
    let (_, no_cache_bytes) = opened(full.path(), NO_CACHE_BYTES)?;
    let (open_empty_s, empty_bytes) = opened(empty.path(), NO_CACHE_BYTES)?;
    let per_id = |bytes: f64| rounded(bytes / ids as f64, 1);
    println!(
        "{}",
        json!({
            "case": "open",
            "ids": ids,
            "open_s": rounded(open_s, 2),
            "open_empty_s": rounded(open_empty_s, 2),
            "rss_mib": rounded(rss_bytes / MIB, 1),
            "rss_mib_cache_1_mib": rounded(no_cache_bytes / MIB, 1),
            "rss_mib_empty": rounded(empty_bytes / MIB, 1),
            "rss_bytes_per_id": per_id(no_cache_bytes - empty_bytes),
            "disk_mib": rounded(disk_bytes as f64 / MIB, 1),
            "disk_bytes_per_id": per_id(disk_bytes as f64),
            "promised_index_bytes_per_id": onceward::MEMORY_BYTES_PER_ID,
            "load_1m": machine::load_1m()?,
        })
    );
    println!(
        "{ids} ids: {:.1} bytes of memory and {:.1} of disk an id, opened in {open_s:.2} s",
        per_id(no_cache_bytes - empty_bytes),
        per_id(disk_bytes as f64)
    );
    for what in look_up::all(ids, look_ups) {
        let directory = if what.ids == 0 { empty.path() } else { full.path() };
        child(&task(directory, default_cache, What::LookUp(what))?)?;
    }
    Ok(())
}

/// Has a process of its own do it, passes on what it says, and gives those of it that are JSON.
fn child(task: &Task) -> Result<Vec<Value>> {
    use std::io::{BufRead as _, BufReader};
    let mut child = Command::new(std::env::current_exe()?)
        .env(TASK, serde_json::to_string(task)?)
        .envs([crate::support::ALLOCATOR_VARIABLE])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().context("a pipe")?).lines() {
        let line = line?;
        // What an open store says is part of another line.
        if !matches!(task.what, What::Open) {
            println!("{line}");
        }
        said.extend(serde_json::from_str(&line).ok());
    }
    ensure!(child.wait()?.success(), "a child failed");
    Ok(said)
}
