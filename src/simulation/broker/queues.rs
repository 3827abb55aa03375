//! Queues and channels with RabbitMQ's rules: tags, prefetch, requeueing, the only consumer.
//!
//! Pure. A tag belongs to its channel; what is unacked when a channel ends goes back to its place, marked as
//! redelivered. A classic queue refuses a second consumer, a queue with a single active consumer lets it wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::history::Seen;
use crate::message::Message;

/// How a queue takes a second consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// Refused: the first one is exclusive.
    Classic,
    /// It waits until the first one goes.
    SingleActive,
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Stored {
    position: u64,
    redelivered: bool,
    pub(super) message: Arc<Message>,
    /// Of those in consumed queues.
    pub(super) seen: Option<Seen>,
}

#[derive(Debug)]
struct Queue {
    kind: Kind,
    /// In order of position, which is the order of arrival.
    ready: VecDeque<Stored>,
    next_position: u64,
    active: Option<u64>,
    waiting: VecDeque<u64>,
}

#[derive(Debug)]
struct Channel {
    queue: Arc<str>,
    prefetch: usize,
    next_tag: u64,
    unacked: BTreeMap<u64, Stored>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Queues {
    queues: BTreeMap<Arc<str>, Queue>,
    channels: BTreeMap<u64, Channel>,
    next_channel: u64,
}

/// What is sent to a consumer.
pub(super) struct Sent {
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) message: Arc<Message>,
    pub(super) seen: Seen,
}

/// What became of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    Taken,
    /// The tag is not outstanding.
    Refused,
    /// The channel is closed: nobody reads it.
    Unread,
}

impl Queues {
    /// Makes the queue, if it is not there.
    pub(super) fn declare(&mut self, name: &str, kind: Kind) {
        let new = || Queue {
            kind,
            ready: VecDeque::new(),
            next_position: 0,
            active: None,
            waiting: VecDeque::new(),
        };
        self.queues.entry(name.into()).or_insert_with(new);
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.queues.contains_key(name)
    }

    /// Puts a message at the end; gives the channel that may get something now.
    pub(super) fn put(
        &mut self,
        name: &str,
        message: Arc<Message>,
        seen: Option<Seen>,
    ) -> Option<u64> {
        let queue = self.queues.get_mut(name)?;
        let position = queue.next_position;
        queue.next_position += 1;
        // What nobody consumes need not be kept: the history has it.
        if seen.is_some() {
            queue.ready.push_back(Stored { position, redelivered: false, message, seen });
        }
        queue.active
    }

