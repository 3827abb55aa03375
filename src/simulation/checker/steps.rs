//! Steps: P14 (each has one effect key for ever, and is not called once its result is on record).

use std::collections::HashMap;
use std::sync::Arc;

use super::super::history::Event;
use super::attempts::FORGOTTEN_MS;
use super::world::{CommitId, NameId, Now, World};
use super::{Judge, Predicate, Report};

#[derive(Default)]
struct Step {
    /// Under which it was first called.
    effect_key: Option<Arc<str>>,
    /// What has its result.
    result: Option<CommitId>,
}

#[derive(Default)]
pub(super) struct Steps {
    steps: HashMap<(NameId, Arc<str>), Step>,
    clock_ms: u64,
}

impl Judge for Steps {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        match now.event {
            Event::Commit { written, clock_ms, .. } => {
                self.clock_ms = *clock_ms;
                let results = written.steps.iter().filter(|(_, _, has_result)| *has_result);
                for (name, step, _) in results {
                    let Some(name) = world.name_id(name) else { continue };
                    let step = self.steps.entry((name, Arc::clone(step))).or_default();
                    step.result = now.commit;
                }
            }
            Event::Called { life, name, step, effect_key } => {
                let Some(id) = world.name_id(name) else { return };
                let row = self.steps.entry((id, Arc::clone(step))).or_default();
                let first = row.effect_key.get_or_insert_with(|| Arc::clone(effect_key));
                if first != effect_key {
                    let what = format!(
                        "step {step:?} of {name} is called with effect key {effect_key}, and before with {first}"
                    );
                    report.broken(Predicate::P14, what);
                }
                if let Some(commit) = row.result
                    && self.is_on_record(world, id, commit)
                {
                    let number = world.commits[commit].number;
                    let what = format!(
                        "step {step:?} of {name} is called in life {life}, and commit {number} has its result"
                    );
                    report.broken(Predicate::P14, what);
                }
            }
            _ => {}
        }
    }
}

impl Steps {
    /// Whether the result is durable and its message has not ended since: then it goes.
    fn is_on_record(&self, world: &World<'_>, name: NameId, id: CommitId) -> bool {
        let commit = &world.commits[id];
        let has_ended = world.names[name].records.iter().any(|record| {
            let record = &world.records[*record];
            record.commit > id && !record.is_conflict && !world.commits[record.commit].is_lost
        });
        let is_forgotten = self.clock_ms.saturating_sub(commit.clock_ms) >= FORGOTTEN_MS;
        commit.synced_at.is_some() && !has_ended && !is_forgotten
    }
}
