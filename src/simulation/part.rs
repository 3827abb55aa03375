//! What the handlers of a run do: a pure function of the message, the attempt and the seed.
//!
//! So a run that is repeated after a crash does the same again, and what differs is a fault of whoever ran it.

use std::time::Duration;

use super::model;

/// How an attempt goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Error,
    RetryAfter,
    Panic,
    /// It takes longer than it may.
    Hang,
}

/// When what the handlers of a queue call is dead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outages {
    pub(super) windows_ms: Vec<std::ops::Range<u64>>,
    /// From here on nothing is dead, and nothing fails for ever.
    pub(super) over_ms: u64,
}

/// What a step does whose end is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Repeat,
    Ask,
    Undo,
    Park,
}

/// What a handler does with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Attempts that fail before one succeeds, and how.
    pub(super) failures: u32,
    failure: u64,
    pub(super) is_rejected: bool,
    pub(super) takes: Duration,
    /// Outgoing messages: to the next queue or to a sink.
    pub(super) sends: u64,
    pub(super) steps: u64,
    policies: u64,
    /// Attempts in which a call happens and its answer is lost.
    pub(super) call_failures: u32,
    /// How long a call of a step takes.
    pub(super) call_takes: Duration,
    /// Whether the state has so much beside it that it does not fit a row.
    pub(super) is_large: bool,
}

/// How handlers of a run are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Casting {
    pub(super) seed: u64,
    /// Of a hundred messages how many fail first, and how many for ever.
    pub(super) failing_percent: u64,
    pub(super) hopeless_percent: u64,
    pub(super) rejected_percent: u64,
    pub(super) slow_percent: u64,
    pub(super) sending_percent: u64,
    pub(super) stepping_percent: u64,
}

impl Casting {
    /// The part for a message.
    pub(super) fn part(&self, name: &str, fingerprint: u64) -> Part {
        let seed = [&self.seed.to_le_bytes()[..], name.as_bytes(), &fingerprint.to_le_bytes()];
        let mut rng = fastrand::Rng::with_seed(model::hash(&seed));
        let mut chance = |percent: u64| rng.u64(0..100) < percent;
        let is_failing = chance(self.failing_percent);
        let is_hopeless = chance(self.hopeless_percent);
        let is_rejected = chance(self.rejected_percent);
        let is_slow = chance(self.slow_percent);
        let is_sending = chance(self.sending_percent);
        let is_stepping = chance(self.stepping_percent);
        let is_large = chance(5);
        let failures = match (is_failing, is_hopeless) {
            (_, true) => u32::MAX,
            (true, false) => rng.u32(1..3),
            (false, false) => 0,
        };
        let takes_ms = if is_slow { rng.u64(100..1500) } else { rng.u64(0..4) };
        Part {
            failures,
            failure: rng.u64(..),
            is_rejected,
            takes: Duration::from_millis(takes_ms),
            sends: if is_sending { rng.u64(1..4) } else { 0 },
            steps: if is_stepping { rng.u64(1..3) } else { 0 },
            call_takes: Duration::from_millis(rng.u64(0..200)),
            is_large,
            policies: rng.u64(..),
            call_failures: u32::from(rng.u8(0..10) == 0),
        }
    }
}

impl Part {
    /// That of this step.
    pub(super) const fn policy(&self, number: u64) -> Policy {
        match self.policies.rotate_right(3 * number as u32) % 8 {
            0 | 1 => Policy::Ask,
            2 | 3 => Policy::Undo,
            4 => Policy::Park,
            _ => Policy::Repeat,
        }
    }

    /// How this attempt goes wrong, if it does; attempts are counted from 1.
    pub(super) fn failure(&self, attempt: u32) -> Option<Failure> {
        if attempt > self.failures {
            return None;
        }
        Some(match self.failure.wrapping_add(u64::from(attempt)) % 8 {
            0 => Failure::Panic,
            1 => Failure::Hang,
            2 => Failure::RetryAfter,
            _ => Failure::Error,
        })
    }
}
