//! What does once-only processing cost against what people run instead, and how long does a message take?
//!
//! **Drains.** Each subject drains a preloaded queue of persistent messages in a process of its own, with the same
//! prefetch; they take turns, in another order every round. Time runs from the first delivery to the last ack written;
//! afterwards the queue must be empty.
//!
//! - `lapin-each`, `lapin-multiple`: a bare consumer that forgets everything, one ack a message and one `multiple` ack
//!   every 64. `lapin-concurrent` handles as many messages at once as the prefetch lets through, each with its own ack.
//! - `lapin-redis-loop-always`, `lapin-redis-loop-everysec`: what most people run, a loop that takes a message, asks by
//!   `SET id NX EX` whether it is new, and acks it; in a Redis on the same disk that syncs before it answers, or once a
//!   second (its default, which forgets up to a second of ids in a power cut). It promises less: an id is marked
//!   before its handler ran, so a crash between the two loses the effect. A tenth of the messages.
//! - `lapin-redis-always`, `lapin-redis-everysec`: the same at its best, as many messages at once as the prefetch lets
//!   through, in any order.
//! - `lapin-send-loop`, `lapin-send`: a bare consumer that sends each message on and acks it when that is confirmed,
//!   one at a time (a tenth of the messages), or as many at once as the prefetch lets through.
//! - `onceward` (a handler that does nothing, every outcome synced before its ack), `onceward-state` (it adds to a
//!   counter of the message's key) and `onceward-send` (it sends one message on, confirmed before the ack).
//!
//! **Latency** of `onceward` at offered rates: see `latency.rs` for what exactly is measured. `--sustain MINUTES` goes
//! on at 0.7 of the highest rate, to show whether anything drifts.
//!
//! Needs the node of `AMQP_URL`, or starts a private one by `scripts/rabbitmq start`; starts a private Redis by
//! `scripts/redis start` and stops it. JSON lines on standard output, tables for people on standard error.
//!
//! `cargo bench --bench rabbitmq -- [--messages 50000] [--rounds 3] [--queue classic|quorum] [--prefetch 500]
//! [--only onceward,lapin-multiple,latency] [--latency-seconds 10] [--sustain MINUTES]`

use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;

mod child;
mod clock;
mod figures;
mod latency;
mod load;
mod mix;
mod node;
mod observed;
mod redis_server;
mod served;
mod subjects;
#[path = "../support/mod.rs"]
mod support;
mod sustain;
mod watch;

use child::{RedisTask, Task};
use figures::Figures;
use latency::Latencies;
use mix::{BODY_BYTES, KEYS, Mix, TWINS_PERCENT};
use node::Node;
use redis_server::RedisServer;
use subjects::Subject;
use support::machine;
use support::rounds::argument;

/// What the command line asks for.
struct Plan {
    messages: u64,
    rounds: usize,
    queue: String,
    prefetch: NonZeroU16,
    only: Vec<String>,
    latency: Duration,
    sustain: Duration,
}

