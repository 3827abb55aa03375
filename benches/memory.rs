//! How much memory does the worker take at its worst: floods of keys, large bodies, many headers, a hot key, a hundred
//! thousand dead letters, a dead downstream?
//!
//! Prints for each case the resident memory before, at its peak and after, as a JSON line and in a table at the end.
//! Each case runs in a process of its own, on the RabbitMQ of `AMQP_URL`. The peak has the allocator's and the client's
//! buffers in it, so bounds explain it only in part.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a bench fails")]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onceward::{
    AmqpBroker, AmqpOptions, Body, Broker, Context, Declare, Handler, HeaderValue, MemoryBroker,
    Message, Options, Properties, Published, QueueOptions, Source, StoreOptions, Worker, reject,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

mod support;

use support::machine;
use support::rounds::rounded;

const QUEUE: &str = "memory-bench";

/// Name, messages (a tenth of them in a quick run), and what is in them.
const CASES: &[(&str, u64, &str)] = &[
    ("idle", 0, "a worker with nothing to do"),
    ("keys", 1_000_000, "distinct keys, prefetch 65535, a handler of 1 ms"),
    ("bodies", 40, "bodies of 16 MB (the largest that RabbitMQ 4 takes by default), prefetch 500"),
    ("huge", 10, "bodies of 100 MB, prefetch 500"),
    ("large-dead", 60, "bodies of 16 MB of which every attempt fails, for 60 s"),
    ("headers", 2_000, "9,000 headers each, prefetch 500, a slow handler"),
    ("hot-key", 100_000, "one key, a handler of 10 ms, for 30 s"),
    ("dead-letters", 100_000, "messages that are all rejected"),
    ("dead-downstream", 100_000, "messages of which every attempt fails, for 60 s"),
];

#[derive(Clone)]
struct Work {
    case: String,
    ended: Arc<AtomicU64>,
}

impl Handler<Body> for Work {
    async fn handle(&self, _: &mut Context, Body(body): Body) -> onceward::Result {
        let ms = match &*self.case {
            "keys" => 1,
            "hot-key" => 10,
            "headers" | "bodies" | "huge" => 100,
            _ => 0,
        };
        sleep(Duration::from_millis(ms)).await;
        if ["dead-downstream", "large-dead"].contains(&&*self.case) {
            return Err(std::io::Error::other("nobody answers").into());
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
        if self.case == "dead-letters" {
            return Err(reject(format!("{} bytes", body.len())));
        }
        Ok(())
    }
}

fn message(case: &str, number: u64) -> Message {
    let mut properties =
        Properties { message_id: Some(number.to_string()), ..Properties::default() };
    let key = if case == "hot-key" { 0 } else { number };
    properties.headers.insert("key".to_owned(), HeaderValue::from(key.to_string()));
    if case == "headers" {
        for header in 0..9_000 {
            properties.headers.insert(format!("{header:x}"), HeaderValue::Void);
        }
    }
    let bytes = match case {
        "bodies" | "large-dead" => 16_000_000,
        "huge" => 100_000_000,
        _ => 256,
    };
    let body = vec![b'x'; bytes].into();
    Message { routing_key: QUEUE.to_owned(), properties, body, ..Message::default() }
}

/// A line of `/proc/self/status` in MB.
fn memory_mb(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|of| of.strip_prefix(line)).expect(line);
    let kb: f64 = found.trim_matches([':', '\t', ' ', 'k', 'B']).parse().unwrap();
    kb / 1e3
}

/// Puts the messages into the queue: by a process of its own, whose memory does not count.
async fn publish(url: &str, case: &str, messages: u64) {
    let broker = AmqpBroker::new(AmqpOptions::new(url).unwrap());
    let mut channel = broker.publish_channel().await.unwrap();
    channel.ensure_queue(QUEUE).await.unwrap();
    let at_once = match case {
        "bodies" | "large-dead" | "huge" | "headers" => 1,
        _ => 1_000,
    };
    let mut number = 0;
    while number < messages {
        let upto = (number + at_once).min(messages);
        let batch: Vec<_> = (number..upto).map(|number| Arc::new(message(case, number))).collect();
        let answers = channel.publish(&batch).await.unwrap();
        let refused = answers.into_iter().find(|answer| *answer != Published::Confirmed);
        assert_eq!(refused, None, "message {number}");
        number = upto;
    }
    channel.close().await;
}

