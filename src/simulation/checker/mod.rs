//! The one checker: judges a history by the predicates P1 to P20, whatever wrote it.
//!
//! Pure: the same history and rules give the same violations. One pass: `world.rs` keeps what is known at each entry,
//! and each file beside it judges a group of predicates by that. It believes what broker and disk did, and nothing
//! that the worker says of itself. It does not know how the worker works: only what must not be seen of it.

use std::fmt;

mod attempts;
mod breaker;
mod channels;
mod collect;
mod commits;
mod intake;
mod known;
mod letters;
mod lives;
mod messages;
mod once;
mod order;
mod outbox;
mod outgoing;
mod rules;
mod runs;
mod settle;
mod state;
mod steps;
mod table;
#[cfg(test)]
mod tests;
mod world;

pub use self::rules::{Commits, QueueRules, Rules, Sees};
use self::world::{Now, World};
use super::history::History;

/// What must hold, as the design numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Predicate {
    /// An ack covers only what is durable and confirmed.
    P1,
    /// A message ends once within the retention, with all its effects.
    P2,
    /// At rest every accepted message has ended.
    P3,
    /// Nothing is committed or published that nobody asked for.
    P4,
    /// No two runs of one message overlap.
    P5,
    /// No two runs of one key overlap.
    P6,
    /// Commits of a key are in delivery order.
    P7,
    /// A key's state is that of a sequential model.
    P8,
    /// A tag is settled once, on its own channel.
    P9,
    /// What is downstream is what was committed.
    P10,
    /// First arrivals of a key are in commit order.
    P11,
    /// Dead means: in the dead-letter queue, whole and with the reason.
    P12,
    /// Attempts never fall and never exceed the limit by more than one.
    P13,
    /// A step has one effect key, and is not called again once its result is on record.
    P14,
    /// Only what is past its retention is collected.
    P15,
    /// After a failure of the store nothing is acked or published.
    P16,
    /// Deliveries under way stay within the prefetch, and a full store takes none in.
    P17,
    /// When faults have stopped everything ends.
    P18,
    /// One process at a time has the store.
    P19,
    /// A drain begins nothing, acks what is finished and returns the rest.
    P20,
}

impl Predicate {
    /// What must hold.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::P1 => "an ack covers only what is durable and confirmed",
            Self::P2 => "a message ends once within the retention, with all its effects",
            Self::P3 => "at rest every accepted message has ended",
            Self::P4 => "nothing is committed or published that nobody asked for",
            Self::P5 => "no two runs of one message overlap",
            Self::P6 => "no two runs of one key overlap",
            Self::P7 => "commits of a key are in delivery order",
            Self::P8 => "a key's state is that of a sequential model",
            Self::P9 => "a tag is settled once, on its own channel",
            Self::P10 => "what is downstream is what was committed",
            Self::P11 => "first arrivals of a key are in commit order",
            Self::P12 => "a dead message is in the dead-letter queue, whole and with the reason",
            Self::P13 => "attempts never fall and stay within the limit and one",
            Self::P14 => "a step has one effect key and is over once its result is on record",
            Self::P15 => "only what is past its retention is collected",
            Self::P16 => "after a failure of the store nothing is acked or published",
            Self::P17 => {
                "deliveries under way stay within the prefetch, and a full store takes none in"
            }
            Self::P18 => "when faults have stopped everything ends",
            Self::P19 => "one process at a time has the store",
            Self::P20 => "a drain begins nothing, acks what is finished and returns the rest",
        }
    }
}

/// Something in a history that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What does not hold.
    pub predicate: Predicate,
    /// Number of the entry at which it shows.
    pub entry: usize,
    /// The time of that entry.
    pub at_ms: u64,
    /// What is there, of which message, and what was expected.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { predicate, entry, at_ms, what } = self;
        write!(
            f,
            "{predicate:?} is broken at entry {entry}, {at_ms} ms: {what} ({})",
            predicate.text()
        )
    }
}

/// Judges a history; empty if all holds that these rules let it see.
#[must_use]
pub fn check(history: &History, rules: &Rules) -> Vec<Violation> {
    let mut world = World::new(history, rules);
    let mut judges: [&mut dyn Judge; 13] = [
        &mut settle::Settle,
        &mut intake::Intake::default(),
        &mut once::Once,
        &mut runs::Runs::default(),
        &mut order::Order::default(),
        &mut state::States::default(),
        &mut outgoing::Outgoing::default(),
        &mut letters::Letters,
        &mut attempts::Attempts::default(),
        &mut steps::Steps::default(),
        &mut collect::Collect,
        &mut lives::Lives::default(),
        &mut once::AtRest::default(),
    ];
    let mut violations = Vec::new();
    for (at, entry) in history.entries.iter().enumerate() {
        let now = world.take_in(at, entry);
        let mut report = Report { at, at_ms: entry.at_ms, violations: &mut violations };
        for judge in &mut judges {
            judge.see(&world, &now, &mut report);
        }
    }
    violations
}

/// Judges some predicates; shown every entry once the world has taken it in.
trait Judge {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>);
}

/// Where violations at one entry go.
struct Report<'a> {
    at: usize,
    at_ms: u64,
    violations: &'a mut Vec<Violation>,
}

impl Report<'_> {
    fn broken(&mut self, predicate: Predicate, what: String) {
        self.violations.push(Violation { predicate, entry: self.at, at_ms: self.at_ms, what });
    }
}
