//! What is known at an entry of a history: messages, channels, commits, records, lives.
//!
//! Takes entries in one by one and judges none. Names are looked up once an entry; all else goes by numbers. A commit
//! that is not durable counts as the worker's view until a later life opens the store without it: then it is lost, and
//! all that it made with it.

use std::collections::HashMap;

use super::super::history::{Entry, Event, History, Letter};
use super::channels::{Channel, Tag};
use super::commits::{Commit, Record};
use super::messages::{Message, Name};
use super::outbox::Outbox;
use super::rules::Rules;
use super::table::Table;

pub(super) type NameId = usize;
pub(super) type MessageId = usize;
pub(super) type KeyId = usize;
pub(super) type ChannelId = usize;
pub(super) type CommitId = usize;
pub(super) type RecordId = usize;

/// The reason of a letter that stands for an outgoing message that no queue took.
pub(super) const UNROUTABLE: &str = "unroutable";

/// An entry, and what it means.
pub(super) struct Now<'h> {
    /// Number of the entry.
    pub(super) at: usize,
    pub(super) at_ms: u64,
    pub(super) event: &'h Event,
    /// Of `Accepted`, `Delivered`, `Run` and `End`.
    pub(super) message: Option<MessageId>,
    /// Of `Delivered`: the key that the message has in that queue.
    pub(super) key: Option<KeyId>,
    /// Of events of channels, if it is known.
    pub(super) channel: Option<ChannelId>,
    /// What an ack covers, or what a channel that closed gave back.
    pub(super) tags: Vec<Tag>,
    /// Of `Commit`.
    pub(super) commit: Option<CommitId>,
    /// What became durable.
    pub(super) synced: Vec<CommitId>,
    /// What turned out to be gone.
    pub(super) lost: Vec<CommitId>,
}

/// A worker's process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) number: u32,
    pub(super) opened: Option<usize>,
    pub(super) ended: Option<usize>,
    pub(super) failed_ms: Option<u64>,
    /// Since when its store is as large as it may be.
    pub(super) full_ms: Option<u64>,
    /// Entry and time.
    pub(super) drain: Option<(usize, u64)>,
}

pub(super) struct World<'h> {
    pub(super) rules: &'h Rules,
    pub(super) history: &'h History,
    pub(super) name_ids: HashMap<&'h str, NameId>,
    /// By fingerprint.
    pub(super) without_id: HashMap<u64, NameId>,
    pub(super) key_ids: HashMap<&'h str, KeyId>,
    pub(super) keys: Table<&'h str>,
    pub(super) names: Table<Name>,
    pub(super) messages: Table<Message<'h>>,
    channel_ids: HashMap<u64, ChannelId>,
    pub(super) channels: Table<Channel>,
    pub(super) records: Table<Record<'h>>,
    pub(super) commits: Table<Commit<'h>>,
    /// Commits that are neither durable nor lost.
    pub(super) pending: Vec<CommitId>,
    pub(super) lives: Table<Life>,
    pub(super) outbox: Outbox<'h>,
}

impl<'h> World<'h> {
    pub(super) fn new(history: &'h History, rules: &'h Rules) -> Self {
        Self {
            rules,
            history,
            name_ids: HashMap::new(),
            without_id: HashMap::new(),
            key_ids: HashMap::new(),
            keys: Table::default(),
            names: Table::default(),
            messages: Table::default(),
            channel_ids: HashMap::new(),
            channels: Table::default(),
            records: Table::default(),
            commits: Table::default(),
            pending: Vec::new(),
            lives: Table::default(),
            outbox: Outbox::default(),
        }
    }