async fn consume(url: &str, case: &str, messages: u64) {
    let directory = tempfile::tempdir().unwrap();
    let broker: Arc<dyn Broker> = if url == "memory:" {
        Arc::new(MemoryBroker::new())
    } else {
        Arc::new(AmqpBroker::new(AmqpOptions::new(url).unwrap()))
    };
    let options = Options::with_broker(broker, StoreOptions::new(directory.path()));
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    queue.body_bytes_max = 128 << 20;
    queue.identity.key = vec![Source::Header("key".to_owned())];
    if case == "keys" {
        queue.prefetch = std::num::NonZeroU16::MAX;
    }
    let work = Work { case: case.to_owned(), ended: Arc::default() };
    let before_mb = memory_mb("VmRSS");
    let worker = Worker::new(options).queue_with(queue, work.clone());
    let started = Instant::now();
    let limit = Duration::from_secs(match case {
        "idle" => 2,
        "hot-key" => 30,
        "dead-downstream" | "large-dead" => 60,
        _ => 900,
    });
    let ended = async {
        while started.elapsed() < limit
            && (messages == 0 || work.ended.load(Ordering::Relaxed) < messages)
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    worker.run_until(ended).await.unwrap();
    let ended = work.ended.load(Ordering::Relaxed);
    let (peak_mb, after_mb, took_s) =
        (memory_mb("VmHWM"), memory_mb("VmRSS"), started.elapsed().as_secs_f64());
    let line = json!({
        "case": case,
        "ended": ended,
        "rss_mb_before": rounded(before_mb, 1),
        "rss_mb_peak": rounded(peak_mb, 1),
        "rss_mb_after": rounded(after_mb, 1),
        "took_s": rounded(took_s, 1),
    });
    println!("{line}");
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|of| !of.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let [role @ ("publish" | "consume"), url, case, messages] =
        &*arguments.iter().map(String::as_str).collect::<Vec<_>>()
    {
        let messages = messages.parse().unwrap();
        match *role {
            "publish" => runtime.block_on(publish(url, case, messages)),
            _ => runtime.block_on(consume(url, case, messages)),
        }
        return;
    }
    let url = std::env::var("AMQP_URL").expect("AMQP_URL=$(scripts/rabbitmq start)");
    let quick = std::env::var("ONCEWARD_QUICK").is_ok();
    println!("{}", machine::header("memory", json!({"quick": quick})).unwrap());
    let mut table = vec![format!(
        "{:<16} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "case", "ended", "before MB", "peak MB", "after MB", "s"
    )];
    let own = |arguments: &[&str]| {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program)
            .args(arguments)
            .envs([support::ALLOCATOR_VARIABLE])
            .stderr(Stdio::inherit())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    };
    for (case, messages, what) in CASES {
        if !arguments.is_empty() && !arguments.iter().any(|wanted| wanted == case) {
            continue;
        }
        println!("# {case}: {what}");
        let messages = if quick { messages / 10 } else { *messages };
        let count = messages.to_string();
        if messages > 0 {
            own(&["publish", &url, case, &count]);
        }
        let said = own(&["consume", &url, case, &count]);
        print!("{said}");
        let line: Value = serde_json::from_str(&said).unwrap();
        let figure = |name: &str| line.get(name).and_then(Value::as_f64).unwrap();
        table.push(format!(
            "{case:<16} {:>9} {:>9.0} {:>9.0} {:>9.0} {:>8.1}",
            figure("ended"),
            figure("rss_mb_before"),
            figure("rss_mb_peak"),
            figure("rss_mb_after"),
            figure("took_s")
        ));
        // What a case leaves behind is not for the next one.
        runtime.block_on(purge(&url));
    }
    println!("\n{}", table.join("\n"));
}

async fn purge(url: &str) {
    use lapin::options::QueueDeleteOptions;
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default());
    let connection = connection.await.unwrap();
    for queue in [QUEUE.to_owned(), format!("{QUEUE}.dead")] {
        let channel = connection.create_channel().await.unwrap();
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    // All is deleted: how the connection ends says nothing.
    let _ = connection.close(200, "OK".into()).await;
}
