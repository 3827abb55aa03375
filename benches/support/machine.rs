//! What a figure depends on beside the code: the machine, its load, and what processes used of it.
//!
//! Read from `/proc`. CPU time comes in ticks of 10 ms, so a run must last seconds.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// USER_HZ, which Linux fixes at 100 for `/proc` whatever the kernel ticks with.
const TICKS_PER_SECOND: u64 = 100;

/// The line that every bench prints first.
pub(crate) fn header(bench: &str, settings: Value) -> Result<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|line| line.trim_start_matches([' ', '\t', ':']));
    Ok(json!({
        "bench": bench,
        "cores": std::thread::available_parallelism()?.get(),
        // Of tokio's runtime; as many as cores if nothing is set.
        "threads": std::env::var("TOKIO_WORKER_THREADS").ok(),
        "cpu": model,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "load_1m": load_1m()?,
        "settings": settings,
    }))
}

/// Processes that ran or waited for a core or the disk, over the last minute.
pub(crate) fn load_1m() -> Result<f64> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let first = load.split_whitespace().next().context("an empty load average")?;
    Ok(first.parse()?)
}

/// CPU time of a process so far, user and system, in microseconds.
pub(crate) fn cpu_us(process: &str) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may hold spaces; after it come the fields from the third on.
    let (_, fields) = stat.rsplit_once(')').context("a stat line without a name")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks * 1_000_000 / TICKS_PER_SECOND)
}

/// CPU time of this process so far, in microseconds.
pub(crate) fn own_cpu_us() -> Result<u64> {
    cpu_us("self")
}

/// Resident memory of this process, in bytes.
pub(crate) fn rss_bytes() -> Result<u64> {
    status_bytes("VmRSS:")
}

/// The most that was ever resident of this process, in bytes.
pub(crate) fn rss_peak_bytes() -> Result<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.with_context(|| format!("no {name}"))?.parse::<u64>()? * 1024)
}

/// What the files of a directory take on disk, in bytes.
pub(crate) fn disk_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            bytes += metadata.blocks() * 512;
        }
    }
    Ok(bytes)
}
