//! What does once-only processing cost against a bare RabbitMQ consumer that forgets everything?
//!
//! Each subject drains a preloaded queue of persistent messages in a process of its own: `lapin-each` (prefetch 500,
//! one ack a message), `lapin-multiple` (one `multiple` ack every 64) and `onceward` (a handler that does nothing,
//! every outcome synced before its ack). Time runs from the first delivery to the last ack written; afterwards the
//! queue must be empty. The subjects take turns, in another order every round.
//!
//! Needs the node of `AMQP_URL`, or starts a private one by `scripts/rabbitmq start`.
//!
//! `cargo bench --bench rabbitmq -- [--messages 50000] [--rounds 3] [--queue classic|quorum]`

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use onceward::{Body, Context, Options, QueueOptions, Source, Worker};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

mod support;

use support::machine;
use support::recorder::Recorder;
use support::rounds::{Rounds, argument, rounded};

const SUBJECTS: [&str; 3] = ["lapin-each", "lapin-multiple", "onceward"];

const PREFETCH: u16 = 500;
const MULTIPLE: u64 = 64;
const BODY_BYTES: usize = 256;
const KEYS: u64 = 10_000;
const TWINS_PERCENT: u64 = 10;

/// Most publishes that wait for their confirms.
const UNCONFIRMED_MAX: usize = 2_000;

/// What a child is told, in its environment.
const TASK: &str = "ONCEWARD_BENCH_TASK";

#[derive(Serialize, Deserialize)]
struct Task {
    subject: String,
    url: String,
    queue: String,
    messages: u64,
    broker_pid: Option<String>,
}

/// What a child says, on its standard output.
#[derive(Serialize, Deserialize)]
struct Drained {
    elapsed_s: f64,
    worker_cpu_us: u64,
    broker_cpu_us: Option<u64>,
    rss_bytes: u64,
}

/// All rounds of one subject.
#[derive(Default)]
struct Subject {
    messages_per_s: Rounds,
    worker_cpu_us: Rounds,
    broker_cpu_us: Rounds,
    rss_mib: Rounds,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match std::env::var(TASK) {
        Ok(task) => {
            let drained = runtime.block_on(child(serde_json::from_str(&task)?))?;
            println!("{}", serde_json::to_string(&drained)?);
            Ok(())
        }
        Err(_) => runtime.block_on(parent()),
    }
}

async fn parent() -> Result<()> {
    let messages: u64 = argument("--messages", 50_000)?;
    let rounds: usize = argument("--rounds", 3)?;
    let kind: String = argument("--queue", "classic".to_owned())?;
    let (url, broker_pid) = broker()?;
    let settings = json!({
        "messages": messages, "rounds": rounds, "body_bytes": BODY_BYTES, "keys": KEYS,
        "twins_percent": TWINS_PERCENT, "prefetch": PREFETCH, "queue": kind,
    });
    println!("{}", machine::header("rabbitmq", settings)?);

    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let mut subjects: BTreeMap<&str, Subject> = BTreeMap::new();
    for round in 0..rounds {
        for turn in 0..SUBJECTS.len() {
            let Some(&name) = SUBJECTS.get((turn + round) % SUBJECTS.len()) else {
                continue;
            };
            let channel = connection.create_channel().await?;
            let queue = format!("onceward-bench-{}-{round}-{turn}", std::process::id());
            declare(&channel, &queue, &kind).await?;
            preload(&channel, &queue, messages).await?;
            let drained = drain(&Task {
                subject: name.to_owned(),
                url: url.clone(),
                queue: queue.clone(),
                messages,
                broker_pid: broker_pid.clone(),
            })?;
            let left = depth(&channel, &queue).await?;
            ensure!(left == 0, "{name} left {left} messages in the queue");
            for name in [queue.clone(), format!("{queue}.dead")] {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(name.as_str().into(), options).await?;
            }
            channel.close(200, "OK".into()).await?;
            subjects.entry(name).or_default().push(name, &drained, messages);
        }
    }
    connection.close(200, "OK".into()).await?;
    report(&subjects)
}

