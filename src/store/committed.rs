//! Which of two records of one identity counts: the one that was committed later.
//!
//! Within a queue blocks are numbered as they are committed, and the clock has no say. Between queues there is only the
//! clock, so a record that was made after the clock went back can lose against one of another queue.

use super::outcome::Outcome;
use super::record::{Location, Record};

/// When and where a record was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) at: Location,
    pub(super) at_ms: u64,
    is_forgotten: bool,
}

impl Committed {
    pub(super) const fn new(at: Location, at_ms: u64, record: &Record) -> Self {
        Self { at, at_ms, is_forgotten: matches!(record.outcome, Outcome::Forgotten(_)) }
    }

    /// Whether this one counts; of two in one block it does, as they are read in order.
    pub(super) const fn is_after(&self, other: &Self) -> bool {
        if self.at.queue().0 == other.at.queue().0 {
            self.at.sequence() >= other.at.sequence()
        } else if self.at_ms == other.at_ms {
            // What is forgotten is forgotten in its own queue, so of another one comes what was done after that.
            other.is_forgotten || !self.is_forgotten
        } else {
            self.at_ms > other.at_ms
        }
    }
}
