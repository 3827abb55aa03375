//! Which senders have lanes that cannot go on: a fault for all to see while there is one.
//!
//! Owns the faults of the senders' parts in [`Health`], the gauge of held lanes, and what the log says of them. A part
//! may have several senders; its fault is cleared with the last lane of them all.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

use super::Sender;
use crate::broker::PublishError;
use crate::clock::duration_ms;
use crate::telemetry::Health;

/// How often the log repeats that a part is held: there may be thousands of lanes, each tried again and again.
const SAY_INTERVAL: Duration = Duration::from_secs(5);

/// The parts that are held.
pub(super) struct Holds {
    health: Health,
    parts: HashMap<String, Held>,
}

#[derive(Default)]
struct Held {
    lanes: usize,
    said: Option<Instant>,
}

impl Holds {
    pub(super) fn new(health: Health) -> Self {
        Self { health, parts: HashMap::new() }
    }

    /// A lane that went on until now is held.
    pub(super) fn begin(&mut self, sender: &Sender) {
        sender.metrics.held.increment(1.0);
        self.parts.entry(sender.part.clone()).or_default().lanes += 1;
    }

    /// A held lane failed, for the first time or again.
    pub(super) fn failed(
        &mut self,
        sender: &Sender,
        refused: &PublishError,
        delay: Duration,
        now: Instant,
    ) {
        self.health.fault(&sender.part, refused.to_string());
        let Some(held) = self.parts.get_mut(&sender.part) else {
            return;
        };
        if held.said.is_none_or(|said| now.duration_since(said) >= SAY_INTERVAL) {
            held.said = Some(now);
            error!(
                queue = &*sender.queue, part = sender.part, held = held.lanes, error = %refused,
                delay_ms = duration_ms(delay),
                "a message cannot be published, what its key sends later waits, will try again"
            );
        }
    }

    /// A held lane goes on, or is given up.
    pub(super) fn end(&mut self, sender: &Sender) {
        sender.metrics.held.decrement(1.0);
        let Some(held) = self.parts.get_mut(&sender.part) else {
            return;
        };
        held.lanes -= 1;
        if held.lanes == 0 {
            self.parts.remove(&sender.part);
            self.health.clear(&sender.part);
        }
    }
}