impl Subject {
    fn push(&mut self, name: &str, drained: &Drained, messages: u64) {
        let per_message = |us: u64| us as f64 / messages as f64;
        let messages_per_s = messages as f64 / drained.elapsed_s;
        let worker_cpu_us = per_message(drained.worker_cpu_us);
        eprintln!("{name:<15} {messages_per_s:>8.0} messages/s, {worker_cpu_us:>6.1} us CPU");
        self.messages_per_s.push(messages_per_s);
        self.worker_cpu_us.push(worker_cpu_us);
        self.rss_mib.push(drained.rss_bytes as f64 / f64::from(1 << 20));
        if let Some(us) = drained.broker_cpu_us {
            self.broker_cpu_us.push(per_message(us));
        }
    }

    fn json(&self, name: &str) -> serde_json::Value {
        let broker = !self.broker_cpu_us.median().is_nan();
        json!({
            "subject": name,
            "messages_per_s": self.messages_per_s.json(0),
            "worker_cpu_us_per_message": self.worker_cpu_us.json(1),
            "broker_cpu_us_per_message": broker.then(|| self.broker_cpu_us.json(1)),
            "worker_rss_mib": self.rss_mib.json(0),
        })
    }
}

fn report(subjects: &BTreeMap<&str, Subject>) -> Result<()> {
    for (name, subject) in subjects {
        println!("{}", subject.json(name));
    }
    let rate = |name| {
        let subject = subjects.get(name).context("a subject did not run")?;
        anyhow::Ok(subject.messages_per_s.median())
    };
    let onceward = rate("onceward")?;
    println!(
        "{}",
        json!({
            "onceward/lapin-each": rounded(onceward / rate("lapin-each")?, 2),
            "onceward/lapin-multiple": rounded(onceward / rate("lapin-multiple")?, 2),
            "load_1m": machine::load_1m()?,
        })
    );
    Ok(())
}

/// The node's url, and the process id of its Erlang machine if it runs here.
fn broker() -> Result<(String, Option<String>)> {
    if let Ok(url) = std::env::var("AMQP_URL") {
        return Ok((url, std::env::var("ONCEWARD_BROKER_PID").ok()));
    }
    let root = env!("CARGO_MANIFEST_DIR");
    let script = format!("{root}/scripts/rabbitmq");
    let output = Command::new(&script)
        .arg("start")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| script.clone())?;
    ensure!(output.status.success(), "{script} start failed: set AMQP_URL, or mend it");
    let directory =
        std::env::var("ONCEWARD_RABBITMQ_DIR").unwrap_or_else(|_| format!("{root}/.rabbitmq"));
    let pid = std::fs::read_to_string(format!("{directory}/pid")).ok();
    let url = String::from_utf8(output.stdout)?.trim().to_owned();
    Ok((url, pid.map(|pid| pid.trim().to_owned())))
}

