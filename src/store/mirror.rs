//! The small rows, mirrored in memory: there are only as many as messages in trouble.
//!
//! Changed when they are durable, never before. Decides nothing.

use std::collections::{BTreeMap, HashMap};

use super::Change;
use super::record::{Attempts, QueueId, QueueRow};
use super::rows::{Spilled, StepRow};
use crate::identity::Identity;

/// The rows of queues, attempts, steps and unconfirmed dead letters.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) queues: BTreeMap<QueueId, QueueRow>,
    pub(super) attempts: HashMap<Identity, Attempts>,
    pub(super) steps: HashMap<Identity, Vec<StepRow>>,
    pub(super) pending: HashMap<Identity, ()>,
}

impl Mirror {
    /// The change is durable; gives the spilled value that nothing refers to any more because of it.
    pub(super) fn apply(&mut self, change: Change) -> Option<Spilled> {
        match change {
            Change::PutAttempts(identity, attempts) => {
                self.attempts.insert(identity, attempts);
            }
            Change::RemoveAttempts(identity) => {
                self.attempts.remove(&identity);
            }
            Change::PutPending(identity) => {
                self.pending.insert(identity, ());
            }
            Change::RemovePending(identity) => {
                self.pending.remove(&identity);
            }
            Change::PutStep(identity, step) => {
                let kept = step.result.as_ref().and_then(|result| result.spilled());
                let before = self.remove_step(identity, &step.name);
                self.steps.entry(identity).or_default().push(step);
                return before.filter(|before| Some(*before) != kept);
            }
            Change::RemoveStep(identity, name) => return self.remove_step(identity, &name),
            Change::RemoveSpilled(spilled) => return Some(spilled),
            Change::PutState(_)
            | Change::PutOutgoing(_)
            | Change::RemoveOutgoing(_)
            | Change::PutPiece(..)
            | Change::Advance(_) => {}
        }
        None
    }

    /// Whether a step of the message has this value as its result.
    pub(super) fn refers_to(&self, identity: Identity, spilled: Spilled) -> bool {
        let mut results = self.steps.get(&identity).into_iter().flatten().map(|step| &step.result);
        results.any(|result| result.as_ref().and_then(|result| result.spilled()) == Some(spilled))
    }

    fn remove_step(&mut self, identity: Identity, name: &str) -> Option<Spilled> {
        let steps = self.steps.get_mut(&identity)?;
        let at = steps.iter().position(|step| step.name == name)?;
        let step = steps.swap_remove(at);
        if steps.is_empty() {
            self.steps.remove(&identity);
        }
        step.result.and_then(|result| result.spilled())
    }
}
