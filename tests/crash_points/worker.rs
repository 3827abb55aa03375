//! The worker that is struck: a child process whose handler uses everything, and says when it begins and ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use onceward::simulation::{Bug, plant};
use onceward::{
    Batch, Context, Options, QueueOptions, RetentionBy, Retry, Source, State, Worker, reject,
};
use serde::{Deserialize, Serialize};

use crate::CHILD_TEST;
use crate::traffic::{CLASS_HEADER, Change, KEY_HEADER, Kind, Order};

const SETUP_VARIABLE: &str = "ONCEWARD_CRASH_POINTS_WORKER";

/// How long the records of ticks are kept.
const TICK_RETENTION: Duration = Duration::from_millis(200);

const LARGE_BYTES: usize = 100_000;

static HTTP: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
static SETUP: OnceLock<Setup> = OnceLock::new();

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) url: String,
    pub(crate) store: String,
    pub(crate) queue: String,
    /// Where its handler sends to.
    pub(crate) downstream: String,
    pub(crate) ledger: String,
    /// Whether messages of a key run together.
    pub(crate) in_batches: bool,
    /// Attempts that a message has.
    pub(crate) attempts_max: u32,
    /// Place in [`Bug::ALL`] of what is planted.
    pub(crate) bug: Option<usize>,
}

impl Setup {
    /// The child, with its reports on standard output; `crash` is a point and which time it is reached.
    pub(crate) fn command(&self, crash: Option<&str>) -> Command {
        let test = std::env::current_exe().expect("the test knows where it is");
        let mut command = Command::new(test);
        command
            .args(["--exact", CHILD_TEST, "--nocapture"])
            .env(SETUP_VARIABLE, serde_json::to_string(self).expect("a setup is JSON"))
            .env_remove("ONCEWARD_CRASH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(crash) = crash {
            command.env("ONCEWARD_CRASH", crash);
        }
        command
    }
}

/// The state of a key.
#[derive(Default, Serialize, Deserialize)]
struct Account {
    sum: i64,
    count: u64,
}

impl State for Account {
    const NAME: &'static str = "account";
}

/// What a child says when it runs a handler and when that ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Run {
        number: u64,
        attempt: u32,
    },
    /// `None`: it failed, or was rejected if that is so.
    End {
        number: u64,
        attempt: u32,
        ended: Ended,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Ok,
    Failed,
    Rejected,
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(SETUP_VARIABLE).is_some()
}

/// Works until it is killed or asked to drain.
pub(crate) fn run_as_child() {
    let setup = std::env::var(SETUP_VARIABLE).expect("the parent sets it");
    let setup: Setup = serde_json::from_str(&setup).expect("the parent makes it");
    let quiet = tracing_subscriber::EnvFilter::new("info,lapin=off,amq_protocol=off");
    let subscriber = tracing_subscriber::fmt().json().with_env_filter(quiet);
    subscriber.with_writer(std::io::stderr).init();
    // The test harness has begun a line.
    say("\n");
    let setup = SETUP.get_or_init(|| setup);
    let options = Options::new(&format!("{}?heartbeat=2", setup.url), &setup.store);
    let worker = Worker::new(options.expect("the parent's url"));
    let queue = queue(&setup.queue, setup.attempts_max);
    let worker = if setup.in_batches {
        worker.batch_queue_with(queue, on_batch)
    } else {
        worker.queue_with(queue, on_order)
    };
    let runtime = if let Some(bug) = setup.bug {
        // Planted for one thread, on which all of the worker has to be.
        plant(Bug::ALL.get(bug).copied());
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    } else {
        tokio::runtime::Runtime::new()
    };
    let runtime = runtime.expect("a runtime can be made");
    if let Err(error) = runtime.block_on(worker.run()) {
        tracing::error!(error = %error, "the worker has ended");
        std::process::exit(1);
    }
}

fn queue(name: &str, attempts_max: u32) -> QueueOptions {
    let mut queue = QueueOptions::new(name);
    queue.identity.key = vec![Source::Header(KEY_HEADER.to_owned())];
    queue.prefetch = 40.try_into().expect("not zero");
    queue.timeout = Duration::MAX;
    // When only those are left that always fail, that is no outage.
    queue.breaker = None;
    queue.retention = Duration::from_secs(60 * 60);
    let values = BTreeMap::from([("tick".to_owned(), TICK_RETENTION)]);
    queue.retention_by = Some(RetentionBy { header: CLASS_HEADER.to_owned(), values });
    queue.retry = Retry {
        max_attempts: attempts_max.try_into().expect("not zero"),
        initial: Duration::from_millis(1),
        max: Duration::from_millis(2),
        ..Retry::default()
    };
    queue
}

