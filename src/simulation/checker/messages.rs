//! Messages as they were seen: bodies under names, by the rules of every queue that they have come by.
//!
//! Part of the world, and judges nothing.

use super::super::history::Seen;
use super::rules::QueueRules;
use super::world::{KeyId, MessageId, NameId, RecordId, World};

/// All bodies that were seen under one name.
#[derive(Default)]
pub(super) struct Name {
    pub(super) messages: Vec<MessageId>,
    pub(super) records: Vec<RecordId>,
    /// When a handler last began for it.
    pub(super) last_run: Option<usize>,
}

/// One body under one name.
pub(super) struct Message<'h> {
    pub(super) name: &'h str,
    pub(super) name_id: NameId,
    pub(super) fingerprint: u64,
    pub(super) key: Option<KeyId>,
    /// Of the queue in which it was seen first, or last ran.
    pub(super) rules: Option<&'h QueueRules>,
    /// Of the other queues in which it was seen: those that share its ids.
    pub(super) others: Vec<&'h QueueRules>,
    /// The class of retention that it names.
    pub(super) class: Option<&'h str>,
    pub(super) has_id: bool,
    pub(super) delivered: Option<usize>,
}

impl<'h> Message<'h> {
    /// Of all queues in which it was seen.
    pub(super) fn all_rules(&self) -> impl Iterator<Item = &'h QueueRules> {
        self.rules.into_iter().chain(self.others.iter().copied())
    }

    /// How long a record of it is kept; `None` if nobody knows.
    pub(super) fn retention_ms(&self) -> Option<u64> {
        let rules = self.rules?;
        // One without an id is on record for people only.
        let class = self.class.filter(|_| self.has_id);
        let of_class = rules.retention_ms_by.iter().find(|(name, _)| Some(&**name) == class);
        Some(of_class.map_or(rules.retention_ms, |(_, retention_ms)| *retention_ms))
    }
}

impl<'h> World<'h> {
    pub(super) fn name(&mut self, name: &'h str) -> NameId {
        let names = &mut self.names;
        *self.name_ids.entry(name).or_insert_with(|| names.push(Name::default()))
    }

    pub(super) fn seen(&mut self, seen: &'h Seen) -> MessageId {
        if !seen.has_id {
            self.alias(seen);
        }
        let id = self.message(&seen.name, seen.fingerprint);
        let rules = self.rules.queues.iter().find(|rules| rules.queue == seen.queue);
        if self.messages[id].rules.is_none() {
            let key = self.key(seen);
            let row = &mut self.messages[id];
            (row.rules, row.key, row.has_id) = (rules, key, seen.has_id);
            row.class = seen.class.as_deref();
        } else if let Some(rules) = rules
            && self.messages[id].all_rules().all(|known| known.queue != rules.queue)
        {
            self.messages[id].others.push(rules);
        }
        id
    }

    /// Puts the rules of this queue ahead of those of the others in which the message was seen.
    pub(super) fn runs_in(&mut self, message: MessageId, queue: &str) {
        let row = &mut self.messages[message];
        if let Some(other) = row.others.iter_mut().find(|rules| &*rules.queue == queue)
            && let Some(rules) = &mut row.rules
        {
            std::mem::swap(rules, other);
        }
    }

    /// Nobody can tell messages without an id apart that have one body: they count as one.
    fn alias(&mut self, seen: &'h Seen) {
        let name = self.without_id.get(&seen.fingerprint).copied();
        let name = name.unwrap_or_else(|| self.name(&seen.name));
        self.without_id.insert(seen.fingerprint, name);
        self.name_ids.insert(&seen.name, name);
    }

    pub(super) fn key(&mut self, seen: &'h Seen) -> Option<KeyId> {
        let (key, keys) = (seen.key.as_deref()?, &mut self.keys);
        Some(*self.key_ids.entry(key).or_insert_with(|| keys.push(key)))
    }

    pub(super) fn message(&mut self, name: &'h str, fingerprint: u64) -> MessageId {
        let name_id = self.name(name);
        let mut known = self.names[name_id].messages.iter();
        if let Some(id) = known.find(|id| self.messages[**id].fingerprint == fingerprint) {
            return *id;
        }
        let row = Message {
            name,
            name_id,
            fingerprint,
            key: None,
            rules: None,
            others: Vec::new(),
            class: None,
            has_id: true,
            delivered: None,
        };
        let id = self.messages.push(row);
        self.names[name_id].messages.push(id);
        id
    }
}
