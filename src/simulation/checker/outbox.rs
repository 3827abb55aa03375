//! What was sent, and what of it has arrived and is confirmed: outgoing messages and dead letters.

use std::collections::HashMap;

use super::super::history::Letter;
use super::table::Table;
use super::world::{CommitId, MessageId, NameId};

pub(super) type OutId = usize;
pub(super) type LetterId = usize;

/// An outgoing message of a commit.
pub(super) struct Out<'h> {
    pub(super) id: &'h str,
    pub(super) sender: NameId,
    pub(super) commit: CommitId,
    pub(super) is_lost: bool,
    /// When a queue first took it, or the dead letter that stands for it.
    pub(super) arrived: Option<usize>,
    pub(super) body: Option<u64>,
    /// When the worker was first told so.
    pub(super) confirmed: Option<usize>,
}

/// A dead letter, by its id.
pub(super) struct DeadLetter<'h> {
    pub(super) id: &'h str,
    pub(super) letter: &'h Letter,
    /// When a queue last took it.
    pub(super) arrived: Option<usize>,
    /// When the worker was last told so.
    pub(super) confirmed: Option<usize>,
}

/// What an id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Out(OutId),
    /// The dead letter of an outgoing message that no queue took.
    Instead(OutId),
    Letter(LetterId),
}

#[derive(Default)]
pub(super) struct Outbox<'h> {
    pub(super) outs: Table<Out<'h>>,
    pub(super) letters: Table<DeadLetter<'h>>,
    by_id: HashMap<&'h str, Sent>,
    by_name: Table<Vec<OutId>>,
    by_message: Table<Vec<LetterId>>,
}

impl<'h> Outbox<'h> {
    pub(super) fn sent(&self, id: &str) -> Option<Sent> {
        self.by_id.get(id).copied()
    }

    /// Outgoing messages of a sender, of all its commits.
    pub(super) fn outs_of(&self, name: NameId) -> impl Iterator<Item = &Out<'h>> {
        let outs = (name < self.by_name.len()).then(|| &self.by_name[name]);
        outs.into_iter().flatten().map(|out| &self.outs[*out])
    }

    /// Dead letters of a message.
    pub(super) fn letters_of(
        &self,
        message: MessageId,
    ) -> impl DoubleEndedIterator<Item = &DeadLetter<'h>> {
        let letters = (message < self.by_message.len()).then(|| &self.by_message[message]);
        letters.into_iter().flatten().map(|letter| &self.letters[*letter])
    }

    pub(super) fn commit(&mut self, commit: CommitId, sender: NameId, id: &'h str) {
        let out =
            Out { id, sender, commit, is_lost: false, arrived: None, body: None, confirmed: None };
        let out = self.outs.push(out);
        // A sender that runs again once its record has expired has the same ids.
        self.by_id.insert(id, Sent::Out(out));
        self.by_name.row_or_default(sender).push(out);
    }

    /// The commit is gone: what it would have sent will come from another one, or from none.
    pub(super) fn lose(&mut self, sender: NameId, commit: CommitId) {
        if sender >= self.by_name.len() {
            return;
        }
        for out in &self.by_name[sender] {
            let row = &mut self.outs[*out];
            if row.commit == commit {
                row.is_lost = true;
            }
        }
    }

    pub(super) fn publish(&mut self, at: usize, id: &'h str, body: u64, is_taken: bool) {
        let arrived = is_taken.then_some(at);
        match self.sent(id) {
            Some(Sent::Out(out)) => {
                let out = &mut self.outs[out];
                out.arrived = out.arrived.or(arrived);
                out.body.get_or_insert(body);
            }
            Some(Sent::Instead(out)) => {
                let out = &mut self.outs[out];
                out.arrived = out.arrived.or(arrived);
            }
            Some(Sent::Letter(letter)) => {
                let letter = &mut self.letters[letter];
                letter.arrived = arrived.or(letter.arrived);
            }
            None => {}
        }
    }

    /// Learns of a dead letter, before it is published.
    pub(super) fn letter(&mut self, id: &'h str, of: MessageId, letter: &'h Letter) {
        if self.by_id.contains_key(id) {
            return;
        }
        let letter = DeadLetter { id, letter, arrived: None, confirmed: None };
        let letter = self.letters.push(letter);
        self.by_id.insert(id, Sent::Letter(letter));
        self.by_message.row_or_default(of).push(letter);
    }

    /// Learns of the dead letter that stands for an outgoing message.
    pub(super) fn instead(&mut self, id: &'h str, of: &str) {
        if let Some(Sent::Out(out)) = self.sent(of) {
            self.by_id.insert(id, Sent::Instead(out));
        }
    }

    pub(super) fn confirm(&mut self, at: usize, id: &str) {
        match self.sent(id) {
            Some(Sent::Out(out) | Sent::Instead(out)) => {
                self.outs[out].confirmed.get_or_insert(at);
            }
            Some(Sent::Letter(letter)) => self.letters[letter].confirmed = Some(at),
            None => {}
        }
    }
}
