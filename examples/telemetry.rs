//! Producers that number their messages: the worker remembers how far each one has come instead of every id.
//!
//! ```text
//! $ cargo run --example telemetry     # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! roof/1: 21.5 degrees
//! roof/2: 21.8 degrees
//! cellar/1: 12 degrees
//! roof/4: 22.2 degrees
//! roof/3: 22 degrees
//! cellar/2: 12.5 degrees
//! published 8 messages, the handler ran 6 times
//! ```

use std::error::Error;
use std::time::Duration;

use onceward::{Context, Declare, Message, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-telemetry";

static RUNS: Semaphore = Semaphore::const_new(0);

async fn on_reading(cx: &mut Context, degrees: f64) -> onceward::Result {
    println!("{}: {degrees} degrees", cx.id());
    RUNS.add_permits(1);
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
    queue.identity.id = vec![Source::Sequence {
        producer: Box::new(Source::Header("x-sensor".to_owned())),
        sequence: Box::new(Source::Header("x-number".to_owned())),
    }];
    let worker = Worker::new(options).queue_with(queue, on_reading);
    let (roof, cellar) = ("roof", "cellar"); // A number that was seen is a duplicate, a late one is not.
    let readings = [
        (roof, 1, 21.5),
        (roof, 2, 21.8),
        (cellar, 1, 12.0),
        (roof, 2, 21.8),
        (roof, 4, 22.2),
        (roof, 3, 22.0),
        (cellar, 1, 12.0),
        (cellar, 2, 12.5),
    ];
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for (sensor, number, degrees) in readings {
            let (routing_key, body) = (QUEUE.to_owned(), degrees.to_string().into());
            let mut message = Message { routing_key, body, ..Message::default() };
            let headers = &mut message.properties.headers;
            headers.insert("x-sensor".to_owned(), sensor.into());
            headers.insert("x-number".to_owned(), u32::into(number));
            publisher.publish(message).await?;
        }
        drop(RUNS.acquire_many(6).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    let runs = RUNS.available_permits();
    println!("published {} messages, the handler ran {runs} times", readings.len());
    Ok(())
}
