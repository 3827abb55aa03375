//! A struct as handler calls a payment service by an effect key; each first answer is lost.
//!
//! ```text
//! $ cargo run --example external_call     # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! payment a, attempt 1: 1250 cents with effect key d82b440203aefdfe5cde6abe53a221db
//! payment a, attempt 2: 1250 cents with effect key d82b440203aefdfe5cde6abe53a221db
//! payment b, attempt 1: 300 cents with effect key d18b1e6b8a801eafc9acb17a9c730604
//! payment b, attempt 2: 300 cents with effect key d18b1e6b8a801eafc9acb17a9c730604
//! 3 messages, 4 calls, 2 charges
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use onceward::{Context, Declare, Handler, Message, Options, QueueOptions, Source, Worker};
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-external-call";

/// The other side: how often it was called with each key. Only the first call of a key charges.
type Payments = Mutex<BTreeMap<String, u32>>;

fn charge(payments: &Payments, key: String) -> std::io::Result<()> {
    let mut calls = payments.lock().unwrap_or_else(PoisonError::into_inner);
    match calls.entry(key).and_modify(|n| *n += 1).or_insert(1) {
        1 => Err(std::io::Error::other("charged, but the answer is lost")),
        _ => Ok(()),
    }
}

struct Charger(Arc<Payments>);

impl Handler<u64> for Charger {
    async fn handle(&self, cx: &mut Context, cents: u64) -> onceward::Result {
        let (id, attempt, key) = (cx.id(), cx.attempt(), cx.effect_key("charge"));
        println!("payment {id}, attempt {attempt}: {cents} cents with effect key {key}");
        Ok(charge(&self.0, key)?) // An error by `?` is another attempt.
    }
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
    let payments = Arc::new(Payments::default());
    let worker = Worker::new(options).queue_with(queue, Charger(Arc::clone(&payments)));
    let (publisher, health) = (worker.publisher(), worker.health());
    let calls = || payments.lock().unwrap_or_else(PoisonError::into_inner);
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (id, body) in [("a", "1250"), ("a", "1250"), ("b", "300")] {
            let mut message =
                Message { routing_key: QUEUE.to_owned(), body: body.into(), ..Message::default() };
            message.properties.message_id = Some(id.to_owned());
            publisher.publish(message).await?;
        }
        while calls().values().sum::<u32>() < 4 {
            sleep(Duration::from_millis(20)).await;
        }
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    let sum: u32 = calls().values().sum();
    println!("3 messages, {sum} calls, {} charges", calls().len());
    Ok(())
}
