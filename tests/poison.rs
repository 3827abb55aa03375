//! Goal: messages that kill the worker's process end as `crash-loop`, after real kills and restarts, and hold back
//! nobody else, on both kinds of queue.
//!
//! Method: the binary with a command for a handler, which kills its parent for some ids and takes a while for the
//! others, so that many are always under way when the process ends. The file that the command writes is the ledger.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::types::AMQPValue;
use tokio::time::{Instant, sleep};

mod support;

use support::process::WorkerDir;
use support::rabbitmq::Vhost;

const MAX_ATTEMPTS: usize = 3;
const POISON: [&str; 2] = ["poison-a", "poison-b"];
const OTHERS: usize = 60;
const PATIENCE: Duration = Duration::from_secs(150);

async fn poison_on(kind: &str) {
    let vhost = Vhost::new();
    let client = vhost.client().await;
    match kind {
        "quorum" => client.declare_quorum("in").await,
        _ => client.declare_classic("in").await,
    }
    let ledger = tempfile::NamedTempFile::new().expect("a file");
    let script = format!(
        "case $ONCEWARD_ID in poison*) kill -9 $PPID; exit;; esac; sleep 0.2; echo $ONCEWARD_ID $ONCEWARD_ATTEMPT >> {}",
        ledger.path().display()
    );
    let tables = format!(
        "[http]\nlisten = \"\"\n[queues.in]\nconcurrency = 16\nretry = {{ max_attempts = {MAX_ATTEMPTS} }}\n\
         deliver = {{ type = \"command\", argv = [\"/bin/sh\", \"-c\", \"{script}\"] }}\n"
    );
    let directory = WorkerDir::new(&vhost.url(), &tables);
    // Near the head and among the others.
    let mut ids: Vec<String> = (0..OTHERS).map(|number| format!("m{number}")).collect();
    for (poison, at) in POISON.iter().zip([1, 20]) {
        ids.insert(at, (*poison).to_owned());
    }
    client.publish("in", ids).await;

    let deadline = Instant::now() + PATIENCE;
    let mut kills = 0;
    let mut done_at_kills = Vec::new();
    let worker = loop {
        let mut worker = directory.start();
        while worker.is_running() && tokio::task::block_in_place(|| vhost.messages("in")) > 0 {
            assert!(Instant::now() < deadline, "{kills} kills:\n{}", directory.logged());
            sleep(Duration::from_millis(500)).await;
        }
        if worker.is_running() {
            break worker;
        }
        kills += 1;
        done_at_kills.push(done(&ledger).len());
        assert!(kills <= POISON.len() * (MAX_ATTEMPTS + 1), "{}", directory.logged());
    };
    worker.signal("TERM");
    let status = tokio::task::block_in_place(|| worker.wait(PATIENCE));
    assert!(status.success(), "{status}: {}", directory.logged());
    assert_eq!(client.depth("in").await, 0, "the queue is empty");
    println!("{kind}: {kills} kills, done at each: {done_at_kills:?}");
    // Where the others waited for the end of the poison, none would be.
    let done_before_the_last = done_at_kills.last().copied().unwrap_or_default();
    assert!(done_before_the_last >= OTHERS / 2, "poison holds others back: {done_at_kills:?}");

    let letters = client.take_all("in.dead").await;
    // A kill between its confirmation and the commit that says so brings a dead letter again, under its id.
    let mut dead: BTreeMap<String, AMQPValue> = BTreeMap::new();
    for letter in &letters {
        let id = letter.properties.message_id().clone().expect("an id").to_string();
        let headers = letter.properties.headers().clone().expect("headers");
        let outgoing = headers.inner().get(onceward::OUTGOING_ID_HEADER).expect("an outgoing id");
        let known = dead.entry(id).or_insert_with(|| outgoing.clone());
        assert_eq!(known, outgoing, "a dead letter has one id");
        let reason = headers.inner().get("x-onceward-reason");
        assert_eq!(reason, Some(&AMQPValue::LongString("crash-loop".into())), "{dead:?}");
        let Some(AMQPValue::LongLongInt(attempts)) = headers.inner().get("x-onceward-attempts")
        else {
            panic!("no attempts: {headers:?}");
        };
        // Whoever may only have run beside another gets one attempt more, alone.
        let limit = MAX_ATTEMPTS as i64;
        assert!((limit..=limit + 1).contains(attempts), "{dead:?}: {attempts} attempts");
    }
    assert!(dead.keys().eq(POISON), "they are dead, and nobody else: {dead:?}");
    let done = done(&ledger);
    for number in 0..OTHERS {
        let id = format!("m{number}");
        assert!(done.contains_key(&id), "{id} is not done");
    }
    assert!(POISON.iter().all(|poison| !done.contains_key(*poison)));
}

/// Runs that ended, by id.
fn done(ledger: &tempfile::NamedTempFile) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(ledger.path()).expect("a ledger");
    let mut done = BTreeMap::new();
    for line in text.lines() {
        let id = line.split(' ').next().unwrap_or_default();
        *done.entry(id.to_owned()).or_default() += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_kill_the_process_end_as_crash_loops_on_a_classic_queue() {
    poison_on("classic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_kill_the_process_end_as_crash_loops_on_a_quorum_queue() {
    poison_on("quorum").await;
}
