//! How many messages a second does the runtime itself carry, with every outcome on the disk before its ack?
//!
//! An in-process broker and a handler that does nothing, so all that is left is the runtime, sled and fdatasync on the
//! disk that `target` lies on; beside it, in the same rounds, what sled and the disk can do without a runtime for the
//! same records and syncs. Then how long a message takes at a steady rate, and what a flood of keys leaves in memory.
//!
//! `cargo bench --bench pipeline -- [--messages 300000] [--rounds 3] [--matrix full] [--only "10000 keys"]
//! [--latency-per-s 10000] [--latency-s 5] [--flood-keys 1000000]`. `--only` takes a part of a case's name, `latency`
//! or `flood`. `--sustain MINUTES [--window-s 30] [--retention-s 20]` runs that alone.

use std::num::NonZeroU64;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

#[path = "../support/mod.rs"]
mod support;

mod case;
mod drain;
mod flood;
mod latency;
mod matrix;
mod raw;
mod subject;
mod sustain;

use latency::Latency;
use matrix::Matrix;
use support::ALLOCATOR_VARIABLE;
use support::load::BODY_BYTES;
use support::machine;
use support::recorder::Recorder;
use support::rounds::argument;
use sustain::Sustain;

/// What a child is to do, in its environment: a retention for a flood in seconds, or `rate`.
const TASK: &str = "ONCEWARD_BENCH_TASK";
const RATE: &str = "rate";

fn main() -> Result<()> {
    let flood_keys: u64 = argument("--flood-keys", 1_000_000)?;
    let minutes: f64 = argument("--sustain", 0.0)?;
    let sustain = Sustain {
        measured_for: Duration::from_secs_f64(minutes * 60.0),
        window: Duration::from_secs(argument("--window-s", 30)?),
        retention: Duration::from_secs(argument("--retention-s", 20)?),
    };
    let recorder = Recorder::install()?;
    if let Ok(task) = std::env::var(TASK) {
        let said = if task == RATE {
            sustain.rate()?
        } else {
            flood::flood(flood_keys, task.parse()?, &recorder)?
        };
        println!("{said}");
        return Ok(());
    }
    if minutes > 0.0 {
        let settings = json!({
            "minutes": minutes, "window_s": sustain.window.as_secs(),
            "retention_s": sustain.retention.as_secs(), "body_bytes": BODY_BYTES,
        });
        println!("{}", machine::header("pipeline", settings)?);
        let rate = child(RATE)?;
        println!("{rate}");
        let rate = rate.get("acked_per_s").and_then(Value::as_f64).context("no rate")?;
        sustain.run(rate, &recorder)?;
    } else {
        measure(&recorder)?;
    }
    println!("load of the machine at the end: {}", machine::load_1m()?);
    Ok(())
}

fn measure(recorder: &Recorder) -> Result<()> {
    let messages: u64 = argument("--messages", 300_000)?;
    let rounds: usize = argument("--rounds", 3)?;
    let only: String = argument("--only", String::new())?;
    let matrix: String = argument("--matrix", "usual".to_owned())?;
    let per_s: NonZeroU64 = argument("--latency-per-s", NonZeroU64::MIN.saturating_add(9_999))?;
    let mut latency = Latency::new(per_s, argument("--latency-s", 5)?);
    let settings = json!({
        "messages": messages, "rounds": rounds, "body_bytes": BODY_BYTES, "matrix": matrix,
    });
    println!("{}", machine::header("pipeline", settings)?);
    let has_latency = latency::NAME.contains(&only);
    let mut matrix = Matrix::new(case::cases(&matrix, &only)?, messages);
    for round in 0..rounds {
        matrix.run(round, recorder)?;
        if has_latency {
            latency.run()?;
        }
    }
    matrix.print();
    if has_latency {
        latency.print();
    }
    if flood::NAME.contains(&only) {
        for retention_s in flood::RETENTIONS_S {
            println!("{}", child(&retention_s.to_string())?);
        }
    }
    Ok(())
}

/// This program once more, with the same arguments, for a task whose memory is to be its own.
fn child(task: &str) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .args(std::env::args().skip(1))
        .env(TASK, task)
        .envs([ALLOCATOR_VARIABLE])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "a child failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}