async fn declare(channel: &Channel, queue: &str, kind: &str) -> Result<()> {
    let mut arguments = FieldTable::default();
    if kind == "quorum" {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(queue.into(), options, arguments).await?;
    Ok(())
}

async fn depth(channel: &Channel, queue: &str) -> Result<u32> {
    let options = QueueDeclareOptions::durable().passive();
    let queue = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(queue.await?.message_count())
}

/// Persistent messages with an id and a key; of a hundred, [`TWINS_PERCENT`] repeat an earlier one.
async fn preload(channel: &Channel, queue: &str, messages: u64) -> Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut random = fastrand::Rng::with_seed(17);
    let mut sent: Vec<u64> = Vec::new();
    let mut unconfirmed = Vec::new();
    for _ in 0..messages {
        let twin = !sent.is_empty() && random.u64(..100) < TWINS_PERCENT;
        let seed = match random.choice(&sent) {
            Some(&seed) if twin => seed,
            _ => {
                sent.push(random.u64(..));
                sent.last().copied().unwrap_or_default()
            }
        };
        // All of a message follows from its seed: a twin is the same message.
        let mut content = fastrand::Rng::with_seed(seed);
        let mut headers = FieldTable::default();
        let key = format!("key-{}", content.u64(..KEYS));
        headers.insert("x-key".into(), AMQPValue::LongString(key.into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("{:032x}", content.u128(..)).into())
            .with_headers(headers);
        let mut body = [0; BODY_BYTES];
        content.fill(&mut body);
        let options = BasicPublishOptions::default();
        let publish = channel.basic_publish("".into(), queue.into(), options, &body, properties);
        unconfirmed.push(publish.await?);
        if unconfirmed.len() == UNCONFIRMED_MAX {
            confirm(&mut unconfirmed).await?;
        }
    }
    confirm(&mut unconfirmed).await
}

async fn confirm(
    unconfirmed: &mut Vec<impl Future<Output = lapin::Result<Confirmation>>>,
) -> Result<()> {
    for confirm in unconfirmed.drain(..) {
        ensure!(confirm.await?.is_ack(), "the broker refused a message");
    }
    Ok(())
}

/// Runs one subject in a process of its own.
fn drain(task: &Task) -> Result<Drained> {
    let output = Command::new(std::env::current_exe()?)
        .env(TASK, serde_json::to_string(task)?)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{} failed", task.subject);
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn child(task: Task) -> Result<Drained> {
    match task.subject.as_str() {
        "lapin-each" => lapin(&task, 1).await,
        "lapin-multiple" => lapin(&task, MULTIPLE).await,
        "onceward" => onceward(&task).await,
        other => bail!("no subject {other:?}"),
    }
}

/// From the first delivery to the last ack.
struct Watch {
    started: Instant,
    worker_us: u64,
    broker_us: Option<u64>,
}

fn broker_cpu_us(task: &Task) -> Option<u64> {
    machine::cpu_us(task.broker_pid.as_deref()?).ok()
}

impl Watch {
    fn start(task: &Task) -> Result<Self> {
        Ok(Self {
            started: Instant::now(),
            worker_us: machine::own_cpu_us()?,
            broker_us: broker_cpu_us(task),
        })
    }

    fn stop(&self, task: &Task) -> Result<Drained> {
        let broker_us = broker_cpu_us(task).zip(self.broker_us);
        Ok(Drained {
            elapsed_s: self.started.elapsed().as_secs_f64(),
            worker_cpu_us: machine::own_cpu_us()? - self.worker_us,
            broker_cpu_us: broker_us.map(|(now, before)| now - before),
            rss_bytes: machine::rss_bytes()?,
        })
    }
}

async fn lapin(task: &Task, every: u64) -> Result<Drained> {
    let connection = Connection::connect(&task.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // What onceward makes too: the parent deletes it.
    declare(&channel, &format!("{}.dead", task.queue), "classic").await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(
        task.queue.as_str().into(),
        "bench".into(),
        options,
        FieldTable::default(),
    );
    let mut deliveries = consuming.await?;
    let mut watch = None;
    let mut received = 0;
    while received < task.messages {
        let delivery = deliveries.next().await.context("the consumer was cancelled")??;
        if watch.is_none() {
            watch = Some(Watch::start(task)?);
        }
        received += 1;
        if received % every == 0 || received == task.messages {
            let options = BasicAckOptions { multiple: every > 1 };
            channel.basic_ack(delivery.delivery_tag, options).await?;
        }
    }
    let drained = watch.context("there was no message")?.stop(task)?;
    connection.close(200, "OK".into()).await?;
    Ok(drained)
}

async fn nothing(_: &mut Context, _: Body) -> onceward::Result {
    Ok(())
}

async fn onceward(task: &Task) -> Result<Drained> {
    const LOOK: Duration = Duration::from_millis(1);
    let recorder = Recorder::install()?;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut queue = QueueOptions::new(&task.queue);
    queue.prefetch = NonZeroU16::new(PREFETCH).context("a prefetch of 0")?;
    queue.identity.key = vec![Source::Header("x-key".to_owned())];
    let worker = Worker::new(Options::new(&task.url, directory.path())?).queue_with(queue, nothing);
    let mut drained = None;
    let all_acked = async {
        while recorder.count("received_total") == 0 {
            tokio::time::sleep(LOOK).await;
        }
        let watch = Watch::start(task);
        while recorder.count("settled_total acked") < task.messages {
            tokio::time::sleep(LOOK).await;
        }
        drained = Some(watch.and_then(|watch| watch.stop(task)));
    };
    worker.run_until(all_acked).await?;
    drained.context("the worker ended by itself")?
}
