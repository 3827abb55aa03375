//! Whether an attempt counts, by the breaker of its queue: what failed while it was open, or opened it, does not.
//!
//! The rules as they are told to users, over what handlers did: different messages that failed in a row open it, the
//! first success closes it. When it lets anybody run is not asked.

use std::collections::{BTreeSet, HashMap};

use super::super::history::{RunEnd, Seen};
use super::world::{MessageId, NameId, World};

/// The breaker of one queue in one life.
#[derive(Default)]
struct Breaker {
    /// Who failed since the last success or rejection.
    failed: BTreeSet<NameId>,
    is_open: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct Breakers {
    queues: HashMap<(u32, usize), Breaker>,
    /// The first message of each batch that runs, which stands for all of it.
    batches: HashMap<u64, MessageId>,
}

impl Breakers {
    pub(super) fn begun(&mut self, batch: Option<u64>, message: MessageId) {
        if let Some(batch) = batch {
            self.batches.entry(batch).or_insert(message);
        }
    }

    /// A run has ended; `false` if it failed and is no attempt of its message's.
    pub(super) fn ended(
        &mut self,
        world: &World<'_>,
        (life, batch): (u32, Option<u64>),
        (seen, message): (&Seen, MessageId),
        ended: RunEnd,
    ) -> bool {
        // Of a batch the first end tells of all: one that is rejected in it leaves the batch a success.
        let ended = match batch.map(|batch| self.batches.remove(&batch)) {
            Some(None) => return true,
            Some(Some(_)) if ended == RunEnd::Rejected => RunEnd::Ok,
            _ => ended,
        };
        let Some(queue) = world.queue_number(&seen.queue) else { return true };
        let failures = world.rules().queues.get(queue).and_then(|rules| rules.breaker_failures);
        let Some(failures) = failures else { return true };
        let breaker = self.queues.entry((life, queue)).or_default();
        match ended {
            RunEnd::Ok => *breaker = Breaker::default(),
            RunEnd::Rejected if breaker.is_open => {}
            RunEnd::Rejected => breaker.failed.clear(),
            RunEnd::Failed => {
                breaker.failed.insert(world.messages[message].name_id);
                breaker.is_open |= breaker.failed.len() >= failures as usize;
                return !breaker.is_open;
            }
            // Nobody knows whether anything was called.
            RunEnd::Panicked | RunEnd::InDoubt | RunEnd::Dropped => {}
        }
        true
    }
}
