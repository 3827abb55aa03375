//! One consuming channel: deliveries in order, one error at the end, acks by one caller.
//!
//! lapin's stream ends in three ways (an error and an end, an end alone when the queue is deleted, silence when it
//! is polled once more); ours ends in one: an error, then nothing. `qos` comes before `consume`, because the
//! prefetch is the only bound on what lapin holds in memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer, ErrorKind, Event};

use super::convert;
use super::link::{Link, Place};
use super::own::{self, Consume};
use crate::broker::{AckChannel, BrokerError, Deliveries, Session, Subscription};

/// How often is looked whether the channel is still there: lapin tells it to nobody but the stream of deliveries.
const CLOSED_LOOK: Duration = Duration::from_secs(1);

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
    let ending = Arc::new(Ending {
        place: link.place.clone(),
        queue: queue.clone(),
        said: Mutex::new(Said { events, last: None }),
    });
    let incoming = Incoming { consumer, ending: Arc::clone(&ending) };
    Ok(Session {
        deliveries: incoming.into_deliveries(),
        acks: Box::new(Acks { link, channel, ending }),
    })
}

struct Incoming {
    consumer: Consumer,
    ending: Arc<Ending>,
}

impl Incoming {
    fn into_deliveries(self) -> Deliveries {
        let next = |incoming: Option<Self>| async move {
            let mut incoming = incoming?;
            match incoming.consumer.next().await {
                Some(Ok(delivery)) => Some((Ok(convert::delivery(delivery)), Some(incoming))),
                Some(Err(error)) => Some((Err(incoming.ending.lost("consuming", &error)), None)),
                None => Some((Err(incoming.ending.cancelled()), None)),
            }
        };
        stream::unfold(Some(self), next).fuse().boxed()
    }
}

struct Acks {
    link: Link,
    channel: Channel,
    ending: Arc<Ending>,
}

impl AckChannel for Acks {
    fn ack(&mut self, tag: u64, multiple: bool) -> BoxFuture<'_, Result<(), BrokerError>> {
        assert!(tag > 0, "tag 0 would ack all that is outstanding");
        async move {
            // Not by the delivery's own acker: that one says of a dead channel that all is well.
            let written = self.channel.basic_ack(tag, BasicAckOptions { multiple }).await;
            written.map_err(|error| self.ending.lost("acking", &error))
        }
        .boxed()
    }

    fn closed(&self) -> BoxFuture<'static, BrokerError> {
        let (channel, ending) = (self.channel.clone(), Arc::clone(&self.ending));
        async move {
            while channel.status().connected() {
                tokio::time::sleep(CLOSED_LOOK).await;
            }
            // The stream knows better why, if somebody looks at it.
            tokio::time::sleep(CLOSED_LOOK).await;
            ending.closed()
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.link.close(self.channel).boxed()
    }
}

/// Says why the session ended, the same to whoever notices it first: the stream or an ack.
struct Ending {
    place: Place,
    queue: String,
    said: Mutex<Said>,
}

/// What the connection said about itself; lapin gives each event to one listener only.
struct Said {
    events: BoxStream<'static, Event>,
    last: Option<lapin::Error>,
}

impl Ending {
    fn lost(&self, doing: &str, error: &lapin::Error) -> BrokerError {
        // Later errors only say that the channel is closed, the connection's own one says why.
        let unreadable =
            self.said().filter(|error| matches!(error.kind(), ErrorKind::ParsingError(_)));
        let error = unreadable.as_ref().unwrap_or(error);
        self.place.lost_consuming(&self.queue, doing, error)
    }

    /// The consumer ended without an error: perhaps the connection knows one.
    fn cancelled(&self) -> BrokerError {
        let queue = &self.queue;
        match self.said() {
            Some(error) => self.place.lost_consuming(queue, "consuming", &error),
            None => self.place.lost_by(format!(
                "the broker cancelled the consumer: queue {queue:?} was deleted or its node went down"
            )),
        }
    }

    /// The channel is gone: perhaps the connection knows why.
    fn closed(&self) -> BrokerError {
        match self.said() {
            Some(error) => self.place.lost_consuming(&self.queue, "consuming", &error),
            None => self.place.lost_by("the broker closed the channel".to_owned()),
        }
    }

    fn said(&self) -> Option<lapin::Error> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Some(event)) = said.events.next().now_or_never() {
            if let Event::Error(error) = event {
                said.last = Some(error);
            }
        }
        said.last.clone()
    }
}
