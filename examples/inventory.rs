//! State per key: the stock of each item, changed together with the record of the message that moved it.
//!
//! ```text
//! $ cargo run --example inventory     # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! cup: 5, then 3 in stock
//! tea: 10, then 6 in stock
//! published 5 messages, the handler ran 4 times
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::{Context, Declare, Message, Options, QueueOptions, State, Worker, stateful};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-inventory";

/// Shown in the end, because items do not wait for each other.
static SEEN: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

#[derive(Default, Serialize, Deserialize)]
struct Stock {
    pieces: i64,
}

impl State for Stock {
    const NAME: &'static str = "stock"; // On disk, with its version.
}

async fn on_moved(stock: &mut Stock, cx: &mut Context, pieces: i64) -> onceward::Result {
    let item = cx.key().ok_or_else(|| onceward::reject("no item"))?.to_string();
    stock.pieces += pieces;
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.entry(item).or_default().push(stock.pieces.to_string());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).or_else(|| std::env::var("AMQP_URL").ok());
    let store = tempfile::tempdir()?; // A real worker keeps its store.
    let options = Options::new(url.as_deref().unwrap_or("memory:"), store.path())?;
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    queue.identity.key = vec!["header:x-item".parse()?];
    let worker = Worker::new(options).queue_with(queue, stateful(on_moved));
    let moved =
        [("1", "tea", 10), ("2", "cup", 5), ("1", "tea", 10), ("3", "tea", -4), ("4", "cup", -2)];
    let runs = || SEEN.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().count();
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (id, item, pieces) in moved {
            let (routing_key, body) = (QUEUE.to_owned(), pieces.to_string().into());
            let mut message = Message { routing_key, body, ..Message::default() };
            message.properties.message_id = Some(id.to_owned());
            message.properties.headers.insert("x-item".to_owned(), item.into());
            publisher.publish(message).await?;
        }
        while runs() < 4 {
            sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    for (item, stock) in SEEN.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{item}: {} in stock", stock.join(", then "));
    }
    println!("published {} messages, the handler ran {} times", moved.len(), runs());
    Ok(())
}
