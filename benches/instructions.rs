//! How many instructions does a message take, counted rather than timed? Run by `scripts/instructions`.
//!
//! A preloaded in-process broker, a handler that does nothing, 10,000 keys, 10 % twins, the default prefetch, a store
//! on the disk. One thread for the runtime, so that what it does comes in the same order each time; the store's
//! threads have their own. Run with many and with few messages: the difference is what the messages took, without the
//! start.
//!
//! `instructions --messages 20000 [--only-load yes]`: with the latter it loads the broker and starts no worker.

use std::sync::Arc;

use anyhow::{Result, ensure};
use onceward::{MemoryBroker, Options, StoreOptions, Worker};

#[path = "support/mod.rs"]
mod support;

use support::drain::all_acked;
use support::load::{Mix, nothing, preload, queue};
use support::rounds::argument;

const MIX: Mix = Mix { keys: 10_000, twins_percent: 10 };

fn main() -> Result<()> {
    let messages: u64 = argument("--messages", 2_000)?;
    let only_load: String = argument("--only-load", String::new())?;
    let broker = MemoryBroker::new();
    preload(&broker, MIX, messages);
    if only_load != "yes" {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let store = StoreOptions::new(directory.path());
        let worker = Worker::new(Options::with_broker(Arc::new(broker.clone()), store))
            .queue_with(queue(), nothing);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(worker.run_until(all_acked(&broker, messages)))?;
        let acked = broker.stats().acked;
        ensure!(acked == messages, "{acked} of {messages} are acked");
    }
    Ok(())
}
