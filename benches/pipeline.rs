//! How many messages a second does the runtime itself carry, with every outcome on the disk before its ack?
//!
//! A preloaded in-process broker and a handler that does nothing, so all that is left is the runtime, sled and
//! fdatasync on the disk that `target` lies on. Beside it, in the same rounds and with the same group sizes: blocks
//! through sled without a runtime (`raw-journal`), and an append of 4 KiB with an fdatasync per group (`raw-sync`).
//!
//! `cargo bench --bench pipeline -- [--messages 300000] [--rounds 3] [--only "10000 keys"]`

use std::fs::OpenOptions;
use std::io::Write as _;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use onceward::{
    Body, Context, MemoryBroker, Message, Options, Properties, QueueOptions, Source, StoreOptions,
    Worker,
};
use serde_json::json;
use tokio::time::Instant;

mod support;

use support::machine;
use support::recorder::Recorder;
use support::rounds::{Rounds, argument, rounded};

const QUEUE: &str = "bench";
const BODY_BYTES: usize = 256;

/// What a record takes in a block: identity, fingerprint, attempts, outcome.
const RECORD_BYTES: usize = 16 + 8 + 1 + 1;
const BLOCK_BYTES: usize = 4096;

/// What is in the queue, and how much of it is in flight.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    keys: Keys,
    twins_percent: u64,
    prefetch: u16,
}

#[derive(Clone, Copy, Debug)]
enum Keys {
    Of(u64),
    Own,
}

/// The mix whose group sizes the raw subjects take over.
const MAIN: &str = "10000 keys";

fn cases(only: &str) -> Vec<Case> {
    let mixes = [
        (MAIN, Keys::Of(10_000), 0),
        ("1 key", Keys::Of(1), 0),
        ("own keys", Keys::Own, 0),
        ("10 % twins", Keys::Of(10_000), 10),
        ("90 % twins", Keys::Of(10_000), 90),
    ];
    let case = |(name, keys, twins_percent), prefetch| Case { name, keys, twins_percent, prefetch };
    let mixes = mixes.into_iter().filter(|(name, ..)| name.contains(only));
    mixes.flat_map(|mix| [case(mix, 500), case(mix, 2000)]).collect()
}

/// One round of one subject.
struct Figures {
    messages_per_s: f64,
    cpu_us: f64,
    syncs: f64,
    records_per_sync: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// All rounds of one subject.
#[derive(Default)]
struct Subject {
    name: String,
    prefetch: u16,
    messages: u64,
    messages_per_s: Rounds,
    cpu_us: Rounds,
    syncs: Rounds,
    records_per_sync: Rounds,
    p50_ms: Rounds,
    p99_ms: Rounds,
}

impl Subject {
    fn new(name: &str, prefetch: u16, messages: u64) -> Self {
        Self { name: name.to_owned(), prefetch, messages, ..Self::default() }
    }

    fn push(&mut self, figures: &Figures) {
        eprintln!(
            "{:<12} prefetch {:>4}: {:>9.0} messages/s, {:>5.1} us CPU, {:>6.1} records a sync",
            self.name,
            self.prefetch,
            figures.messages_per_s,
            figures.cpu_us,
            figures.records_per_sync
        );
        self.messages_per_s.push(figures.messages_per_s);
        self.cpu_us.push(figures.cpu_us);
        self.syncs.push(figures.syncs);
        self.records_per_sync.push(figures.records_per_sync);
        self.p50_ms.push(figures.p50_ms);
        self.p99_ms.push(figures.p99_ms);
    }

    fn json(&self) -> serde_json::Value {
        let latency = |rounds: &Rounds| (!rounds.median().is_nan()).then(|| rounds.json(2));
        json!({
            "case": self.name,
            "prefetch": self.prefetch,
            "messages": self.messages,
            "messages_per_s": self.messages_per_s.json(0),
            "cpu_us_per_message": self.cpu_us.json(1),
            "syncs": rounded(self.syncs.median(), 0),
            "records_per_sync": rounded(self.records_per_sync.median(), 1),
            "p50_ms": latency(&self.p50_ms),
            "p99_ms": latency(&self.p99_ms),
        })
    }

