//! How many effects a second: states committed, and outgoing messages confirmed by RabbitMQ?
//!
//! `state`: a preloaded in-process broker and a handler that adds to a counter per key, on a store that has a state for
//! every one of its keys before the first round; every state is on the disk before its message's ack. `outgoing`: a
//! preloaded queue of RabbitMQ and a handler that sends each message on; from the first delivery to the last ack, which
//! comes after the broker's confirm of what was sent. Afterwards all that was sent must be in the queue downstream.
//!
//! `outgoing` needs the node of `AMQP_URL`, or starts a private one by `scripts/rabbitmq start`.
//!
//! `cargo bench --bench effects -- [--states 200000] [--messages 20000] [--rounds 3] [--only outgoing]`

use std::num::NonZeroU16;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use onceward::{
    Body, Context, MemoryBroker, Message, Options, Properties, QueueOptions, Source, StoreOptions,
    Worker, stateful,
};
use serde_json::json;
use tokio::time::Instant;

mod support;

use support::machine;
use support::recorder::Recorder;
use support::rounds::{Rounds, argument, rounded};

const QUEUE: &str = "bench";
const PREFETCH: u16 = 2000;
const BODY_BYTES: usize = 256;
const LOOK: Duration = Duration::from_millis(1);

/// Most messages that wait in the in-process broker while states are made.
const WAITING_MAX: usize = 20_000;
/// Most publishes that wait for their confirms.
const UNCONFIRMED_MAX: usize = 2_000;

/// All rounds of one subject.
#[derive(Default)]
struct Subject {
    per_s: Rounds,
    cpu_us: Rounds,
    syncs: Rounds,
    p50_ms: Rounds,
    p99_ms: Rounds,
}

/// One round: `effects` of them in this time.
struct Round {
    effects: u64,
    elapsed: Duration,
    cpu_us: u64,
}

impl Subject {
    fn push(&mut self, name: &str, round: &Round, recorder: &Recorder) {
        let per_s = round.effects as f64 / round.elapsed.as_secs_f64();
        let cpu_us = round.cpu_us as f64 / round.effects as f64;
        eprintln!("{name:<24} {per_s:>8.0} a second, {cpu_us:>6.1} us CPU");
        let latency = recorder.histogram("delivery_to_ack_seconds");
        self.per_s.push(per_s);
        self.cpu_us.push(cpu_us);
        self.syncs.push(recorder.histogram("sync_seconds").count() as f64);
        self.p50_ms.push(latency.quantile(0.5) * 1e3);
        self.p99_ms.push(latency.quantile(0.99) * 1e3);
    }

    fn json(&self, name: &str, effects: u64) -> serde_json::Value {
        json!({
            "case": name,
            "effects": effects,
            "effects_per_s": self.per_s.json(0),
            "cpu_us_per_effect": self.cpu_us.json(1),
            "effects_per_sync": rounded(effects as f64 / self.syncs.median(), 1),
            "p50_ms": self.p50_ms.json(2),
            "p99_ms": self.p99_ms.json(2),
        })
    }
}

fn main() -> Result<()> {
    let states: u64 = argument("--states", 200_000)?;
    let messages: u64 = argument("--messages", 20_000)?;
    let rounds: usize = argument("--rounds", 3)?;
    let only: String = argument("--only", String::new())?;
    let settings = json!({
        "states": states, "messages": messages, "rounds": rounds, "prefetch": PREFETCH,
        "body_bytes": BODY_BYTES,
    });
    println!("{}", machine::header("effects", settings)?);
    let recorder = Recorder::install()?;
    for (name, keys) in [("state 1000 keys", 1_000), ("state 1000000 keys", 1_000_000)] {
        if name.contains(&only) {
            let subject = state_rounds(name, keys, states, rounds, &recorder)?;
            println!("{}", subject.json(name, states));
        }
    }
    for (name, keys) in [("outgoing 10000 keys", 10_000), ("outgoing 1 key", 1)] {
        if name.contains(&only) {
            let subject = outgoing_rounds(name, keys, messages, rounds, &recorder)?;
            println!("{}", subject.json(name, messages));
        }
    }
    println!("load of the machine at the end: {}", machine::load_1m()?);
    Ok(())
}

async fn count(count: &mut u64, _: &mut Context, _: Body) -> onceward::Result {
    *count += 1;
    Ok(())
}

fn state_rounds(
    name: &str,
    keys: u64,
    states: u64,
    rounds: usize,
    recorder: &Recorder,
) -> Result<Subject> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let fill = state_round(directory.path(), 0..keys, recorder)?;
    let per_s = fill.effects as f64 / fill.elapsed.as_secs_f64();
    eprintln!("{name:<24} {per_s:>8.0} a second while its keys get their first state");
    let mut subject = Subject::default();
    for _ in 0..rounds {
        let keys = std::iter::repeat_with(|| fastrand::u64(..keys)).take(states as usize);
        let round = state_round(directory.path(), keys, recorder)?;
        subject.push(name, &round, recorder);
    }
    let disk_mib = machine::disk_bytes(directory.path())? as f64 / f64::from(1 << 20);
    let rss_mib = machine::rss_bytes()? as f64 / f64::from(1 << 20);
    eprintln!("{name:<24} {disk_mib:>8.0} MiB on disk, {rss_mib:.0} MiB of memory");
    Ok(subject)
}

