//! What a worker holds of a publishing channel, and what the broker does with what comes on it.
//!
//! A batch is under way, taken whole or in part, and answered; a lost connection can come between any two of these.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::copies;
use super::super::history::Event;
use super::network::{Frame, Inner, Network};
use super::queues::Kind;
use super::routes::{Counts, Way};
use super::{lost, ms};
use crate::broker::{BrokerError, PublishChannel, Published};
use crate::message::Message;

/// A batch on its way.
pub(super) struct Publishing {
    life: u32,
    messages: Vec<Arc<Message>>,
    answers: Vec<Published>,
    /// The connection is lost; how many of its messages the broker still gets.
    cut: Option<usize>,
    answered: Option<oneshot::Sender<Vec<Published>>>,
}

impl Network {
    /// The batch has reached the broker.
    pub(super) fn take_published(&self, inner: &mut Inner, id: u64) {
        let now = Instant::now();
        let Some(publishing) = inner.publishing.get(&id) else { return };
        let (life, count) = (publishing.life, publishing.messages.len());
        let arriving = publishing.cut.unwrap_or(count).min(count);
        inner.routes.counts.lost_publishes += (count - arriving) as u64;
        if arriving == 0 {
            return;
        }
        if let Some(until) = inner.routes.alarm_until(now) {
            return self.send(inner, until, Frame::Take(id));
        }
        let messages: Vec<_> = publishing.messages.iter().take(arriving).cloned().collect();
        let answers: Vec<_> =
            messages.iter().map(|message| self.take_one(inner, life, message, now)).collect();
        let latency = ms(inner.latency_ms());
        let Some(publishing) = inner.publishing.get_mut(&id) else { return };
        publishing.answers = answers;
        self.send(inner, now + latency, Frame::Answer(id));
    }

    fn take_one(
        &self,
        inner: &mut Inner,
        life: u32,
        message: &Arc<Message>,
        now: Instant,
    ) -> Published {
        let queue: Arc<str> = message.routing_key.as_str().into();
        let exists = inner.queues.exists(&queue);
        let way = inner.routes.way(message, exists, now);
        if way == Way::Refused {
            return Published::Refused;
        }
        let id = copies::sent_as(message);
        let to = if way == Way::Queue { vec![Arc::clone(&queue)] } else { Vec::new() };
        self.log.put(Event::Published {
            life,
            answers: self.names.answered(&id),
            id,
            body: copies::hash_of(message),
            to,
            letter: self.names.letter(message),
        });
        if way == Way::Unroutable {
            return Published::Unroutable("312 NO_ROUTE".to_owned());
        }
        self.put(inner, &queue, message);
        Published::Confirmed
    }

    /// Puts a message into a queue, for a worker or a producer.
    fn put(&self, inner: &mut Inner, queue: &Arc<str>, message: &Arc<Message>) {
        let copy = inner.copies;
        inner.copies += 1;
        let mut marked = Message::clone(message);
        copies::mark(&mut marked, copy);
        let marked = Arc::new(marked);
        let seen = self.names.see(queue, &marked, copy);
        if let Some(seen) = &seen {
            self.log.put(Event::Accepted(seen.clone()));
        }
        if let Some(channel) = inner.queues.put(queue, marked, seen) {
            self.deliver(inner, channel);
        }
    }

    /// A producer's message: the queue has it at once.
    pub(in super::super) fn publish(&self, message: &Arc<Message>) {
        let queue: Arc<str> = message.routing_key.as_str().into();
        self.put(&mut self.lock(), &queue, message);
    }

    pub(in super::super) fn declare(&self, queue: &str, kind: Kind) {
        self.lock().queues.declare(queue, kind);
    }

    /// No message gets into the queue for a while.
    pub(in super::super) fn block(&self, queue: &Arc<str>, for_ms: u64) {
        self.lock().routes.block(Arc::clone(queue), Instant::now() + ms(for_ms));
    }

    /// The next messages are refused.
    pub(in super::super) fn refuse_next(&self, messages: u32) {
        self.lock().routes.refuse(messages);
    }

    /// The broker reads nothing from publishers for a while.
    pub(in super::super) fn alarm(&self, for_ms: u64) {
        self.lock().routes.alarm(Instant::now() + ms(for_ms));
    }

    pub(in super::super) fn counts(&self) -> Counts {
        self.lock().routes.counts
    }
}

impl Inner {
    /// The answers have reached the worker, if it still listens.
    pub(super) fn answer(&mut self, id: u64) {
        let Some(publishing) = self.publishing.remove(&id) else { return };
        let Publishing { cut: None, answered: Some(answered), answers, .. } = publishing else {
            self.routes.counts.lost_confirms += 1;
            // It is told by the end of the connection that nothing is known.
            return;
        };
        // It may have given up waiting.
        let _ = answered.send(answers);
    }

    /// The worker learns that the connection of the batch is lost.
    pub(super) fn break_publishing(&mut self, id: u64) {
        if let Some(publishing) = self.publishing.get_mut(&id) {
            publishing.answered = None;
        }
    }

    /// Loses publishing connections, of one life or all; gives the batches on their way.
    pub(super) fn cut_publishing(&mut self, life: Option<u32>, arrives: bool) -> Vec<u64> {
        let mut cut = Vec::new();
        for (id, publishing) in &mut self.publishing {
            if publishing.cut.is_some() || life.is_some_and(|life| life != publishing.life) {
                continue;
            }
            let some = if arrives { self.rng.usize(0..=publishing.messages.len()) } else { 0 };
            publishing.cut = Some(some);
            cut.push(*id);
        }
        cut
    }

    pub(super) fn is_published_by(&self, id: u64, life: u32) -> bool {
        self.publishing.get(&id).is_some_and(|publishing| publishing.life == life)
    }
}

/// A channel with confirms on a connection of its own.
pub(super) fn open(network: &Network, life: u32) -> Box<dyn PublishChannel> {
    Box::new(Channel { network: network.clone(), life })
}

struct Channel {
    network: Network,
    life: u32,
}

impl PublishChannel for Channel {
    fn ensure_queue<'a>(&'a mut self, queue: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.network.declare(queue, Kind::Classic);
        std::future::ready(Ok(())).boxed()
    }

    fn publish<'a>(
        &'a mut self,
        batch: &'a [Arc<Message>],
    ) -> BoxFuture<'a, Result<Vec<Published>, BrokerError>> {
        async move {
            let (answered, answer) = oneshot::channel();
            {
                let mut inner = self.network.lock();
                let id = inner.next_publishing;
                inner.next_publishing += 1;
                let publishing = Publishing {
                    life: self.life,
                    messages: batch.to_vec(),
                    answers: Vec::new(),
                    cut: None,
                    answered: Some(answered),
                };
                inner.publishing.insert(id, publishing);
                let due = Instant::now() + ms(inner.latency_ms());
                self.network.send(&mut inner, due, Frame::Take(id));
            }
            crate::failpoint::reached(crate::failpoint::Point::Published);
            let answers = answer.await.map_err(|_| lost("connection reset"))?;
            for (message, answer) in batch.iter().zip(&answers) {
                let (life, id) = (self.life, copies::sent_as(message));
                let told = match answer {
                    Published::Confirmed => Event::Confirmed { life, id },
                    _ => Event::Returned { life, id },
                };
                self.network.log.put_of(life, told);
            }
            Ok(answers)
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