    fn row(&self) -> String {
        format!(
            "{:<12} {:>8} {:>10.0} {:>10.0} {:>10.0} {:>8.1} {:>7.0} {:>8.1} {:>8.2} {:>8.2}",
            self.name,
            self.prefetch,
            self.messages_per_s.median(),
            self.messages_per_s.min(),
            self.messages_per_s.max(),
            self.cpu_us.median(),
            self.syncs.median(),
            self.records_per_sync.median(),
            self.p50_ms.median(),
            self.p99_ms.median(),
        )
    }
}

fn main() -> Result<()> {
    let messages: u64 = argument("--messages", 300_000)?;
    let rounds: usize = argument("--rounds", 3)?;
    let cases = cases(&argument("--only", String::new())?);
    let settings = json!({"messages": messages, "rounds": rounds, "body_bytes": BODY_BYTES});
    println!("{}", machine::header("pipeline", settings)?);

    let recorder = Recorder::install()?;
    let mut subjects: Vec<Subject> =
        cases.iter().map(|case| Subject::new(case.name, case.prefetch, messages)).collect();
    let mut raw = Vec::new();
    for prefetch in [500, 2000] {
        raw.push(Subject::new("raw-journal", prefetch, messages));
        raw.push(Subject::new("raw-sync", prefetch, messages));
    }
    for round in 0..rounds {
        for index in 0..cases.len() {
            let index = (index + round) % cases.len();
            let (Some(case), Some(subject)) = (cases.get(index), subjects.get_mut(index)) else {
                continue;
            };
            let figures = pipeline(*case, messages, &recorder)
                .with_context(|| format!("{} with prefetch {}", case.name, case.prefetch))?;
            if case.name == MAIN {
                let group = figures.records_per_sync.round().max(1.0) as usize;
                for raw in raw.iter_mut().filter(|raw| raw.prefetch == case.prefetch) {
                    raw.push(&raw_groups(&raw.name, group, messages)?);
                }
            }
            subject.push(&figures);
        }
    }
    raw.retain(|subject| !subject.messages_per_s.median().is_nan());
    subjects.extend(raw);
    for subject in &subjects {
        println!("{}", subject.json());
    }
    println!(
        "\n{:<12} {:>8} {:>10} {:>10} {:>10} {:>8} {:>7} {:>8} {:>8} {:>8}",
        "case",
        "prefetch",
        "median/s",
        "min/s",
        "max/s",
        "cpu us",
        "syncs",
        "a sync",
        "p50 ms",
        "p99 ms"
    );
    for subject in &subjects {
        println!("{}", subject.row());
    }
    println!("load of the machine at the end: {}", machine::load_1m()?);
    Ok(())
}

/// The messages of a case, in the broker; gives the number of different ones.
fn preload(broker: &MemoryBroker, case: Case, messages: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(17);
    let mut different: Vec<Arc<Message>> = Vec::with_capacity(messages as usize);
    broker.declare(QUEUE);
    for _ in 0..messages {
        let message = if !different.is_empty() && random.u64(..100) < case.twins_percent {
            random.choice(&different).map(Arc::clone)
        } else {
            None
        };
        let message = message.unwrap_or_else(|| {
            let message = Arc::new(new_message(case.keys, &mut random));
            different.push(Arc::clone(&message));
            message
        });
        broker.publish(message);
    }
    different.len() as u64
}

fn new_message(keys: Keys, random: &mut fastrand::Rng) -> Message {
    let mut properties = Properties {
        message_id: Some(format!("{:032x}", random.u128(..))),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    if let Keys::Of(keys) = keys {
        let key = format!("key-{}", random.u64(..keys));
        properties.headers.insert("x-key".to_owned(), key.into());
    }
    Message {
        routing_key: QUEUE.to_owned(),
        properties,
        body: std::iter::repeat_with(|| random.u8(..)).take(BODY_BYTES).collect::<Vec<_>>().into(),
        ..Message::default()
    }
}

async fn nothing(_: &mut Context, _: Body) -> onceward::Result {
    Ok(())
}

fn pipeline(case: Case, messages: u64, recorder: &Recorder) -> Result<Figures> {
    let broker = MemoryBroker::new();
    let different = preload(&broker, case, messages);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut options = QueueOptions::new(QUEUE);
    options.prefetch = NonZeroU16::new(case.prefetch).context("a prefetch of 0")?;
    if let Keys::Of(_) = case.keys {
        options.identity.key = vec![Source::Header("x-key".to_owned())];
    }
    recorder.reset();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut measured = None;
    runtime.block_on(async {
        let store = StoreOptions::new(directory.path());
        let worker = Worker::new(Options::with_broker(Arc::new(broker.clone()), store))
            .queue_with(options, nothing);
        let all_acked = async {
            measured = Some(drained(&broker, messages).await);
        };
        worker.run_until(all_acked).await
    })?;
    let (elapsed, cpu_us) = measured.context("the worker ended by itself")??;

    let done = recorder.count("done_total");
    ensure!(done == different, "{done} of {different} messages are Done");
    let acked = broker.stats().acked;
    ensure!(acked == messages, "{acked} of {messages} are acked");
    let syncs = recorder.histogram("sync_seconds").count() as f64;
    let latency = recorder.histogram("delivery_to_ack_seconds");
    Ok(Figures {
        messages_per_s: messages as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu_us as f64 / messages as f64,
        syncs,
        records_per_sync: done as f64 / syncs,
        p50_ms: latency.quantile(0.5) * 1e3,
        p99_ms: latency.quantile(0.99) * 1e3,
    })
}

/// Time and CPU time in microseconds from the first delivery to the last ack.
async fn drained(broker: &MemoryBroker, messages: u64) -> Result<(Duration, u64)> {
    const LOOK: Duration = Duration::from_millis(1);
    while broker.stats().delivered == 0 {
        tokio::time::sleep(LOOK).await;
    }
    let (started, cpu_before_us) = (Instant::now(), machine::own_cpu_us()?);
    while broker.stats().acked < messages {
        tokio::time::sleep(LOOK).await;
    }
    Ok((started.elapsed(), machine::own_cpu_us()? - cpu_before_us))
}

/// As many records as the pipeline wrote, in groups of its size, without a runtime around them.
fn raw_groups(subject: &str, group: usize, messages: u64) -> Result<Figures> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let groups = (messages as usize).div_ceil(group);
    let (started, cpu_before_us) = (Instant::now(), machine::own_cpu_us()?);
    if subject == "raw-journal" {
        raw_journal(directory.path(), group, groups)?;
    } else {
        raw_sync(directory.path(), groups)?;
    }
    let records = (groups * group) as f64;
    Ok(Figures {
        messages_per_s: records / started.elapsed().as_secs_f64(),
        cpu_us: (machine::own_cpu_us()? - cpu_before_us) as f64 / records,
        syncs: groups as f64,
        records_per_sync: group as f64,
        p50_ms: f64::NAN,
        p99_ms: f64::NAN,
    })
}

fn raw_journal(directory: &Path, group: usize, groups: usize) -> Result<()> {
    let db =
        sled::Config::new().path(directory).cache_capacity(64 << 20).flush_every_ms(None).open()?;
    let log = OpenOptions::new().write(true).open(directory.join("db"))?;
    let mut random = fastrand::Rng::with_seed(17);
    let per_block = BLOCK_BYTES / RECORD_BYTES;
    let mut sequence = 0_u64;
    for _ in 0..groups {
        let mut batch = sled::Batch::default();
        for first in (0..group).step_by(per_block) {
            let mut block = vec![0; per_block.min(group - first) * RECORD_BYTES];
            random.fill(&mut block);
            sequence += 1;
            batch.insert(&sequence.to_be_bytes(), block);
        }
        db.apply_batch(batch)?;
        db.flush()?;
        log.sync_data()?;
    }
    Ok(())
}

fn raw_sync(directory: &Path, groups: usize) -> Result<()> {
    let mut file = OpenOptions::new().create_new(true).append(true).open(directory.join("log"))?;
    let mut block = [0; BLOCK_BYTES];
    fastrand::Rng::with_seed(17).fill(&mut block);
    for _ in 0..groups {
        file.write_all(&block)?;
        file.sync_data()?;
    }
    Ok(())
}
