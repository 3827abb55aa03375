//! Messages of a given mix in the in-process broker, the same ones every time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use onceward::{Body, Context, MemoryBroker, Message, Properties, QueueOptions, Retry, Source};

pub(crate) const QUEUE: &str = "bench";
pub(crate) const BODY_BYTES: usize = 256;

const KEY_HEADER: &str = "x-key";
const SEED: u64 = 17;

/// How many keys there are, and how many in a hundred messages are a twin of an earlier one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) keys: u64,
    pub(crate) twins_percent: u64,
}

/// Makes messages of random ids and keys.
pub(crate) struct Messages {
    random: fastrand::Rng,
    keys: u64,
}

impl Messages {
    pub(crate) fn of(keys: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(SEED), keys }
    }

    /// One of a key by chance.
    pub(crate) fn next(&mut self) -> Message {
        let key = self.random.u64(..self.keys);
        self.next_of(key)
    }

    pub(crate) fn next_of(&mut self, key: u64) -> Message {
        let mut properties = Properties {
            message_id: Some(format!("{:032x}", self.random.u128(..))),
            delivery_mode: Some(2),
            ..Properties::default()
        };
        properties.headers.insert(KEY_HEADER.to_owned(), format!("key-{key}").into());
        let body = std::iter::repeat_with(|| self.random.u8(..)).take(BODY_BYTES);
        Message {
            routing_key: QUEUE.to_owned(),
            properties,
            body: body.collect::<Vec<_>>().into(),
            ..Message::default()
        }
    }
}

/// Puts so many messages into the broker; gives the number of different ones.
pub(crate) fn preload(broker: &MemoryBroker, mix: Mix, messages: u64) -> u64 {
    let mut new = Messages::of(mix.keys);
    let mut random = fastrand::Rng::with_seed(SEED + 1);
    let mut different: Vec<Arc<Message>> = Vec::with_capacity(messages as usize);
    broker.declare(QUEUE);
    for _ in 0..messages {
        let is_twin = random.u64(..100) < mix.twins_percent;
        let twin = if is_twin { random.choice(&different).map(Arc::clone) } else { None };
        let message = twin.unwrap_or_else(|| {
            let message = Arc::new(new.next());
            different.push(Arc::clone(&message));
            message
        });
        broker.publish(message);
    }
    different.len() as u64
}

/// The queue that they are in.
pub(crate) fn queue() -> QueueOptions {
    let mut queue = QueueOptions::new(QUEUE);
    queue.identity.key = vec![Source::Header(KEY_HEADER.to_owned())];
    queue
}

/// Keeps ids for so short a time that they are collected while a bench runs; one attempt must be over within it.
pub(crate) fn keep_for(queue: &mut QueueOptions, retention: Duration) {
    queue.retention = retention;
    queue.timeout = queue.timeout.min(retention / 2);
    queue.retry = Retry { max_attempts: NonZeroU32::MIN, ..queue.retry };
}

/// The handler whose own cost is none.
pub(crate) async fn nothing(_: &mut Context, _: Body) -> onceward::Result {
    Ok(())
}
