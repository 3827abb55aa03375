//! Steps: P14 (each has one effect key for ever, is not called once its result is on record, and one that must not be
//! called twice is called only when its intent is).

use std::collections::HashMap;
use std::sync::Arc;

use super::super::history::{Call, Ended, Event};
use super::attempts::FORGOTTEN_MS;
use super::world::{CommitId, NameId, Now, World};
use super::{Judge, Predicate, Report};

#[derive(Default)]
struct Step {
    /// Under which it was first called.
    effect_key: Option<Arc<str>>,
    /// What says that it may have been called.
    begun: Option<CommitId>,
    /// What has its result.
    result: Option<CommitId>,
    /// Entry of its last call that is not to be repeated.
    called: Option<usize>,
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
                for (name, step, has_result) in &written.steps {
                    let Some(name) = world.name_id(name) else { continue };
                    let step = self.steps.entry((name, Arc::clone(step))).or_default();
                    match has_result {
                        true => step.result = now.commit,
                        false => step.begun = now.commit,
                    }
                }
            }
            Event::Called { life, name, step, effect_key, call } => {
                let Some(id) = world.name_id(name) else { return };
                self.guarded(world, now, (id, step), *call, report);
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
    /// What must not be called twice is on record before it is called, and again only when that is cleared.
    fn guarded(
        &mut self,
        world: &World<'_>,
        now: &Now<'_>,
        (name, step): (NameId, &Arc<str>),
        call: Call,
        report: &mut Report<'_>,
    ) {
        if call == Call::Repeatable {
            return;
        }
        let of = (name, Arc::clone(step));
        let (begun, called) =
            self.steps.get(&of).map_or((None, None), |row| (row.begun, row.called));
        let text = world.name_text(name);
        if world.rules().sees.has_effects()
            && !begun.is_some_and(|commit| self.is_on_record(world, name, commit))
        {
            let what =
                format!("step {step:?} of {text} is called, and its intent is not on record");
            report.broken(Predicate::P14, what);
        }
        if let Some(at) = called.filter(|at| call == Call::Guarded && !is_done(world, name, *at)) {
            let what = format!(
                "step {step:?} of {text} is called again after entry {at}, and nobody knows that it did not happen"
            );
            report.broken(Predicate::P14, what);
        }
        self.steps.entry(of).or_default().called = (call == Call::Guarded).then_some(now.at);
    }

    /// Whether it is durable and its message is not done since: then it goes.
    fn is_on_record(&self, world: &World<'_>, name: NameId, id: CommitId) -> bool {
        let commit = &world.commits[id];
        let is_forgotten = self.clock_ms.saturating_sub(commit.clock_ms) >= FORGOTTEN_MS;
        commit.synced_at.is_some() && !is_done(world, name, commit.at) && !is_forgotten
    }
}

/// Whether a message is done since this entry: then its steps go. Those of a dead one stay, for whoever sends it again.
fn is_done(world: &World<'_>, name: NameId, since: usize) -> bool {
    world.names[name].records.iter().any(|record| {
        let record = &world.records[*record];
        let commit = &world.commits[record.commit];
        let is_done = *record.ended == Ended::Done && !record.is_conflict;
        commit.at > since && is_done && !commit.is_lost
    })
}
