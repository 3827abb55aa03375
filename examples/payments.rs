//! A step: the card is charged once and its receipt is on record, so what fails later does not charge again.
//!
//! ```text
//! $ cargo run --example payments      # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! card service: 1250 cents under key c6b3b32df9943fa8740f21873e13d24a
//! payment a, attempt 1: receipt 1, but the books are closed
//! payment a, attempt 2: receipt 1 is in the books
//! card service: 300 cents under key b749a18ff8a63ef4ca9232aad2b03ada
//! payment b, attempt 1: receipt 2, but the books are closed
//! payment b, attempt 2: receipt 2 is in the books
//! 3 messages, 4 attempts, 2 calls of the card service
//! ```

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onceward::{Context, Declare, Message, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-payments";

static CALLS: AtomicU32 = AtomicU32::new(0);
static BOOKED: Semaphore = Semaphore::const_new(0);

/// The other side. It is given the key by which it would know the charge again.
async fn charge(key: String, cents: u64) -> std::io::Result<u32> {
    println!("card service: {cents} cents under key {key}");
    Ok(CALLS.fetch_add(1, Ordering::Relaxed) + 1)
}

async fn on_payment(cx: &mut Context, cents: u64) -> onceward::Result {
    let receipt: u32 = cx.once("card", async |key| charge(key, cents).await).await?;
    let (id, attempt) = (cx.id(), cx.attempt());
    if attempt == 1 {
        println!("payment {id}, attempt 1: receipt {receipt}, but the books are closed");
        return Err(std::io::Error::other("the books are closed").into());
    }
    println!("payment {id}, attempt {attempt}: receipt {receipt} is in the books");
    BOOKED.add_permits(1);
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
    let worker = Worker::new(options).queue_with(queue, on_payment);
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (id, body) in [("a", "1250"), ("a", "1250"), ("b", "300")] {
            let routing_key = QUEUE.to_owned();
            let mut message = Message { routing_key, body: body.into(), ..Message::default() };
            message.properties.message_id = Some(id.to_owned());
            publisher.publish(message).await?;
        }
        drop(BOOKED.acquire_many(2).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    let calls = CALLS.load(Ordering::Relaxed);
    println!("3 messages, 4 attempts, {calls} calls of the card service");
    Ok(())
}
