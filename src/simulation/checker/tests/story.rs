//! Histories in few words.

use std::sync::Arc;

use super::super::super::history::{
    Ended, Entry, Event, History, Letter, Recorded, RunEnd, Seen, Written,
};
use super::super::super::model;
use super::super::{Predicate, QueueRules, Rules, check};

/// A history of a worker that has opened its store and consumes `orders` on channel 1 with prefetch 3; each event a
/// millisecond after the one before.
pub(super) struct Story {
    pub(super) history: History,
    pub(super) rules: Rules,
    pub(super) life: u32,
    pub(super) channel: u64,
    at_ms: u64,
    commits: u64,
}

/// A message of queue `orders` whose body goes by its id.
pub(super) fn message(id: &str, key: Option<&str>) -> Seen {
    // One that sets the state.
    let fingerprint = (model::hash(&[id.as_bytes()]) & !15) | 7;
    Seen {
        queue: "orders".into(),
        name: format!("orders/{id}").into(),
        key: key.map(|key| format!("orders/{key}").into()),
        class: None,
        fingerprint,
        has_id: true,
        copy: model::hash(&[b"copy", id.as_bytes()]),
    }
}

/// The same id with another body.
pub(super) fn other_body(seen: &Seen) -> Seen {
    Seen { fingerprint: seen.fingerprint ^ 16, copy: seen.copy ^ 1, ..seen.clone() }
}

/// The same message, published again.
pub(super) fn twin(seen: &Seen) -> Seen {
    Seen { copy: seen.copy ^ 2, ..seen.clone() }
}

pub(super) fn recorded(seen: &Seen, ended: Ended, attempts: u32) -> Recorded {
    let (name, fingerprint) = (Arc::clone(&seen.name), seen.fingerprint);
    Recorded { name, fingerprint, ended, attempts, is_conflict: false }
}

pub(super) fn done(seen: &Seen) -> Written {
    Written { records: vec![recorded(seen, Ended::Done, 1)], ..Written::default() }
}

pub(super) fn dead(seen: &Seen, reason: &str, attempts: u32) -> Written {
    let records = vec![recorded(seen, Ended::Dead(reason.into()), attempts)];
    Written { records, ..Written::default() }
}

/// Done, and sends these.
pub(super) fn sending(seen: &Seen, ids: &[&str]) -> Written {
    let ids = ids.iter().map(|id| Arc::from(*id)).collect();
    Written { outgoing: vec![(Arc::clone(&seen.name), ids)], ..done(seen) }
}

impl Story {
    pub(super) fn new() -> Self {
        let rules = Rules { queues: vec![QueueRules::new("orders")], ..Rules::default() };
        let mut story =
            Self { history: History::default(), rules, life: 0, channel: 0, at_ms: 0, commits: 0 };
        story.opens();
        story.consumes(3);
        story
    }

    pub(super) fn put(&mut self, event: Event) {
        self.at_ms += 1;
        self.history.entries.push(Entry { at_ms: self.at_ms, event });
    }

    pub(super) fn waits(&mut self, ms: u64) {
        self.at_ms += ms;
    }

    /// A new life opens the store.
    pub(super) fn opens(&mut self) {
        self.life += 1;
        let (life, epoch) = (self.life, u64::from(self.life));
        let number = self.commits(Written { epoch: Some(epoch), ..Written::default() });
        self.put(Event::Synced { number });
        self.put(Event::Opened { life, epoch });
    }

    pub(super) fn consumes(&mut self, prefetch: u16) {
        self.channel += 1;
        let (life, channel) = (self.life, self.channel);
        self.put(Event::Consuming { life, queue: "orders".into(), channel, prefetch });
    }

    pub(super) fn accepts(&mut self, seen: &Seen) {
        self.put(Event::Accepted(seen.clone()));
    }

    pub(super) fn delivers(&mut self, tag: u64, seen: &Seen) {
        let (channel, seen) = (self.channel, seen.clone());
        self.put(Event::Delivered { channel, tag, redelivered: false, seen });
    }

    pub(super) fn redelivers(&mut self, tag: u64, seen: &Seen) {
        let (channel, seen) = (self.channel, seen.clone());
        self.put(Event::Delivered { channel, tag, redelivered: true, seen });
    }

    pub(super) fn runs(&mut self, seen: &Seen, attempt: u32) {
        self.runs_in(seen, attempt, None);
    }

    pub(super) fn runs_in(&mut self, seen: &Seen, attempt: u32, batch: Option<u64>) {
        let (life, seen) = (self.life, seen.clone());
        self.put(Event::Run { life, seen, attempt, batch });
    }

