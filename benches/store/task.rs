//! What a child is to do with a store, and the messages that it does it with.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use onceward::{
    Body, Handler, MemoryBroker, Message, Options, Properties, QueueOptions, StoreOptions, Worker,
};
use serde::{Deserialize, Serialize};

use crate::churn::Churn;
use crate::look_up::LookUp;
use crate::support::load::QUEUE;

const BODY_BYTES: usize = 64;

#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) directory: String,
    cache_bytes: u64,
    pub(crate) what: What,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum What {
    Fill { ids: u64 },
    Open,
    LookUp(LookUp),
    Churn(Churn),
}

impl Task {
    pub(crate) fn new(directory: &Path, cache_bytes: u64, what: What) -> Result<Self> {
        let directory = directory.to_str().context("a path in UTF-8")?.to_owned();
        Ok(Self { directory, cache_bytes, what })
    }

    pub(crate) fn worker(
        &self,
        broker: &MemoryBroker,
        queue: QueueOptions,
        handler: impl Handler<Body>,
    ) -> Worker {
        let mut store = StoreOptions::new(&self.directory);
        store.cache_bytes = self.cache_bytes;
        broker.declare(QUEUE);
        Worker::new(Options::with_broker(Arc::new(broker.clone()), store))
            .queue_with(queue, handler)
    }
}

/// The message of this number: the same one each time, in every process.
pub(crate) fn message(number: u64) -> Message {
    let id = fastrand::Rng::with_seed(number).u128(..);
    Message {
        routing_key: QUEUE.to_owned(),
        properties: Properties { message_id: Some(format!("{id:032x}")), ..Properties::default() },
        body: vec![7; BODY_BYTES].into(),
        ..Message::default()
    }
}
