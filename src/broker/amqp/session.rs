//! One consuming channel: deliveries in order, one error at the end, acks by one caller.
//!
//! lapin's stream ends in three ways (an error and an end, an end alone when the queue is deleted, silence when it
//! is polled once more); ours ends in one: an error, then nothing. `qos` comes before `consume`, because the
//! prefetch is the only bound on what lapin holds in memory.

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer, Event};

use super::convert;
use super::link::{Link, Place};
use super::own::{self, Consume};
use crate::broker::{AckChannel, BrokerError, Deliveries, Session, Subscription};

/// Consumes the subscription's queue on this connection.
pub(super) async fn open(link: Link, subscription: &Subscription) -> Result<Session, BrokerError> {
    let queue = &subscription.queue;
    let consume = own::own(&link, subscription).await?;
    let events = link.connection.events_listener().boxed();
    let channel = link.channel().await?;
    let prefetch = subscription.prefetch.get();
    let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
    link.place.answer("setting the prefetch", qos).await?;
    let options = BasicConsumeOptions {
        exclusive: consume == Consume::Exclusive,
        ..BasicConsumeOptions::default()
    };
    let name = ShortString::try_new(queue.as_str())
        .map_err(|error| link.place.lost_by(format!("queue {queue:?}: {error}")))?;
    let asked = channel.basic_consume(name, "".into(), options, FieldTable::default());
    let consumer = match link.place.reply("consuming", asked).await? {
        Ok(consumer) => consumer,
        Err(error) if options.exclusive && error.to_string().contains("in exclusive use") => {
            return Err(link.place.lost_by(format!(
                "queue {queue:?} is consumed by somebody else; standing by until it is free ({error})"
            )));
        }
        Err(error) => return Err(link.place.lost_consuming(queue, "consuming", &error)),
    };
    let incoming = Incoming {
        consumer,
        events,
        place: link.place.clone(),
        queue: queue.clone(),
    };
    Ok(Session {
        deliveries: incoming.into_deliveries(),
        acks: Box::new(Acks {
            link,
            channel,
            queue: queue.clone(),
        }),
    })
}

/// What arrives, and what is said about the connection meanwhile.
struct Incoming {
    consumer: Consumer,
    events: BoxStream<'static, Event>,
    place: Place,
    queue: String,
}

impl Incoming {
    fn into_deliveries(self) -> Deliveries {
        let next = |incoming: Option<Self>| async move {
            let mut incoming = incoming?;
            match incoming.consumer.next().await {
                Some(Ok(delivery)) => Some((Ok(convert::delivery(delivery)), Some(incoming))),
                Some(Err(error)) => Some((Err(incoming.lost(&error)), None)),
                None => Some((Err(incoming.ended()), None)),
            }
        };
        stream::unfold(Some(self), next).fuse().boxed()
    }

    fn lost(&self, error: &lapin::Error) -> BrokerError {
        self.place.lost_consuming(&self.queue, "consuming", error)
    }

    /// The consumer ended without an error: perhaps the connection knows one.
    fn ended(&mut self) -> BrokerError {
        let mut last = None;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            if let Event::Error(error) = event {
                last = Some(error);
            }
        }
        let cancelled = || {
            let queue = &self.queue;
            self.place.lost_by(format!(
                "the broker cancelled the consumer: queue {queue:?} was deleted or its node went down"
            ))
        };
        last.map_or_else(cancelled, |error| self.lost(&error))
    }
}

struct Acks {
    link: Link,
    channel: Channel,
    queue: String,
}

impl AckChannel for Acks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        assert!(tag > 0, "tag 0 would ack all that is outstanding");
        async move {
            // Not by the delivery's own acker: that one says of a dead channel that all is well.
            let written = self
                .channel
                .basic_ack(tag, BasicAckOptions { multiple })
                .await;
            written.map_err(|error| {
                self.link
                    .place
                    .lost_consuming(&self.queue, "acking", &error)
            })
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.link.close(self.channel).boxed()
    }
}
