//! Questions to the world: what is on record of a message, what has been sent of it, and how it is named to people.

use super::super::history::Ended;
use super::commits::Record;
use super::rules::Rules;
use super::world::{KeyId, Life, MessageId, NameId, RecordId, World};

impl<'h> World<'h> {
    pub(super) fn rules(&self) -> &'h Rules {
        self.rules
    }

    /// The number of a queue that has rules.
    pub(super) fn queue_number(&self, queue: &str) -> Option<usize> {
        self.rules.queues.iter().position(|rules| &*rules.queue == queue)
    }

    /// Whether the record is neither lost nor collected, in the worker's view.
    pub(super) fn is_kept(&self, record: RecordId) -> bool {
        let record = &self.records[record];
        record.collected_by.is_none() && !self.commits[record.commit].is_lost
    }

    /// Whether the record is of this message.
    fn is_of(&self, record: &Record<'h>, message: MessageId) -> bool {
        record.message.is_none_or(|recorded| recorded == message)
    }

    /// Records of a message that counted for a delivery at `since` or became known later; also those that are not
    /// durable yet.
    pub(super) fn records_since(
        &self,
        message: MessageId,
        since: usize,
    ) -> impl Iterator<Item = (RecordId, &Record<'h>)> {
        let name = &self.names[self.messages[message].name_id];
        let records = name.records.iter().map(|id| (*id, &self.records[*id]));
        records.filter(move |(_, record)| {
            self.is_of(record, message)
                && !self.commits[record.commit].is_lost
                && (record.is_numbered
                    || record.collected_by.is_none_or(|commit| self.commits[commit].at > since))
        })
    }

    /// Why the delivery of a message at `since` may not be acked: `None` if it may.
    pub(super) fn unfinished(&self, message: MessageId, since: usize) -> Option<String> {
        let is_durable = |record: &Record<'h>| self.commits[record.commit].synced_at.is_some();
        let mut records = self.records_since(message, since);
        let Some((_, record)) = records.find(|(_, record)| is_durable(record)) else {
            let text = match self.records_since(message, since).next() {
                Some((_, record)) => {
                    let number = self.commits[record.commit].number;
                    format!("its record is in commit {number}, which is not durable")
                }
                None => "nothing is on record of it".to_owned(),
            };
            return Some(text);
        };
        let sees = &self.rules.sees;
        match record.ended {
            // A conflict sends nothing, whatever the message sends whose name it has.
            Ended::Done if record.is_conflict => None,
            Ended::Done => {
                let name = self.messages[message].name_id;
                let mut outs = self.outbox.outs_of(name).filter(|out| !out.is_lost);
                let unsent = outs.find(|out| {
                    (sees.published && out.arrived.is_none())
                        || (sees.confirms && out.confirmed.is_none())
                })?;
                Some(format!("what it sends, {}, is not confirmed", unsent.id))
            }
            Ended::Dead(_) if sees.published => {
                let mut letters = self.outbox.letters_of(message);
                // That of an earlier death, whose record has expired, is none of this one.
                // One that was carried into a later block died before.
                let died = if record.is_carried { 0 } else { self.commits[record.commit].at };
                let has_id = self.messages[message].has_id;
                let is_later = |at: Option<usize>| at.is_some_and(|at| at > died || !has_id);
                let is_there = letters.any(|letter| {
                    is_later(letter.arrived) && (!sees.confirms || is_later(letter.confirmed))
                });
                (!is_there).then(|| "its dead letter is not confirmed".to_owned())
            }
            Ended::Dead(_) => None,
        }
    }

    /// When a message that may be acked became so.
    pub(super) fn finished(&self, message: MessageId, since: usize) -> Option<usize> {
        if self.unfinished(message, since).is_some() {
            return None;
        }
        let records = self.records_since(message, since);
        let synced =
            records.filter_map(|(_, record)| self.commits[record.commit].synced_at).min()?;
        let outs = self.outbox.outs_of(self.messages[message].name_id);
        let outs = outs.filter(|out| !out.is_lost).filter_map(|out| out.confirmed);
        let mut letters = self.outbox.letters_of(message).filter_map(|letter| letter.confirmed);
        let last = outs.fold(synced, usize::max);
        letters.try_fold(last, |last, confirmed| Some(last.max(self.settled_after(confirmed)?)))
    }

    /// A death is settled by a commit that follows the confirm of its letter: when one that did was durable.
    fn settled_after(&self, confirmed: usize) -> Option<usize> {
        let later = self.commits.iter().map(|(_, commit)| commit);
        later.filter(|commit| commit.at > confirmed).find_map(|commit| commit.synced_at)
    }

    /// The time of an entry.
    pub(super) fn at_ms(&self, entry: usize) -> u64 {
        self.history.entries.get(entry).map_or(0, |entry| entry.at_ms)
    }

    pub(super) fn name_id(&self, name: &str) -> Option<NameId> {
        self.name_ids.get(name).copied()
    }

    pub(super) fn message_id(&self, name: &str, fingerprint: u64) -> Option<MessageId> {
        let mut messages = self.names[self.name_id(name)?].messages.iter().copied();
        messages.find(|message| self.messages[*message].fingerprint == fingerprint)
    }

    pub(super) fn has_durable_epoch(&self, epoch: u64) -> bool {
        let mut commits = self.commits.iter().rev().map(|(_, commit)| commit);
        commits.any(|commit| commit.written.epoch == Some(epoch) && commit.synced_at.is_some())
    }

    /// Whether several bodies were seen under its name: they are judged when the name is free.
    pub(super) fn is_contested(&self, message: MessageId) -> bool {
        self.names[self.messages[message].name_id].messages.len() > 1
    }

    /// Whether the state of a key is one of the model's.
    pub(super) fn has_state(&self, key: KeyId) -> bool {
        let mut messages = self.messages.iter().map(|(_, message)| message);
        let of_key = messages.find(|message| message.key == Some(key));
        of_key.and_then(|message| message.rules).is_some_and(|rules| rules.has_model_state)
    }

    pub(super) fn known_life(&self, number: u32) -> Option<Life> {
        self.lives.iter().map(|(_, life)| *life).find(|life| life.number == number)
    }

    /// The message, for people.
    pub(super) fn text(&self, message: MessageId) -> String {
        let row = &self.messages[message];
        if self.is_contested(message) {
            format!("{} with body {:x}", row.name, row.fingerprint)
        } else {
            row.name.to_owned()
        }
    }

    pub(super) fn name_text(&self, name: NameId) -> &'h str {
        let first = self.names[name].messages.first();
        first.map_or("a message that is not known", |message| self.messages[*message].name)
    }

    pub(super) fn key_text(&self, key: KeyId) -> &'h str {
        self.keys[key]
    }
}