impl Plan {
    fn of_arguments() -> Result<Self> {
        let only: String = argument("--only", String::new())?;
        let only = only.split(',').map(str::trim).filter(|name| !name.is_empty());
        let plan = Self {
            messages: argument("--messages", 50_000)?,
            rounds: argument("--rounds", 3)?,
            queue: argument("--queue", "classic".to_owned())?,
            // As a consumer has it by default in `onceward`; the bare ones get the same.
            prefetch: argument("--prefetch", const { NonZeroU16::new(500).unwrap() })?,
            only: only.map(str::to_owned).collect(),
            latency: Duration::from_secs(argument("--latency-seconds", 10)?),
            sustain: Duration::from_secs(60 * argument("--sustain", 0)?),
        };
        ensure!(plan.messages > 0 && plan.rounds > 0, "there is nothing to measure");
        ensure!(plan.latency >= Duration::from_secs(2), "--latency-seconds is 2 or more");
        match plan.queue.as_str() {
            "classic" | "quorum" => Ok(plan),
            other => bail!("no --queue {other:?}: classic or quorum"),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn subjects(&self) -> Vec<Subject> {
        Subject::ALL.into_iter().filter(|subject| self.wants(subject.name())).collect()
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Task::of_this_process()? {
        Some(Task::Drain(task)) => {
            let drained = runtime.block_on(subjects::drain(&task))?;
            println!("{}", serde_json::to_string(&drained)?);
            Ok(())
        }
        Some(Task::Serve(task)) => runtime.block_on(served::serve(&task)),
        None => runtime.block_on(parent(&Plan::of_arguments()?)),
    }
}

async fn parent(plan: &Plan) -> Result<()> {
    let node = Node::start(&plan.queue, plan.prefetch).await?;
    println!("{}", machine::header("rabbitmq", settings(plan))?);
    let mut figures = Figures::default();
    drain_in_turn(plan, &node, plan.subjects(), plan.rounds, &mut figures).await?;
    figures.report()?;
    let wants_sustain = !plan.sustain.is_zero();
    if plan.wants("latency") || wants_sustain {
        if figures.rate(Subject::Onceward).is_none() {
            // Where the search for the highest rate begins.
            drain_in_turn(plan, &node, vec![Subject::Onceward], 1, &mut figures).await?;
        }
        let drain_rate = figures.rate(Subject::Onceward).unwrap_or_default();
        let mut latencies = Latencies::start(&node, plan.latency).await?;
        let highest = latencies.highest_rate(drain_rate).await?;
        if plan.wants("latency") {
            latencies.measure(highest, plan.rounds).await?;
        }
        latencies.end().await?;
        if wants_sustain {
            sustain::sustain(&node, latency::comfortable(highest), plan.sustain).await?;
        }
    }
    println!("{}", json!({ "load_1m": machine::load_1m()? }));
    node.close().await
}

fn settings(plan: &Plan) -> serde_json::Value {
    json!({
        "messages": plan.messages, "rounds": plan.rounds, "queue": plan.queue,
        "body_bytes": BODY_BYTES, "keys": KEYS, "twins_percent": TWINS_PERCENT,
        "prefetch": plan.prefetch, "latency_s": plan.latency.as_secs(),
        "sustain_s": plan.sustain.as_secs(),
    })
}

async fn drain_in_turn(
    plan: &Plan,
    node: &Node,
    subjects: Vec<Subject>,
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    let needs_redis = subjects.iter().any(|subject| subject.appendfsync().is_some());
    let redis = needs_redis.then(RedisServer::start).transpose()?;
    for round in 0..rounds {
        let mut turns = subjects.clone();
        turns.rotate_left(round % subjects.len().max(1));
        for subject in turns {
            let redis = match (&redis, subject.appendfsync()) {
                (Some(redis), Some(appendfsync)) => Some(redis.fresh(appendfsync).await?),
                _ => None,
            };
            let drained = drain(plan, node, subject, redis).await?;
            figures.push(subject, subject.share(plan.messages), drained);
        }
    }
    Ok(())
}

/// Preloads a queue, lets the subject drain it and looks whether it has.
async fn drain(
    plan: &Plan,
    node: &Node,
    subject: Subject,
    redis: Option<RedisTask>,
) -> Result<watch::Drained> {
    let queue = node.declare().await?;
    let mut mix = Mix::new();
    let messages = subject.share(plan.messages);
    node.preload(&queue, &mut mix, messages).await?;
    let task = child::Drain {
        subject,
        node: node.task(&queue),
        messages,
        distinct: mix.distinct(),
        redis,
    };
    let name = subject.name();
    let drained = task.run()?;
    let left = node.depth(&queue).await?;
    ensure!(left == 0, "{name} left {left} messages in the queue");
    let sends = match subject {
        Subject::OncewardSend => mix.distinct(),
        Subject::LapinSendLoop | Subject::LapinSend => messages,
        _ => 0,
    };
    let sent = node.depth(&node::downstream(&queue)).await?;
    ensure!(u64::from(sent) == sends, "{sent} of {sends} messages are downstream of {name}");
    node.delete(&queue).await?;
    Ok(drained)
}