    /// Takes the next entry in.
    pub(super) fn take_in(&mut self, at: usize, entry: &'h Entry) -> Now<'h> {
        let mut now = Now {
            at,
            at_ms: entry.at_ms,
            event: &entry.event,
            message: None,
            key: None,
            channel: None,
            tags: Vec::new(),
            commit: None,
            synced: Vec::new(),
            lost: Vec::new(),
        };
        match &entry.event {
            Event::Accepted(seen) | Event::End { seen, .. } => now.message = Some(self.seen(seen)),
            Event::Run { seen, .. } => {
                let message = self.seen(seen);
                self.names[self.messages[message].name_id].last_run = Some(at);
                // A message of several queues has key and rules of the one in which it runs.
                self.messages[message].key = self.key(seen);
                self.runs_in(message, &seen.queue);
                now.message = Some(message);
            }
            Event::Consuming { life, queue, channel, prefetch } => {
                let row = Channel {
                    number: *channel,
                    queue: queue.clone(),
                    life: *life,
                    prefetch: *prefetch,
                    unacked: Vec::new(),
                    tag_max: 0,
                    closed: None,
                };
                let id = self.channels.push(row);
                self.channel_ids.insert(*channel, id);
                now.channel = Some(id);
            }
            Event::Delivered { channel, tag, seen, .. } => {
                let message = self.seen(seen);
                self.messages[message].delivered.get_or_insert(at);
                (now.message, now.key) = (Some(message), self.key(seen));
                now.channel = self.channel(*channel);
                if let Some(id) = now.channel {
                    let row = &mut self.channels[id];
                    row.tag_max = row.tag_max.max(*tag);
                    row.unacked.push(Tag { tag: *tag, message, copy: seen.copy, at });
                }
            }
            Event::Acked { channel, tag, multiple } => {
                now.channel = self.channel(*channel);
                if let Some(id) = now.channel {
                    now.tags = self.channels[id].ack(*tag, *multiple);
                }
            }
            Event::AckRefused { channel, .. } => now.channel = self.channel(*channel),
            Event::ChannelClosed { channel, .. } => {
                now.channel = self.channel(*channel);
                if let Some(id) = now.channel {
                    let row = &mut self.channels[id];
                    row.closed.get_or_insert(at);
                    now.tags = std::mem::take(&mut row.unacked);
                }
            }
            Event::Commit { life, number, clock_ms, written } => {
                now.commit = Some(self.commit(at, *life, *number, *clock_ms, written));
            }
            Event::Synced { number } => now.synced = self.synced(at, *number),
            Event::Published { id, body, to, letter, .. } => {
                if let Some(letter) = letter {
                    self.letter(id, letter);
                }
                self.outbox.publish(at, id, *body, !to.is_empty());
            }
            Event::Confirmed { id, .. } => self.outbox.confirm(at, id),
            Event::Opened { life, .. } => {
                self.life(*life).opened.get_or_insert(at);
                now.lost = self.lose_others(*life);
            }
            Event::Exited { life, .. } | Event::Crashed { life } => {
                self.life(*life).ended.get_or_insert(at);
            }
            Event::DiskFailed { life } => {
                self.life(*life).failed_ms.get_or_insert(entry.at_ms);
            }
            Event::Drain { life } => {
                self.life(*life).drain.get_or_insert((at, entry.at_ms));
            }
            Event::Full { life, is_full } => {
                self.life(*life).full_ms = is_full.then_some(entry.at_ms);
            }
            Event::Called { .. } | Event::Returned { .. } | Event::AtRest => {}
        }
        now
    }

    fn channel(&self, number: u64) -> Option<ChannelId> {
        self.channel_ids.get(&number).copied()
    }

    fn letter(&mut self, id: &'h str, letter: &'h Letter) {
        if &*letter.reason == UNROUTABLE {
            return self.outbox.instead(id, &letter.name);
        }
        let of = self.message(&letter.name, letter.fingerprint);
        self.outbox.letter(id, of, letter);
    }

    /// The life of this number.
    pub(super) fn life(&mut self, number: u32) -> &mut Life {
        let at = self.lives.iter().find(|(_, life)| life.number == number).map(|(at, _)| at);
        let at = at.unwrap_or_else(|| {
            self.lives.push(Life {
                number,
                opened: None,
                ended: None,
                failed_ms: None,
                full_ms: None,
                drain: None,
            })
        });
        &mut self.lives[at]
    }
}
