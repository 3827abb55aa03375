//! The publishing channel: a whole group out, then a whole group of answers.
//!
//! lapin attaches a returned message to the wrong confirm, and swaps the confirms of tasks that share a channel. So
//! one caller publishes, waits for every confirm of the group, and only then decides by our own ids which messages
//! came back. A message that makes the broker close the channel (no such exchange, no permission) takes its group
//! along: the group is then published again one by one, on a new connection, and it alone is answered for. One by
//! one nothing is sent behind a message that closes the channel; lapin sends such frames after its `close-ok`, and
//! the broker closes the connection for them (504).

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, PublisherConfirm};

use super::convert;
use super::link::Link;
use super::outgoing::{self, Limits};
use super::own::{self, Declared};
use super::progress::Progress;
use super::url::AmqpOptions;
use crate::broker::{BrokerError, PublishChannel, Published, same_outgoing};
use crate::failpoint::{self, Point};
use crate::message::Message;

const NOT_FOUND: u16 = 404;
const ACCESS_REFUSED: u16 = 403;

/// Opens a connection with a channel with confirms.
pub(super) async fn open(options: &AmqpOptions) -> Result<Box<dyn PublishChannel>, BrokerError> {
    Ok(Box::new(Channeled::open(options.clone()).await?))
}

async fn confirm_channel(link: &Link) -> Result<Channel, BrokerError> {
    let channel = link.channel().await?;
    let select = channel.confirm_select(ConfirmSelectOptions::default());
    link.place.answer("asking for confirms", select).await?;
    Ok(channel)
}

struct Channeled {
    options: AmqpOptions,
    link: Link,
    channel: Channel,
    progress: Progress,
}

/// What a group came to.
enum Group {
    Answered(Vec<Published>),
    /// The broker closed the channel, and says of no message which one it meant.
    Refused(Published),
}

impl PublishChannel for Channeled {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        async move {
            let durable = QueueDeclareOptions::durable();
            let none = FieldTable::default;
            // Passive first: a queue that an operator made with other arguments is as good.
            let found = own::try_declare(&self.link, queue, durable.passive(), none()).await?;
            let declared = match found {
                Declared::Refused { code: NOT_FOUND, .. } => {
                    own::try_declare(&self.link, queue, durable, none()).await?
                }
                found => found,
            };
            match declared {
                Declared::Ok => Ok(()),
                Declared::Refused { text, .. } => {
                    Err(self.link.place.lost_by(format!("declaring queue {queue:?}: {text}")))
                }
            }
        }
        .boxed()
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        async move {
            if let Group::Answered(published) = self.publish_group(batch).await? {
                return Ok(published);
            }
            // What was sent behind the close makes the broker close the connection too, sooner or later.
            *self = Self::open(self.options.clone()).await?;
            let mut published = Vec::with_capacity(batch.len());
            for message in batch {
                match self.publish_group(std::slice::from_ref(message)).await? {
                    Group::Answered(answer) => published.extend(answer),
                    Group::Refused(answer) => published.push(answer),
                }
            }
            Ok(published)
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.link.close(self.channel).boxed()
    }
}

impl Channeled {
    async fn open(options: AmqpOptions) -> Result<Self, BrokerError> {
        let link = Link::open(&options).await?;
        let progress = Progress::of_link(&link);
        let channel = confirm_channel(&link).await?;
        Ok(Self { options, link, channel, progress })
    }

    async fn publish_group(&mut self, batch: &[Arc<Message>]) -> Result<Group, BrokerError> {
        if !self.channel.status().connected() {
            self.channel = confirm_channel(&self.link).await?;
        }
        let mut sent = Vec::with_capacity(batch.len());
        for message in batch {
            match self.send(message).await? {
                Ok(sending) => sent.push(sending),
                Err(error) => {
                    let error = self.cause(sent).await?.unwrap_or(error);
                    return self.refused(&error);
                }
            }
        }
        if sent.iter().any(|sending| matches!(sending, Sending::Sent(_))) {
            failpoint::reached(Point::Published);
        }
        let mut answers = Vec::with_capacity(batch.len());
        let mut returned = Vec::new();
        for sending in sent {
            let confirm = match sending {
                Sending::Unsendable(reason) => {
                    answers.push(Published::Unsendable(reason));
                    continue;
                }
                Sending::Sent(confirm) => {
                    self.progress.of("waiting for a confirm", confirm).await?
                }
            };
            let confirmation = match confirm {
                Ok(confirmation) => confirmation,
                Err(error) => return self.refused(&error),
            };
            answers.push(match &confirmation {
                Confirmation::Ack(_) => Published::Confirmed,
                // Without confirms there is no proof that it was taken.
                Confirmation::Nack(_) | Confirmation::NotRequested => Published::Refused,
            });
            returned.extend(confirmation.take_message());
        }
        mark_returned(batch, &mut answers, returned);
        Ok(Group::Answered(answers))
    }

    /// Hands the message to the connection; the inner error is the channel's end.
    async fn send(&mut self, message: &Message) -> Result<lapin::Result<Sending>, BrokerError> {
        let frame_bytes_max = self.link.connection.configuration().frame_max();
        let limits = Limits {
            frame_bytes_max: usize::try_from(frame_bytes_max).unwrap_or(usize::MAX),
            user: self.link.place.url().user(),
        };
        let outgoing = match outgoing::outgoing(message, &limits) {
            Ok(outgoing) => outgoing,
            Err(reason) => return Ok(Ok(Sending::Unsendable(reason))),
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sending = self.channel.basic_publish(
            outgoing.exchange,
            outgoing.routing_key,
            options,
            &message.body,
            outgoing.properties,
        );
        let sent = self.progress.of("publishing", sending).await?;
        Ok(sent.map(Sending::Sent))
    }

    /// Why the channel was closed while the group was being sent: only the outstanding confirms know.
    async fn cause(&mut self, sent: Vec<Sending>) -> Result<Option<lapin::Error>, BrokerError> {
        for sending in sent {
            let Sending::Sent(confirm) = sending else {
                continue;
            };
            let ended = self.progress.of("publishing", confirm).await?;
            if let Err(error) = ended
                && error.is_amqp_soft_error()
            {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    /// What the end of the channel means: an answer to a message, or the loss of the connection.
    fn refused(&self, error: &lapin::Error) -> Result<Group, BrokerError> {
        match self.progress.refusal(error) {
            // Whoever may not write there now may be allowed to later: the message is not at fault.
            Some((NOT_FOUND | ACCESS_REFUSED, text)) => {
                Ok(Group::Refused(Published::Unroutable(text)))
            }
            Some((_, text)) => Ok(Group::Refused(Published::Unsendable(text))),
            None => Err(self.link.place.lost("publishing", error)),
        }
    }
}

enum Sending {
    Sent(PublisherConfirm),
    Unsendable(String),
}

/// Corrects the answers of the messages that came back, found by our own ids.
fn mark_returned(
    batch: &[Arc<Message>],
    answers: &mut [Published],
    returned: Vec<BasicReturnMessage>,
) {
    for back in returned {
        let (properties, _) = convert::properties(&back.delivery.properties);
        let same = |message: &Message| {
            same_outgoing(&message.properties, &properties)
                && message.exchange == back.delivery.exchange.as_str()
                && message.routing_key == back.delivery.routing_key.as_str()
        };
        let reason = format!("{} {}", back.reply_code, back.reply_text);
        let of_it = batch.iter().zip(answers.iter_mut()).filter(|(message, _)| same(message));
        for (_, answer) in of_it {
            *answer = Published::Unroutable(reason.clone());
        }
    }
}
