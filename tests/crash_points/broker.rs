//! The test's own side of the broker: publishes until it is confirmed, and reads what is downstream; over lost
//! connections and restarts of the broker.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::book::Book;
use crate::traffic::{CLASS_HEADER, KEY_HEADER, Order};

const AGAIN: Duration = Duration::from_millis(200);

/// Longest time in which the broker answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a queue into the book for ever.
pub(crate) async fn read(url: String, queue: String, book: Book, is_dead: bool) {
    loop {
        // A broker that is away is no fault of the worker: what is missing in the end is.
        let _ = read_until_lost(&url, &queue, &book, is_dead).await;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn read_until_lost(url: &str, queue: &str, book: &Book, is_dead: bool) -> lapin::Result<()> {
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        match is_dead {
            true => book.died(queue, &delivery),
            false => book.arrived(queue, &delivery),
        }
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
    }
    Ok(())
}

/// A broker that accepts and says nothing is as good as none.
async fn connect(url: &str) -> lapin::Result<Connection> {
    let connecting = Connection::connect(url, ConnectionProperties::default());
    let connected = tokio::time::timeout(PATIENCE, connecting).await;
    connected.map_err(|_| lapin::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))?
}

/// A producer.
pub(crate) struct Producer {
    url: String,
    queue: String,
    book: Book,
    channel: Option<(Connection, Channel)>,
}

impl Producer {
    pub(crate) fn new(url: &str, queue: &str, book: &Book) -> Self {
        let (url, queue) = (url.to_owned(), queue.to_owned());
        Self { url, queue, book: book.clone(), channel: None }
    }

    /// Publishes them until all are confirmed; after a lost connection all of them again.
    pub(crate) async fn publish(&mut self, orders: &[Order]) {
        for order in orders {
            self.book.accepted(order);
        }
        while !matches!(tokio::time::timeout(PATIENCE, self.try_publish(orders)).await, Ok(Ok(())))
        {
            self.channel = None;
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn try_publish(&mut self, orders: &[Order]) -> Result<(), lapin::Error> {
        let (_, channel) = match &mut self.channel {
            Some(open) => open,
            None => {
                let connection = connect(&self.url).await?;
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                self.channel.insert((connection, channel))
            }
        };
        let mut confirms = Vec::with_capacity(orders.len());
        for order in orders {
            let options = BasicPublishOptions::default();
            let (body, properties) = (order.body(), properties(order));
            let queue = self.queue.as_str().into();
            let sent = channel.basic_publish("".into(), queue, options, &body, properties).await?;
            confirms.push(sent);
        }
        for confirm in confirms {
            let confirmation = confirm.await?;
            assert!(confirmation.is_ack(), "{confirmation:?}");
        }
        Ok(())
    }
}

fn properties(order: &Order) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert(KEY_HEADER.into(), text(&order.key));
    if order.is_tick() {
        headers.insert(CLASS_HEADER.into(), text("tick"));
    }
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    match order.id() {
        Some(id) => properties.with_message_id(id.into()),
        None => properties,
    }
}
