//! What is published: a numbered stream of messages with keys, some of them twice.
//!
//! The publisher is a careful one: what was not confirmed, it publishes again. That makes more twins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub(crate) const KEYS: usize = 20;

/// Of all that is published, what repeats an earlier message.
const TWINS_PERCENT: usize = 20;

/// How long a broker may take to confirm before all is published again.
const CONFIRM_MAX: Duration = Duration::from_secs(60);

/// Message `number` is the `sequence`th of its key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) number: usize,
    pub(crate) key: usize,
    pub(crate) sequence: usize,
}

impl Order {
    pub(crate) fn body(self) -> String {
        format!("{} {} {}", self.number, self.key, self.sequence)
    }

    pub(crate) fn parse(body: &[u8]) -> Self {
        let text = std::str::from_utf8(body).expect("text");
        let mut numbers = text.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        Self { number: next(), key: next(), sequence: next() }
    }

    /// It is rejected, and so ends in the dead-letter queue.
    pub(crate) const fn is_bad(self) -> bool {
        self.number % 50 == 49
    }

    /// Its first attempt fails.
    pub(crate) const fn is_refused_once(self) -> bool {
        self.number % 30 == 29 && !self.is_bad()
    }
}

/// The stream, as far as it was published.
#[derive(Debug)]
pub(crate) struct Stream {
    sequences: [usize; KEYS],
    published: Vec<Order>,
    random: fastrand::Rng,
}

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { sequences: [0; KEYS], published: Vec::new(), random }
    }

    /// Messages that there are, without twins.
    pub(crate) const fn len(&self) -> usize {
        self.published.len()
    }

    fn new_of(&mut self, key: usize) -> Order {
        let sequence = self.sequences.get_mut(key).expect("one of the keys");
        *sequence += 1;
        let order = Order { number: self.published.len(), key, sequence: *sequence };
        self.published.push(order);
        order
    }

    /// The next messages, with twins among them.
    pub(crate) fn next(&mut self, length: usize) -> Vec<Order> {
        let mut orders = Vec::with_capacity(length);
        for _ in 0..length {
            let recent = &self.published[self.published.len().saturating_sub(300)..];
            if self.random.usize(..100) < TWINS_PERCENT
                && let Some(twin) = self.random.choice(recent)
            {
                orders.push(*twin);
                continue;
            }
            let key = self.random.usize(..KEYS);
            orders.push(self.new_of(key));
        }
        orders
    }

    /// One more of each key, none of them twice: where they are done, all is.
    pub(crate) fn last(&mut self) -> Vec<Order> {
        (0..KEYS).map(|key| self.new_of(key)).collect()
    }

    /// All of them again.
    pub(crate) fn all(&self) -> Vec<Order> {
        self.published.clone()
    }
}

/// Publishes to all queues until every message is confirmed, whatever happens to the connection.
pub(crate) async fn publish(url: &str, queues: &[&str], orders: &[Order]) {
    for orders in orders.chunks(500) {
        while let Err(error) = try_publish(url, queues, orders).await {
            println!("publishing again: {error}");
            sleep(Duration::from_millis(300)).await;
        }
    }
}

async fn try_publish(url: &str, queues: &[&str], orders: &[Order]) -> lapin::Result<()> {
    let confirmed = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        for queue in queues {
            send(&channel, queue, orders).await?;
        }
        // It is confirmed: how the connection ends does not matter.
        drop(connection.close(200, "OK".into()).await);
        Ok(())
    };
    let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    timeout(CONFIRM_MAX, confirmed).await.unwrap_or_else(late)
}

async fn send(channel: &Channel, queue: &str, orders: &[Order]) -> lapin::Result<()> {
    let mut confirms = Vec::with_capacity(orders.len());
    for order in orders {
        let mut headers = FieldTable::default();
        headers.insert("x-key".into(), AMQPValue::LongString(order.key.to_string().into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("m{}", order.number).into())
            .with_headers(headers);
        let options = BasicPublishOptions::default();
        let body = order.body();
        let sent =
            channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
        confirms.push(sent.await?);
    }
    for confirm in confirms {
        if !confirm.await?.is_ack() {
            return Err(std::io::Error::other("the broker refused a message").into());
        }
    }
    Ok(())
}

/// Publishes all the time, until it is stopped.
pub(crate) struct Publishing {
    stopping: Arc<AtomicBool>,
    task: JoinSet<Stream>,
}

impl Publishing {
    pub(crate) fn start(url: String, queues: &'static [&'static str], mut stream: Stream) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn({
            let stopping = Arc::clone(&stopping);
            async move {
                while !stopping.load(Ordering::Relaxed) {
                    let orders = stream.next(20);
                    publish(&url, queues, &orders).await;
                    sleep(Duration::from_millis(100)).await;
                }
                stream
            }
        });
        Self { stopping, task }
    }

    /// Ends when all is confirmed.
    pub(crate) async fn stop(mut self) -> Stream {
        self.stopping.store(true, Ordering::Relaxed);
        let ended = self.task.join_next().await.expect("it was started");
        ended.expect("it does not panic")
    }
}
