//! Request and reply: a caller that got no answer asks again, and gets the first answer, not a second one.
//!
//! ```text
//! $ cargo run --example request_reply # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! seat 1 is given to order-7
//! call 1 of order-7: "seat 1"
//! call 2 of order-7: "seat 1"
//! seat 2 is given to order-8
//! call 1 of order-8: "seat 2"
//! 3 calls, 2 seats
//! ```

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onceward::{Context, Declare, Message, OnDuplicate, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-request-reply";
const REPLIES: &str = "onceward-example-request-reply-replies";

static SEATS: AtomicU32 = AtomicU32::new(0);
static ANSWERED: Semaphore = Semaphore::const_new(0);

/// What it returns is kept with the record of the message, and published to the caller's `reply-to`.
async fn on_request(_: &mut Context, order: String) -> onceward::Result<String> {
    let seat = SEATS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("seat {seat} is given to {order}");
    Ok(format!("seat {seat}"))
}

async fn on_reply(cx: &mut Context, seat: String) -> onceward::Result {
    println!("{}: {seat:?}", cx.id());
    ANSWERED.add_permits(1);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).or_else(|| std::env::var("AMQP_URL").ok());
    let store = tempfile::tempdir()?; // A real worker keeps its store.
    let options = Options::new(url.as_deref().unwrap_or("memory:"), store.path())?;
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    let mut replies = QueueOptions::new(REPLIES);
    replies.declare = Declare::Classic;
    replies.identity.id = vec![Source::CorrelationId]; // Both answers have one message-id.
    queue.on_duplicate = OnDuplicate::Replay;
    let worker = Worker::new(options).queue_with(queue, on_request).queue_with(replies, on_reply);
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (order, call) in [("order-7", 1), ("order-7", 2), ("order-8", 1)] {
            let (routing_key, body) = (QUEUE.to_owned(), format!("{order:?}").into());
            let mut message = Message { routing_key, body, ..Message::default() };
            message.properties.message_id = Some(order.to_owned());
            message.properties.correlation_id = Some(format!("call {call} of {order}"));
            message.properties.reply_to = Some(REPLIES.to_owned());
            publisher.publish(message).await?;
            ANSWERED.acquire().await?.forget();
        }
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    println!("3 calls, {} seats", SEATS.load(Ordering::Relaxed));
    Ok(())
}
