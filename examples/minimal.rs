//! A function as the handler, a type read from JSON, and an order that arrives twice.
//! Runs on a broker inside the process unless it is given a url.
//!
//! ```text
//! $ cargo run --example minimal       # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! order-1: 2 x tea
//! order-2: 1 x cup
//! order-3: 4 x spoon
//! published 4 messages, the handler ran 3 times
//! ```

use std::error::Error;
use std::time::Duration;

use onceward::{Context, Declare, Message, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-minimal";

static RUNS: Semaphore = Semaphore::const_new(0);

#[derive(serde::Deserialize)]
struct Order {
    item: String,
    count: u32,
}

async fn on_order(cx: &mut Context, order: Order) -> onceward::Result {
    println!("{}: {} x {}", cx.id(), order.count, order.item);
    RUNS.add_permits(1);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.or_else(|| std::env::var("AMQP_URL").ok());
    let store = tempfile::tempdir()?; // A real worker keeps its store.
    let options = Options::new(url.as_deref().unwrap_or("memory:"), store.path())?;
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    queue.identity.key = vec![Source::RoutingKey]; // One key for all: they run in order.
    let worker = Worker::new(options).queue_with(queue, on_order);
    let (publisher, health) = (worker.publisher(), worker.health());
    let orders = [("1", "tea", 2), ("2", "cup", 1), ("1", "tea", 2), ("3", "spoon", 4)];
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (number, item, count) in orders {
            let mut message = Message {
                routing_key: QUEUE.to_owned(),
                body: serde_json::json!({ "item": item, "count": count }).to_string().into(),
                ..Message::default()
            };
            message.properties.message_id = Some(format!("order-{number}"));
            publisher.publish(message).await?;
        }
        // The last order runs after the twin of the first was looked at.
        drop(RUNS.acquire_many(3).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    let runs = RUNS.available_permits();
    println!("published 4 messages, the handler ran {runs} times");
    Ok(())
}