async fn on_order(cx: &mut Context, order: Order) -> onceward::Result {
    let (number, attempt) = (order.number, cx.attempt());
    report(&Report::Run { number, attempt });
    let result = match order.kind {
        Kind::Tick => send(cx, &order, &Account::default(), None),
        _ => match work(cx, &order).await {
            Ok(receipt) => add(cx, &order, receipt),
            Err(error) => Err(error),
        },
    };
    let ended = match (&result, &order.kind) {
        (Ok(()), _) => Ended::Ok,
        (Err(_), Kind::Reject) => Ended::Rejected,
        (Err(_), _) => Ended::Failed,
    };
    report(&Report::End { number, attempt, ended });
    result
}

fn add(cx: &mut Context, order: &Order, receipt: Option<String>) -> onceward::Result {
    let mut account = cx.state::<Account>()?.unwrap_or_default();
    account.sum += order.value;
    account.count += 1;
    cx.set_state(&account)?;
    send(cx, order, &account, receipt)
}

/// All but the state; with the receipt of what was charged.
async fn work(cx: &mut Context, order: &Order) -> onceward::Result<Option<String>> {
    match order.kind {
        Kind::Reject => return Err(reject("asked for")),
        Kind::Exhaust => return Err(std::io::Error::other("never").into()),
        Kind::Flaky { fails } if cx.attempt() <= fails => {
            return Err(std::io::Error::other("not yet").into());
        }
        Kind::Slow { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
        Kind::Charge => {
            let number = order.number;
            return Ok(Some(cx.once("fee", async |key| charge(key, number).await).await?));
        }
        _ => {}
    }
    Ok(None)
}

async fn charge(key: String, number: u64) -> Result<String, reqwest::Error> {
    let ledger = SETUP.get().map_or("", |setup| &setup.ledger);
    let request = HTTP.post(ledger).header("idempotency-key", key).body(number.to_string());
    request.send().await?.error_for_status()?.text().await
}

fn send(
    cx: &mut Context,
    order: &Order,
    account: &Account,
    receipt: Option<String>,
) -> onceward::Result {
    let downstream = SETUP.get().map_or("", |setup| &setup.downstream);
    let Account { sum, count } = *account;
    let (number, key) = (order.number, order.key.clone());
    let mut change = Change { number, key, sum, count, receipt, padding: String::new() };
    cx.send(downstream, &change)?;
    if order.kind == Kind::Large {
        change.padding = "x".repeat(LARGE_BYTES);
        cx.send(downstream, &change)?;
    }
    Ok(())
}

/// As [`on_order`], but for several at once.
async fn on_batch(batch: &mut Batch<Order>) -> onceward::Result {
    let mut account = batch.state::<Account>()?.unwrap_or_default();
    let mut failed = None;
    for item in batch.iter_mut() {
        let (number, attempt) = (item.value.number, item.cx.attempt());
        report(&Report::Run { number, attempt });
        let worked = work(&mut item.cx, &item.value).await;
        let (ended, worked) = match worked {
            Ok(receipt) if item.value.is_tick() => {
                (Ended::Ok, send(&mut item.cx, &item.value, &Account::default(), receipt))
            }
            Ok(receipt) => {
                account.sum += item.value.value;
                account.count += 1;
                (Ended::Ok, send(&mut item.cx, &item.value, &account, receipt))
            }
            Err(error) if item.value.kind == Kind::Reject => {
                item.fail(error);
                (Ended::Rejected, Ok(()))
            }
            Err(error) => (Ended::Failed, Err(error)),
        };
        report(&Report::End { number, attempt, ended });
        if let Err(error) = worked {
            failed = Some(error);
            break;
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    batch.set_state(&account)?;
    Ok(())
}

fn report(report: &Report) {
    say(&format!("{}\n", serde_json::to_string(report).expect("a report is JSON")));
}

/// A child whose parent is gone has nothing to do.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    if written.and_then(|()| stdout.flush()).is_err() {
        std::process::exit(1);
    }
}