    pub(super) fn ends(&mut self, seen: &Seen, attempt: u32, ended: RunEnd) {
        let (life, seen) = (self.life, seen.clone());
        self.put(Event::End { life, seen, attempt, batch: None, ended });
    }

    /// Gives the number of the commit.
    pub(super) fn commits(&mut self, written: Written) -> u64 {
        let clock_ms = self.at_ms;
        self.commits_at(clock_ms, written)
    }

    pub(super) fn commits_at(&mut self, clock_ms: u64, written: Written) -> u64 {
        self.commits += 1;
        let (life, number, written) = (self.life, self.commits, Arc::new(written));
        self.put(Event::Commit { life, number, clock_ms, written });
        number
    }

    pub(super) fn syncs(&mut self, number: u64) {
        self.put(Event::Synced { number });
    }

    pub(super) fn makes_durable(&mut self, written: Written) {
        let number = self.commits(written);
        self.syncs(number);
    }

    pub(super) fn acks(&mut self, tag: u64) {
        let channel = self.channel;
        self.put(Event::Acked { channel, tag, multiple: false });
    }

    pub(super) fn acks_to(&mut self, tag: u64) {
        let channel = self.channel;
        self.put(Event::Acked { channel, tag, multiple: true });
    }

    pub(super) fn publishes(&mut self, id: &str) {
        self.publishes_as(id, 7, "sink");
    }

    pub(super) fn publishes_as(&mut self, id: &str, body: u64, to: &str) {
        let (life, id) = (self.life, id.into());
        let to = if to.is_empty() { Vec::new() } else { vec![to.into()] };
        self.put(Event::Published { life, id, body, to, letter: None, answers: None });
    }

    pub(super) fn confirms(&mut self, id: &str) {
        let (life, id) = (self.life, id.into());
        self.put(Event::Confirmed { life, id });
    }

    /// Publishes a dead letter, under the id `dead-NAME`, to `orders.dead`.
    pub(super) fn buries(&mut self, letter: Letter) {
        let id = format!("dead-{}", letter.name).into();
        self.buries_in("orders.dead", id, letter);
    }

    pub(super) fn buries_in(&mut self, to: &str, id: Arc<str>, letter: Letter) {
        let (life, to, letter) = (self.life, vec![to.into()], Some(letter));
        self.put(Event::Published { life, id, body: 9, to, letter, answers: None });
    }

    pub(super) fn confirms_letter(&mut self, seen: &Seen) {
        self.confirms(&format!("dead-{}", seen.name));
    }

    pub(super) fn closes(&mut self, asked: bool) {
        let channel = self.channel;
        self.put(Event::ChannelClosed { channel, asked });
    }

    pub(super) fn crashes(&mut self) {
        self.put(Event::Crashed { life: self.life });
        self.closes(false);
    }

    pub(super) fn exits(&mut self, error: Option<&str>) {
        let (life, error) = (self.life, error.map(Arc::from));
        self.put(Event::Exited { life, error });
    }

    /// Accepted, delivered and run, and its handler has ended well.
    pub(super) fn handles(&mut self, tag: u64, seen: &Seen) {
        self.accepts(seen);
        self.delivers(tag, seen);
        self.runs(seen, 1);
        self.ends(seen, 1, RunEnd::Ok);
    }

    /// All that happens to a message without effects.
    pub(super) fn works_off(&mut self, tag: u64, seen: &Seen) {
        self.handles(tag, seen);
        self.makes_durable(done(seen));
        self.acks(tag);
    }

    pub(super) fn rest(&mut self) {
        self.put(Event::AtRest);
    }

    #[track_caller]
    pub(super) fn holds(&self) {
        let violations = check(&self.history, &self.rules);
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{}\n{}", text.join("\n"), self.history);
    }

    /// This is broken, and nothing else; says so in these words.
    #[track_caller]
    pub(super) fn breaks(&self, predicate: Predicate, words: &str) {
        let violations = check(&self.history, &self.rules);
        let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
        let text = text.join("\n");
        assert!(
            violations.iter().all(|violation| violation.predicate == predicate),
            "{predicate:?} should be broken, and is:\n{text}\n{}",
            self.history
        );
        assert!(text.contains(words), "{words:?} is not in:\n{text}\n{}", self.history);
    }
}

/// What the dead letter of a message says.
pub(super) fn letter(seen: &Seen, reason: &str, attempts: u32) -> Letter {
    let (name, fingerprint) = (Arc::clone(&seen.name), seen.fingerprint);
    Letter { name, fingerprint, reason: reason.into(), attempts, is_whole: true }
}
