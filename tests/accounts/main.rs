//! Two hundred kill -9 at random moments of a worker that moves money: examples/accounts.rs on a real queue and store.
//!
//! Each transfer is state of two accounts, a step at a ledger that loses an answer to every third charge, and three
//! outgoing messages over two hops. In the end every balance is right to the cent, each change is downstream once by
//! its id, each fee was charged once under its key, and the order of each account is kept. Transfers are published
//! while the workers live and die, with twins. `ONCEWARD_SEED=…` takes the printed seed again, `ONCEWARD_KILLS=…`
//! another number.

#![expect(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::json;
use tokio::time::Instant;

mod audit;
#[path = "../support/mod.rs"]
mod support;

use audit::Audit;
use support::ledger::Ledger;
use support::process::WorkerDir;
use support::rabbitmq::{Client, Vhost};

const ACCOUNTS: usize = 40;
/// Of all that is published, what repeats an earlier transfer.
const TWINS_PERCENT: usize = 25;
const SETTLED_TIMEOUT: Duration = Duration::from_secs(120);

/// Money that moves; the number is the id.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    id: u64,
    from: usize,
    to: usize,
    cents: i64,
}

/// What is published in each life, twins among it.
struct Plan {
    transfers: Vec<Transfer>,
    rounds: Vec<Vec<Transfer>>,
}

impl Plan {
    fn new(lives: usize, random: &mut fastrand::Rng) -> Self {
        let mut transfers = Vec::new();
        let mut recent = VecDeque::new();
        let mut round = || {
            let length = random.usize(20..50);
            let mut round = Vec::with_capacity(length);
            while round.len() < length {
                if !recent.is_empty() && random.usize(..100) < TWINS_PERCENT {
                    round.push(recent[random.usize(..recent.len())]);
                    continue;
                }
                let from = random.usize(..ACCOUNTS);
                let to = (from + random.usize(1..ACCOUNTS)) % ACCOUNTS;
                let id = transfers.len() as u64;
                let transfer = Transfer { id, from, to, cents: random.i64(1..1_000_000) };
                transfers.push(transfer);
                round.push(transfer);
                recent.push_back(transfer);
                if recent.len() == 300 {
                    recent.pop_front();
                }
            }
            round
        };
        let rounds = (0..lives).map(|_| round()).collect();
        Self { transfers, rounds }
    }
}

fn account(number: usize) -> String {
    format!("account-{number}")
}

