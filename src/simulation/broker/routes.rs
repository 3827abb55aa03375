//! Where messages go, what the broker refuses for a while, and what of all that was seen: counted.
//!
//! Pure: `now` is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::message::Message;

/// What becomes of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Into this queue.
    Queue,
    Unroutable,
    Refused,
}

/// How often what happened; to see that the faults are really met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Counts {
    pub(in super::super) losses: u64,
    pub(in super::super) publish_losses: u64,
    pub(in super::super) redeliveries: u64,
    pub(in super::super) lost_acks: u64,
    pub(in super::super) consumer_timeouts: u64,
    pub(in super::super) unroutable: u64,
    pub(in super::super) refused: u64,
    pub(in super::super) alarms: u64,
    pub(in super::super) lost_publishes: u64,
    pub(in super::super) lost_confirms: u64,
    pub(in super::super) consumers_waiting: u64,
}

/// Faults of routing, each until its time.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) counts: Counts,
    unroutable: BTreeMap<Arc<str>, Instant>,
    /// How many of the next messages are refused.
    refuse: u32,
    alarm_until: Option<Instant>,
}

impl Routes {
    pub(super) fn way(&mut self, message: &Message, exists: bool, now: Instant) -> Way {
        let until = self.unroutable.get(message.routing_key.as_str());
        let is_gone = until.is_some_and(|until| now < *until);
        if !exists || is_gone || !message.exchange.is_empty() {
            self.counts.unroutable += 1;
            return Way::Unroutable;
        }
        if self.refuse > 0 {
            self.refuse -= 1;
            self.counts.refused += 1;
            return Way::Refused;
        }
        Way::Queue
    }

    /// No message gets into the queue until then.
    pub(super) fn block(&mut self, queue: Arc<str>, until: Instant) {
        self.unroutable.insert(queue, until);
    }

    pub(super) fn refuse(&mut self, messages: u32) {
        self.refuse += messages;
    }

    pub(super) fn alarm(&mut self, until: Instant) {
        self.counts.alarms += 1;
        self.alarm_until = Some(until);
    }

    /// When the broker reads from publishers again, if it does not.
    pub(super) fn alarm_until(&self, now: Instant) -> Option<Instant> {
        self.alarm_until.filter(|until| now < *until)
    }

    pub(super) fn heal(&mut self) {
        self.unroutable.clear();
        self.refuse = 0;
        self.alarm_until = None;
    }
}
