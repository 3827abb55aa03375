//! How long until a store's first message reaches its handler, and what the process takes then.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use onceward::{Body, Context, Handler, MemoryBroker, QueueOptions};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::support::load::QUEUE;
use crate::support::machine;
use crate::task::{Task, message};

/// No store that is filled has it.
const NEW: u64 = u64::MAX;

/// Tells when the first message arrives.
struct Arrived(Arc<Notify>);

impl Handler<Body> for Arrived {
    async fn handle(&self, _: &mut Context, _: Body) -> onceward::Result {
        self.0.notify_one();
        // It is not to be known the next time.
        Err(onceward::retry_after(std::time::Duration::from_secs(60), "only looked at"))
    }
}

pub(crate) async fn open(task: &Task) -> Result<()> {
    let broker = MemoryBroker::new();
    let arrived = Arc::new(Notify::new());
    let worker = task.worker(&broker, QueueOptions::new(QUEUE), Arrived(Arc::clone(&arrived)));
    broker.publish(message(NEW));
    let started = Instant::now();
    let mut opened = None;
    let first_arrived = async {
        arrived.notified().await;
        opened = Some((started.elapsed().as_secs_f64(), machine::rss_bytes()));
    };
    worker.run_until(first_arrived).await?;
    let (open_s, rss_bytes) = opened.context("the worker ended by itself")?;
    println!("{}", json!({"open_s": open_s, "rss_bytes": rss_bytes?}));
    Ok(())
}