async fn publish(channel: &Channel, messages: impl IntoIterator<Item = (String, usize, String)>) {
    let mut confirms = Vec::new();
    for (id, to, body) in messages {
        let mut headers = FieldTable::default();
        headers.insert("x-account".into(), AMQPValue::LongString(account(to).into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.as_str().into())
            .with_correlation_id(id.into())
            .with_headers(headers)
            .with_reply_to("balances".into());
        let options = BasicPublishOptions::default();
        let sent = channel
            .basic_publish("".into(), "accounts".into(), options, body.as_bytes(), properties)
            .await;
        confirms.push(sent.expect("published"));
    }
    for confirm in confirms {
        assert!(confirm.await.expect("a confirmation").is_ack());
    }
}

async fn publish_transfers(channel: &Channel, transfers: &[Transfer]) {
    let messages = transfers.iter().map(|&Transfer { id, from, to, cents }| {
        let body = json!({ "Transfer": { "id": id, "to": account(to), "cents": cents } });
        (format!("transfer-{id}"), from, body.to_string())
    });
    publish(channel, messages).await;
}

/// Takes everything out of a queue: oldest first.
async fn take(client: &Client, queue: &str) -> Vec<lapin::message::Delivery> {
    let expected = client.depth(queue).await as usize;
    let channel = client.channel().await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consuming =
        channel.basic_consume(queue.into(), "test".into(), options, FieldTable::default());
    let taken = consuming.await.expect("the queue exists").take(expected);
    taken.map(|delivery| delivery.expect("a delivery")).collect().await
}

/// Waits until no message of the accounts waits or is under way.
async fn settled(vhost: &Vhost, directory: &WorkerDir) {
    let deadline = Instant::now() + SETTLED_TIMEOUT;
    loop {
        let listed =
            support::rabbitmq::ctl(&["list_queues", "-p", vhost.name(), "name", "messages"]);
        let depth = listed.lines().find_map(|line| line.strip_prefix("accounts\t"));
        if depth.expect("the queue exists").trim() == "0" {
            return;
        }
        assert!(Instant::now() < deadline, "{listed}\n{}", tail(directory));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn tail(directory: &WorkerDir) -> String {
    let logged = directory.logged();
    let lines: Vec<&str> = logged.lines().collect();
    lines[lines.len().saturating_sub(50)..].join("\n")
}

fn worker(vhost: &Vhost, directory: &WorkerDir, ledger: &Ledger) -> Command {
    let test = std::env::current_exe().expect("the path of this test");
    // target/PROFILE/deps/this-test -> target/PROFILE/examples/accounts
    let profile = test.ancestors().nth(2).expect("cargo's directory");
    let mut command = Command::new(profile.join("examples").join("accounts"));
    command.args([&*vhost.url(), "store", ledger.url()]);
    command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_neither_make_nor_lose_a_cent() {
    let seed = number("ONCEWARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = number("ONCEWARD_KILLS").unwrap_or(200);
    println!(
        "ONCEWARD_SEED={seed} ONCEWARD_KILLS={kills} cargo test --features testkit --test accounts # after: cargo build --features testkit --examples"
    );
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::new(kills, &mut random);
    let vhost = Vhost::new();
    let client = vhost.client().await;
    for queue in ["accounts", "changes", "balances"] {
        client.declare_classic(queue).await;
    }
    let channel = client.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let ledger = Ledger::start(Box::new(|_, _| ())).await;
    let directory = WorkerDir::new(&vhost.url(), "");
    let started = Instant::now();
    let mut at_work = 0;
    for (kill, round) in plan.rounds.iter().enumerate() {
        publish_transfers(&channel, round).await;
        let worker = directory.start_as(worker(&vhost, &directory, &ledger));
        // One in five at any moment, opening and connecting included; the others while messages flow.
        let lives_ms = if kill % 5 == 0 {
            random.u64(..500)
        } else {
            worker.wait_for_log("\"consuming\"", Duration::from_secs(30));
            random.u64(20..400)
        };
        tokio::time::sleep(Duration::from_millis(lives_ms)).await;
        worker.kill();
        at_work += usize::from(client.depth("accounts").await > 0);
    }
    let killed = started.elapsed();
    let last = directory.start_as(worker(&vhost, &directory, &ledger));
    settled(&vhost, &directory).await;
    let questions = (0..ACCOUNTS)
        .map(|number| (format!("question-{number}"), number, json!("Question").to_string()));
    publish(&channel, questions).await;
    settled(&vhost, &directory).await;
    last.signal("TERM");
    let status = last.wait(Duration::from_secs(40));
    assert!(status.success(), "{status}: {}", tail(&directory));
    assert_eq!(client.depth("accounts").await, 0, "what was done is acknowledged");
    assert_eq!(client.depth("accounts.dead").await, 0, "nothing is dead");
    // The broker's 406 by its name: the number alone occurs in times.
    assert!(!directory.logged().contains("PRECONDITION_FAILED"), "{}", tail(&directory));

    let changes = take(&client, "changes").await;
    assert!(at_work * 10 >= kills, "{at_work} of {kills} kills met work");
    let audit = Audit::of(&plan.transfers, &changes);
    audit.check_order_and_balances();
    let published = plan.rounds.concat();
    audit.check_answers(&published, &take(&client, "balances").await);
    let calls = audit.check_fees(&ledger);
    println!(
        "{} transfers over {ACCOUNTS} accounts, {} published, {kills} kills ({at_work} with work left) in {killed:?}, \
         {:?} in all; {} changes downstream ({} repeated under their id), {calls} calls of the ledger",
        plan.transfers.len(),
        published.len(),
        started.elapsed(),
        changes.len(),
        changes.len() - audit.changes(),
    );
}
