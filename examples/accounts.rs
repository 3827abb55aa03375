//! Accounts: a transfer leaves one account, has a ledger charge its fee, and arrives at the other account; each change
//! is told downstream. State, step, outgoing messages and record of a message are one commit, so that kill -9 at any
//! moment neither makes nor loses a cent: tests/accounts.rs does that, and publishes the transfers.
//!
//! ```text
//! $ cargo run --example accounts -- amqp://guest:guest@127.0.0.1:5672/%2f ./accounts http://127.0.0.1:8080/charges
//! ```

use std::error::Error;
use std::sync::LazyLock;
use std::time::Duration;

use onceward::{Context, Declare, OnDuplicate, Options, QueueOptions, State, Worker, stateful};
use serde::{Deserialize, Serialize};
use serde_json::json;

static HTTP: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);

#[derive(Default, Serialize, Deserialize)]
struct Account {
    cents: i64,
    changes: u64,
}

impl State for Account {
    const NAME: &'static str = "account";
}

/// What happens to the account that the header `x-account` names.
#[derive(Serialize, Deserialize)]
enum Entry {
    Transfer { id: u64, to: String, cents: i64 },
    Arrival { id: u64, cents: i64 },
    Question,
}

async fn charge(key: String, transfer: u64) -> Result<String, reqwest::Error> {
    let ledger = std::env::args().nth(3).unwrap_or_default();
    let request = HTTP.post(ledger).header("idempotency-key", key).body(transfer.to_string());
    request.send().await?.error_for_status()?.text().await
}

/// Returns the balance, which a question has sent to its `reply-to`.
async fn on_entry(a: &mut Account, cx: &mut Context, entry: Entry) -> onceward::Result<i64> {
    let account = cx.key().ok_or_else(|| onceward::reject("no account"))?.to_string();
    let mut receipt = None;
    match &entry {
        Entry::Question => return Ok(a.cents),
        Entry::Arrival { cents, .. } => a.cents += cents,
        Entry::Transfer { id, to, cents } => {
            receipt = Some(cx.once("fee", async |key| charge(key, *id).await).await?);
            let sent = cx.send("accounts", &Entry::Arrival { id: *id, cents: *cents })?;
            sent.headers.insert("x-account".to_owned(), to.as_str().into());
            a.cents -= cents;
        }
    }
    a.changes += 1;
    let change = json!({ "account": account, "after": a, "entry": entry, "receipt": receipt });
    cx.send("changes", &change)?;
    Ok(a.cents)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
    let [url, store] = [1, 2].map(|n| std::env::args().nth(n).ok_or("no url or no store"));
    let mut queue = QueueOptions::new("accounts");
    queue.declare = Declare::Classic;
    queue.identity.key = vec!["header:x-account".parse()?];
    queue.on_duplicate = OnDuplicate::Replay;
    // A kill is an attempt of what was running, and must not make a dead letter of it.
    queue.retry.max_attempts = 1000.try_into()?;
    queue.retry.max = Duration::from_millis(100);
    let worker = Worker::new(Options::new(&url?, store?)?).queue_with(queue, stateful(on_entry));
    Ok(worker.run().await?)
}
