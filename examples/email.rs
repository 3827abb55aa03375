//! A step that must not happen twice and can be asked about: each first answer of the mail server is lost.
//!
//! ```text
//! $ cargo run --example email         # or `-- amqp://guest:guest@127.0.0.1:5672/%2f`, or AMQP_URL
//! welcome, attempt 1: sent
//! welcome, attempt 2: asked, it was sent
//! invoice, attempt 1: not sent
//! invoice, attempt 2: asked, it was not sent
//! invoice, attempt 2: sent
//! 2 messages, 2 mails
//! ```

use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onceward::{Asked, Context, Declare, Message, Options, QueueOptions, Source, Worker};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const QUEUE: &str = "onceward-example-email";

/// The keys that the mail server has sent mails under.
static SENT: Mutex<Vec<String>> = Mutex::new(Vec::new());
static DONE: Semaphore = Semaphore::const_new(0);

async fn send(mail: &str, attempt: u32, key: String) -> io::Result<()> {
    let refused = attempt == 1 && mail == "invoice";
    println!("{mail}, attempt {attempt}: {}", if refused { "not sent" } else { "sent" });
    if !refused {
        SENT.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }
    if attempt == 1 { Err(io::Error::other("no answer")) } else { Ok(()) }
}

async fn ask(mail: &str, attempt: u32, key: String) -> io::Result<Asked<()>> {
    let sent = SENT.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
    println!("{mail}, attempt {attempt}: asked, it was {}", if sent { "sent" } else { "not sent" });
    Ok(if sent { Asked::Happened(()) } else { Asked::DidNot })
}

async fn on_mail(cx: &mut Context, mail: String) -> onceward::Result {
    let (mail, attempt) = (&*mail, cx.attempt());
    cx.once_or_ask("mail", |key| ask(mail, attempt, key), |key| send(mail, attempt, key)).await?;
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
    let worker = Worker::new(options).queue_with(queue, on_mail);
    let (publisher, health) = (worker.publisher(), worker.health());
    let until = timeout(Duration::from_secs(20), async {
        while !health.readiness().is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        for mail in ["welcome", "invoice"] {
            let body = format!("{mail:?}").into();
            let mut message = Message { routing_key: QUEUE.to_owned(), body, ..Message::default() };
            message.properties.message_id = Some(mail.to_owned());
            publisher.publish(message).await?;
        }
        drop(DONE.acquire_many(2).await?);
        Ok::<(), Box<dyn Error>>(())
    });
    let mut published = Ok(Ok(()));
    worker.run_until(async { published = until.await }).await?;
    published.map_err(|_| format!("gave up: {:?}", health.readiness().faults))??;
    println!("2 messages, {} mails", SENT.lock().unwrap_or_else(PoisonError::into_inner).len());
    Ok(())
}