/// One message for each of the keys, from the first delivery to the last ack.
fn state_round(
    directory: &Path,
    keys: impl Iterator<Item = u64>,
    recorder: &Recorder,
) -> Result<Round> {
    let broker = MemoryBroker::new();
    broker.declare(QUEUE);
    let mut messages = keys.map(|key| {
        let mut properties = Properties {
            message_id: Some(format!("{:032x}", fastrand::u128(..))),
            ..Properties::default()
        };
        properties.headers.insert("x-key".to_owned(), format!("key-{key}").into());
        let (routing_key, body) = (QUEUE.to_owned(), vec![7; BODY_BYTES].into());
        Message { routing_key, properties, body, ..Message::default() }
    });
    let store = StoreOptions::new(directory);
    let options = Options::with_broker(Arc::new(broker.clone()), store);
    recorder.reset();
    let mut published = 0;
    let mut feed = |max: usize| {
        let room = max.saturating_sub(broker.depth(QUEUE).0);
        for message in messages.by_ref().take(room) {
            broker.publish(message);
            published += 1;
        }
        published
    };
    feed(WAITING_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut watched = None;
    runtime.block_on(async {
        let worker = Worker::new(options).queue_with(queue(QUEUE)?, stateful(count));
        let all_acked = async {
            while broker.stats().delivered == 0 {
                tokio::time::sleep(LOOK).await;
            }
            let watch = Watch::start();
            while broker.stats().acked < feed(WAITING_MAX) {
                tokio::time::sleep(LOOK).await;
            }
            watched = Some(watch.and_then(|watch| watch.stop(broker.stats().acked)));
        };
        anyhow::Ok(worker.run_until(all_acked).await?)
    })?;
    let round = watched.context("the worker ended by itself")??;
    let done = recorder.count("done_total");
    ensure!(done == round.effects, "{done} of {} messages are Done", round.effects);
    Ok(round)
}

struct Watch {
    started: Instant,
    cpu_us: u64,
}

impl Watch {
    fn start() -> Result<Self> {
        Ok(Self { started: Instant::now(), cpu_us: machine::own_cpu_us()? })
    }

    fn stop(&self, effects: u64) -> Result<Round> {
        let (elapsed, cpu_us) = (self.started.elapsed(), machine::own_cpu_us()? - self.cpu_us);
        Ok(Round { effects, elapsed, cpu_us })
    }
}

fn queue(name: &str) -> Result<QueueOptions> {
    let mut queue = QueueOptions::new(name);
    queue.prefetch = NonZeroU16::new(PREFETCH).context("a prefetch of 0")?;
    queue.identity.key = vec![Source::Header("x-key".to_owned())];
    Ok(queue)
}

fn outgoing_rounds(
    name: &str,
    keys: u64,
    messages: u64,
    rounds: usize,
    recorder: &Recorder,
) -> Result<Subject> {
    let url = broker_url()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut subject = Subject::default();
    for _ in 0..rounds {
        let round = runtime.block_on(outgoing_round(&url, keys, messages, recorder))?;
        subject.push(name, &round, recorder);
    }
    Ok(subject)
}

async fn outgoing_round(url: &str, keys: u64, messages: u64, recorder: &Recorder) -> Result<Round> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let from = format!("onceward-bench-{}", std::process::id());
    let to = format!("{from}-out");
    for queue in [&from, &to] {
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
    }
    preload(&channel, &from, keys, messages).await?;

    recorder.reset();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let downstream = to.clone();
    let send = move |cx: &mut Context, Body(body): Body| {
        let message =
            Message { routing_key: downstream.clone(), body: body.clone(), ..Message::default() };
        let sent = cx.emit(message).map(drop);
        std::future::ready(sent.map_err(onceward::HandleError::from))
    };
    let worker = Worker::new(Options::new(url, directory.path())?).queue_with(queue(&from)?, send);
    let mut watched = None;
    let all_acked = async {
        while recorder.count("received_total") == 0 {
            tokio::time::sleep(LOOK).await;
        }
        let watch = Watch::start();
        while recorder.count("settled_total acked") < messages {
            tokio::time::sleep(LOOK).await;
        }
        watched = Some(watch.and_then(|watch| watch.stop(messages)));
    };
    worker.run_until(all_acked).await?;
    let round = watched.context("the worker ended by itself")??;

    let passive = QueueDeclareOptions::durable().passive();
    let out = channel.queue_declare(to.as_str().into(), passive, FieldTable::default()).await?;
    let sent = u64::from(out.message_count());
    ensure!(sent == messages, "{sent} of {messages} messages are downstream");
    for queue in [from.clone(), to, format!("{from}.dead")] {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    connection.close(200, "OK".into()).await?;
    Ok(round)
}

async fn preload(channel: &Channel, queue: &str, keys: u64, messages: u64) -> Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut unconfirmed = Vec::new();
    for number in 0..messages {
        let mut headers = FieldTable::default();
        let key = format!("key-{}", fastrand::u64(..keys));
        headers.insert("x-key".into(), AMQPValue::LongString(key.into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("message-{number}").into())
            .with_headers(headers);
        let (options, body) = (BasicPublishOptions::default(), [7; BODY_BYTES]);
        let publish = channel.basic_publish("".into(), queue.into(), options, &body, properties);
        unconfirmed.push(publish.await?);
        if unconfirmed.len() == UNCONFIRMED_MAX || number + 1 == messages {
            for confirm in unconfirmed.drain(..) {
                ensure!(confirm.await?.is_ack(), "the broker refused a message");
            }
        }
    }
    Ok(())
}

fn broker_url() -> Result<String> {
    if let Ok(url) = std::env::var("AMQP_URL") {
        return Ok(url);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq");
    let output = Command::new(script).arg("start").stderr(Stdio::inherit()).output();
    let output = output.context(script)?;
    ensure!(output.status.success(), "{script} start failed: set AMQP_URL, or mend it");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
