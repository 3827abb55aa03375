//! A saga: each step of an order has one that undoes it, and an order that cannot be shipped undoes what it did.
//!
//! ```text
//! $ cargo run --example order_saga    # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! tea: reserve
//! tea: charge
//! tea: refund
//! tea: charge
//! tea: ship
//! anvil: reserve
//! anvil: charge
//! anvil: ship
//! anvil: refund
//! anvil: release
//! ```

use std::error::Error;
use std::io;
use std::time::Duration;

use onceward::{Context, Declare, Message, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-order-saga";

static DONE: Semaphore = Semaphore::const_new(0);

/// Calls another service: the answer to the first charge is lost, and an anvil is refused as too heavy.
async fn call(item: &str, what: &str, attempt: u32) -> io::Result<bool> {
    println!("{item}: {what}");
    let is_lost = (item, what, attempt) == ("tea", "charge", 1);
    if is_lost { Err(io::Error::other("lost")) } else { Ok((item, what) != ("anvil", "ship")) }
}

async fn on_order(cx: &mut Context, item: String) -> onceward::Result {
    let (item, n) = (&*item, cx.attempt());
    cx.once("reserve", |_| call(item, "reserve", n)).await?;
    let undo = async |_| call(item, "refund", n).await.map(drop);
    cx.once_or_compensate("charge", undo, |_| call(item, "charge", n)).await?;
    if !cx.once("ship", |_| call(item, "ship", n)).await? {
        cx.once("refund", |_| call(item, "refund", n)).await?;
        cx.once("release", |_| call(item, "release", n)).await?;
    }
    DONE.add_permits(1);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).or_else(|| std::env::var("AMQP_URL").ok());
    let store = tempfile::tempdir()?; // A real worker keeps its store.
    let options = Options::new(url.as_deref().unwrap_or("memory:"), store.path())?;
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    queue.identity.key = vec![Source::RoutingKey]; // One key for all: they run in order.
    let worker = Worker::new(options).queue_with(queue, on_order);
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for item in ["tea", "anvil"] {
            let body = format!("{item:?}").into();
            let mut message = Message { routing_key: QUEUE.to_owned(), body, ..Message::default() };
            message.properties.message_id = Some(item.to_owned());
            publisher.publish(message).await?;
        }
        drop(DONE.acquire_many(2).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    Ok(())
}
