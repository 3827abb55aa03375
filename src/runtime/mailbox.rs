//! What waits for each key, in delivery order.
//!
//! Pure. A key has an entry exactly as long as an actor works on it: the actor that finds its mailbox empty takes the
//! entry away in the same step and ends, so none idles and none is missed.

use std::collections::{HashMap, VecDeque};

use super::admission::{ActorKey, Admitted};
use crate::planted::{self, Bug};

#[derive(Debug, Default)]
pub(crate) struct Mailboxes {
    mailboxes: HashMap<ActorKey, VecDeque<Admitted>>,
}

impl Mailboxes {
    /// Gives the message back if its key is free: the caller starts an actor with it.
    pub(crate) fn put(&mut self, message: Admitted) -> Option<Admitted> {
        if let Some(mailbox) = self.mailboxes.get_mut(&message.key)
            && !planted::is(Bug::KeyNotSerialized)
        {
            mailbox.push_back(message);
            return None;
        }
        // The first message never waits, so the entry of a key that comes once costs no allocation.
        self.mailboxes.insert(message.key.clone(), VecDeque::new());
        Some(message)
    }

    /// The next message of the key; `None` ends its actor.
    pub(crate) fn next(&mut self, key: &ActorKey) -> Option<Admitted> {
        let next = self.mailboxes.get_mut(key).and_then(VecDeque::pop_front);
        if next.is_none() {
            self.mailboxes.remove(key);
        }
        next
    }

    /// The next message of the key, which stays its actor's though none be left.
    pub(crate) fn next_waiting(&mut self, key: &ActorKey) -> Option<Admitted> {
        self.mailboxes.get_mut(key).and_then(VecDeque::pop_front)
    }

    /// Takes out all that waits and came with this generation; actors and their entries stay.
    pub(crate) fn drop_generation(&mut self, generation: u32) -> Vec<Admitted> {
        let mut dropped = Vec::new();
        for mailbox in self.mailboxes.values_mut() {
            for message in std::mem::take(mailbox) {
                if message.tag.generation == generation {
                    dropped.push(message);
                } else {
                    mailbox.push_back(message);
                }
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::admission::tests::admitted_with_key;

    #[test]
    fn a_key_has_one_actor_until_its_mailbox_is_empty() {
        let mut mailboxes = Mailboxes::default();
        let first = mailboxes.put(admitted_with_key(1, "k", 1)).expect("the key is free");
        assert!(mailboxes.put(admitted_with_key(2, "k", 2)).is_none());
        assert!(mailboxes.put(admitted_with_key(3, "other", 3)).is_some());
        assert_eq!(mailboxes.next(&first.key).map(|message| message.tag.tag), Some(2));
        assert!(mailboxes.next(&first.key).is_none());
        assert!(mailboxes.put(admitted_with_key(4, "k", 4)).is_some());
    }

    #[test]
    fn only_what_waits_leaves_with_its_generation() {
        let mut mailboxes = Mailboxes::default();
        let running = mailboxes.put(admitted_with_key(1, "k", 1)).expect("the key is free");
        mailboxes.put(admitted_with_key(2, "k", 2));
        let mut newer = admitted_with_key(3, "k", 1);
        newer.tag.generation += 1;
        mailboxes.put(newer);
        assert_eq!(mailboxes.drop_generation(running.tag.generation).len(), 1);
        assert_eq!(mailboxes.next(&running.key).map(|message| message.tag.tag), Some(1));
    }
}
