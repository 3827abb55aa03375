//! Producers that set no message-id: the id is in the body or in a header, and unique per tenant only.
//! Runs on a broker inside the process unless it is given a url.
//!
//! ```text
//! $ cargo run --example custom_id     # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! tenant acme, id 7, key ada: {"order":{"id":7}}
//! tenant acme, id 8, key ada: {"note":"id in a header"}
//! tenant globex, id 7, key ada: {"order":{"id":7}}
//! published 5 messages, the handler ran 3 times
//! ```

use std::error::Error;
use std::time::Duration;

use onceward::{Context, Declare, HeaderValue, Message, Options, QueueOptions, Scope, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-custom-id";

static RUNS: Semaphore = Semaphore::const_new(0);

async fn on_order(cx: &mut Context, order: serde_json::Value) -> onceward::Result {
    let tenant = cx.headers().get("x-tenant").and_then(HeaderValue::as_str);
    let tenant = tenant.ok_or_else(|| onceward::reject("the tenant is not text"))?;
    let key = cx.key().ok_or_else(|| onceward::reject("no customer"))?;
    println!("tenant {tenant}, id {}, key {key}: {order}", cx.id());
    RUNS.add_permits(1);
    Ok(())
}

fn message(tenant: &str, id: Option<u32>, body: &'static str) -> Message {
    let mut message =
        Message { routing_key: QUEUE.to_owned(), body: body.into(), ..Message::default() };
    let headers = &mut message.properties.headers;
    headers.insert("x-tenant".to_owned(), tenant.into());
    headers.insert("x-customer".to_owned(), "ada".into());
    headers.extend(id.map(|id| ("x-order-id".to_owned(), id.into())));
    message
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1);
    let url = url.or_else(|| std::env::var("AMQP_URL").ok());
    let store = tempfile::tempdir()?; // A real worker keeps its store.
    let options = Options::new(url.as_deref().unwrap_or("memory:"), store.path())?;
    let mut queue = QueueOptions::new(QUEUE);
    queue.declare = Declare::Classic;
    queue.identity.id = vec!["json:/order/id".parse()?, "header:x-order-id".parse()?];
    queue.identity.key = vec!["header:x-customer".parse()?];
    queue.identity.scope = Scope::Header("x-tenant".to_owned());
    let worker = Worker::new(options).queue_with(queue, on_order);
    let (publisher, health) = (worker.publisher(), worker.health());
    let (in_body, in_header) = (r#"{"order":{"id":7}}"#, r#"{"note":"id in a header"}"#);
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for _twin in 0..2 {
            publisher.publish(message("acme", None, in_body)).await?;
            publisher.publish(message("acme", Some(8), in_header)).await?;
        }
        publisher.publish(message("globex", None, in_body)).await?;
        // The last message of ada runs after the twins were looked at.
        drop(RUNS.acquire_many(3).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    let runs = RUNS.available_permits();
    println!("published 5 messages, the handler ran {runs} times");
    Ok(())
}
