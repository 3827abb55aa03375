//! What waits for each key, in delivery order, and which keys wait for an actor.
//!
//! Pure. A key has an entry exactly as long as it is ready or an actor works on it: the actor that finds its mailbox
//! empty takes the entry away in the same step, so none is missed. The first message of a ready key lies in the line of
//! those keys, the others in its mailbox.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::admission::{ActorKey, Admitted};
use super::spare;
use crate::identity::Identity;
use crate::planted::{self, Bug};

#[derive(Debug, Default)]
pub(crate) struct Mailboxes {
    mailboxes: HashMap<ActorKey, VecDeque<Box<Admitted>>>,
    /// The first message of each key that no actor works on, and since when.
    ready: VecDeque<(Instant, Box<Admitted>)>,
}

impl Mailboxes {
    /// Whether it makes its key ready: then an actor has to come.
    pub(crate) fn put(&mut self, message: Box<Admitted>) -> bool {
        match self.mailboxes.entry(message.key.clone()) {
            Entry::Occupied(mut mailbox) if !planted::is(Bug::KeyNotSerialized) => {
                mailbox.get_mut().push_back(message);
                return false;
            }
            // The first message is not in the mailbox, so the entry of a key that comes once costs no allocation.
            entry => {
                entry.or_default();
            }
        }
        self.ready.push_back((message.tag.received, message));
        true
    }

    /// Takes the key that has been ready for longest, by its first message: it is the caller's now.
    pub(crate) fn take_ready(&mut self) -> Option<Box<Admitted>> {
        self.ready.pop_front().map(|(_, first)| first)
    }

    /// Gives a key back, by its next message, to the end of the line of those that are ready.
    pub(crate) fn put_back(&mut self, next: Box<Admitted>, now: Instant) {
        self.ready.push_back((now, next));
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the first of the ready keys was so then already.
    pub(crate) fn is_ready_since(&self, then: Instant) -> bool {
        self.ready.front().is_some_and(|(since, _)| *since <= then)
    }

    /// The next message of the key; `None` lets go of it.
    pub(crate) fn next(&mut self, key: &ActorKey) -> Option<Box<Admitted>> {
        match self.mailboxes.entry(key.clone()) {
            Entry::Occupied(mut mailbox) => {
                let next = mailbox.get_mut().pop_front();
                if next.is_none() {
                    mailbox.remove();
                }
                next
            }
            Entry::Vacant(_) => None,
        }
    }

    /// The next message of the key, which stays its actor's though none be left.
    pub(crate) fn next_waiting(&mut self, key: &ActorKey) -> Option<Box<Admitted>> {
        self.mailboxes.get_mut(key).and_then(VecDeque::pop_front)
    }

    /// Gives back what many keys at once took.
    pub(crate) fn give_back(&mut self) {
        spare::give_back(&mut self.mailboxes);
        spare::give_back_line(&mut self.ready);
    }

    /// Takes out all that waits and came with this generation, and says what it was.
    ///
    /// Keys that actors work on stay theirs.
    pub(crate) fn drop_generation(&mut self, generation: u32) -> Vec<Identity> {
        let mut dropped = Vec::new();
        for mailbox in self.mailboxes.values_mut() {
            for message in std::mem::take(mailbox) {
                if message.tag.generation == generation {
                    dropped.push(message.identity);
                } else {
                    mailbox.push_back(message);
                }
            }
        }
        for (since, first) in std::mem::take(&mut self.ready) {
            if first.tag.generation != generation {
                self.ready.push_back((since, first));
                continue;
            }
            let behind_it = self.next(&first.key);
            self.ready.extend(behind_it.map(|next| (since, next)));
            dropped.push(first.identity);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::admission::tests::admitted_with_key;

    fn message(number: u32, key: &str) -> Box<Admitted> {
        Box::new(admitted_with_key(number, key, u64::from(number)))
    }

    fn tag(message: Option<Box<Admitted>>) -> Option<u64> {
        message.map(|message| message.tag.tag)
    }

    #[test]
    fn a_key_is_ready_once_until_its_mailbox_is_empty() {
        let mut mailboxes = Mailboxes::default();
        assert!(mailboxes.put(message(1, "k")));
        assert!(!mailboxes.put(message(2, "k")));
        assert!(mailboxes.put(message(3, "other")));
        let first = mailboxes.take_ready().expect("the key is ready");
        assert_eq!(first.tag.tag, 1);
        assert!(!mailboxes.put(message(4, "k")), "an actor works on it");
        assert_eq!(tag(mailboxes.next(&first.key)), Some(2));
        assert_eq!(tag(mailboxes.next(&first.key)), Some(4));
        assert!(mailboxes.next(&first.key).is_none());
        assert!(mailboxes.put(message(5, "k")));
        assert_eq!(tag(mailboxes.take_ready()), Some(3));
        assert_eq!(tag(mailboxes.take_ready()), Some(5));
        assert!(!mailboxes.has_ready());
    }

    #[test]
    fn a_key_that_is_given_back_goes_behind_those_that_wait_and_keeps_its_order() {
        let mut mailboxes = Mailboxes::default();
        for (number, key) in [(1, "k"), (2, "k"), (3, "other")] {
            mailboxes.put(message(number, key));
        }
        let first = mailboxes.take_ready().expect("the key is ready");
        let next = mailboxes.next(&first.key).expect("another one waits");
        let received = next.tag.received;
        mailboxes.put_back(next, received + Duration::from_secs(1));
        assert!(!mailboxes.put(message(4, "k")), "it is ready already");
        assert_eq!(tag(mailboxes.take_ready()), Some(3));
        assert!(!mailboxes.is_ready_since(received), "it has just been worked on");
        assert_eq!(tag(mailboxes.take_ready()), Some(2));
        assert_eq!(tag(mailboxes.next(&first.key)), Some(4));
    }

    #[test]
    fn only_what_waits_leaves_with_its_generation() {
        let mut mailboxes = Mailboxes::default();
        assert!(mailboxes.put(message(1, "k")));
        let running = mailboxes.take_ready().expect("the key is ready");
        mailboxes.put(message(2, "k"));
        // Ready: one whose successor is newer, and one without.
        mailboxes.put(message(3, "l"));
        mailboxes.put(message(4, "m"));
        for (number, key) in [(5, "k"), (6, "l")] {
            let mut newer = message(number, key);
            newer.tag.generation += 1;
            mailboxes.put(newer);
        }
        let dropped = mailboxes.drop_generation(running.tag.generation);
        let expected = [(2, "k"), (3, "l"), (4, "m")].map(|(of, key)| message(of, key).identity);
        assert_eq!(dropped, expected);
        assert_eq!(tag(mailboxes.next(&running.key)), Some(5));
        assert_eq!(tag(mailboxes.take_ready()), Some(6));
        assert!(!mailboxes.has_ready());
        assert!(mailboxes.put(message(7, "m")), "its key is free");
    }
}