    /// A consumer on a channel of its own; the number of the channel, or why not.
    pub(super) fn consume(&mut self, name: &Arc<str>, prefetch: u16) -> Result<u64, &'static str> {
        let queue = self.queues.get_mut(name).ok_or("404 NOT_FOUND: no such queue")?;
        let id = self.next_channel;
        match (queue.active, queue.kind) {
            (None, _) => queue.active = Some(id),
            (Some(_), Kind::SingleActive) => queue.waiting.push_back(id),
            (Some(_), Kind::Classic) => return Err("403 ACCESS_REFUSED: in exclusive use"),
        }
        self.next_channel += 1;
        let (queue, prefetch) = (Arc::clone(name), usize::from(prefetch));
        let channel = Channel { queue, prefetch, next_tag: 1, unacked: BTreeMap::new() };
        self.channels.insert(id, channel);
        Ok(id)
    }

    /// Whether another consumer of its queue is the active one.
    pub(super) fn waits(&self, id: u64) -> bool {
        let queue = self.channels.get(&id).and_then(|channel| self.queues.get(&channel.queue));
        queue.is_some_and(|queue| queue.active != Some(id))
    }

    /// The next message for the channel, if it is active and has room.
    pub(super) fn deliver(&mut self, id: u64) -> Option<Sent> {
        let channel = self.channels.get_mut(&id)?;
        let queue = self.queues.get_mut(&channel.queue)?;
        if channel.unacked.len() >= channel.prefetch || queue.active != Some(id) {
            return None;
        }
        let stored = queue.ready.pop_front()?;
        let (tag, redelivered) = (channel.next_tag, stored.redelivered);
        let (message, seen) = (Arc::clone(&stored.message), stored.seen.clone()?);
        channel.unacked.insert(tag, stored);
        channel.next_tag += 1;
        Some(Sent { tag, redelivered, message, seen })
    }

    pub(super) fn ack(&mut self, id: u64, tag: u64, multiple: bool) -> Acked {
        let Some(channel) = self.channels.get_mut(&id) else { return Acked::Unread };
        if channel.unacked.remove(&tag).is_none() {
            return Acked::Refused;
        }
        if multiple {
            channel.unacked = channel.unacked.split_off(&tag);
        }
        Acked::Taken
    }

    pub(super) fn is_outstanding(&self, id: u64, tag: u64) -> bool {
        self.channels.get(&id).is_some_and(|channel| channel.unacked.contains_key(&tag))
    }

    /// Ends the channel: what it had goes back to where it came from. Gives whether there was one, and which is active
    /// in its place.
    pub(super) fn close(&mut self, id: u64) -> (bool, Option<u64>) {
        let Some(channel) = self.channels.remove(&id) else { return (false, None) };
        let Some(queue) = self.queues.get_mut(&channel.queue) else { return (true, None) };
        for mut stored in channel.unacked.into_values() {
            stored.redelivered = true;
            queue.ready.push_back(stored);
        }
        queue.ready.make_contiguous().sort_unstable_by_key(|stored| stored.position);
        queue.waiting.retain(|waiting| *waiting != id);
        if queue.active == Some(id) {
            queue.active = queue.waiting.pop_front();
        }
        (true, queue.active)
    }

    /// Channels that are open, and their queues.
    pub(super) fn open(&self) -> Vec<u64> {
        self.channels.keys().copied().collect()
    }

    /// Messages in consumed queues, waiting and unacked.
    pub(super) fn left(&self) -> Vec<(Arc<str>, usize, usize)> {
        let left = self.queues.iter().map(|(name, queue)| {
            let of = self.channels.values().filter(|channel| channel.queue == *name);
            (Arc::clone(name), queue.ready.len(), of.map(|channel| channel.unacked.len()).sum())
        });
        left.filter(|(_, ready, unacked)| ready + unacked > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(kind: Kind, messages: u64) -> (Queues, Arc<str>) {
        let (mut queues, name) = (Queues::default(), Arc::from("orders"));
        queues.declare("orders", kind);
        for copy in 0..messages {
            let seen = Seen {
                queue: Arc::clone(&name),
                name: format!("orders/{copy}").into(),
                key: None,
                class: None,
                fingerprint: 0,
                has_id: true,
                copy,
            };
            queues.put("orders", Arc::default(), Some(seen));
        }
        (queues, name)
    }

    fn copies(queues: &mut Queues, channel: u64) -> Vec<(u64, bool)> {
        let sent = std::iter::from_fn(|| queues.deliver(channel));
        sent.map(|sent| (sent.seen.copy, sent.redelivered)).collect()
    }

    #[test]
    fn what_is_unacked_goes_back_to_its_place() {
        let (mut queues, name) = queue(Kind::Classic, 4);
        let first = queues.consume(&name, 3).expect("nobody else consumes");
        assert_eq!(copies(&mut queues, first), [(0, false), (1, false), (2, false)]);
        assert_eq!(queues.ack(first, 2, false), Acked::Taken);
        assert!(queues.close(first).0);
        let second = queues.consume(&name, 9).expect("nobody else consumes");
        assert_eq!(copies(&mut queues, second), [(0, true), (2, true), (3, false)]);
        assert_eq!(queues.ack(first, 1, false), Acked::Unread);
    }

    #[test]
    fn only_an_outstanding_tag_can_be_acked() {
        let (mut queues, name) = queue(Kind::Classic, 3);
        let channel = queues.consume(&name, 9).expect("nobody else consumes");
        copies(&mut queues, channel);
        assert_eq!(queues.ack(channel, 2, true), Acked::Taken);
        for (tag, multiple) in [(1, false), (2, true), (4, false), (0, true)] {
            assert_eq!(queues.ack(channel, tag, multiple), Acked::Refused, "{tag}");
        }
        assert_eq!(queues.ack(channel, 3, false), Acked::Taken);
        assert!(queues.left().is_empty());
    }

    #[test]
    fn a_second_consumer_is_refused_or_waits_for_the_first_to_go() {
        let (mut queues, name) = queue(Kind::Classic, 1);
        let first = queues.consume(&name, 1).expect("nobody else consumes");
        assert!(queues.consume(&name, 1).is_err());
        assert_eq!(queues.close(first), (true, None));

        let (mut queues, name) = queue(Kind::SingleActive, 1);
        let first = queues.consume(&name, 1).expect("nobody else consumes");
        let second = queues.consume(&name, 1).expect("it may wait");
        assert!(queues.deliver(second).is_none());
        assert_eq!(queues.close(first), (true, Some(second)));
        assert_eq!(copies(&mut queues, second), [(0, false)]);
    }
}
