//! Collection: P15 (a record leaves only when it is past its retention, by the store's clock, and not needed any more).

use super::world::{Now, RecordId, World};
use super::{Judge, Predicate, Report};

pub(super) struct Collect;

impl Judge for Collect {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        let Some(commit) = now.commit else { return };
        for record in &world.commits[commit].collected {
            collected(world, *record, world.commits[commit].clock_ms, report);
        }
    }
}

fn collected(world: &World<'_>, id: RecordId, clock_ms: u64, report: &mut Report<'_>) {
    let record = &world.records[id];
    let Some(message) = record.message else { return };
    let Some(retention_ms) = world.messages[message].retention_ms() else { return };
    let commit = &world.commits[record.commit];
    let (text, number) = (world.text(message), commit.number);
    let age_ms = clock_ms.saturating_sub(commit.clock_ms);
    if age_ms < retention_ms {
        let what = format!(
            "the record of {text} in commit {number} is collected after {age_ms} ms, the retention is {retention_ms} ms"
        );
        report.broken(Predicate::P15, what);
    }
    if world.is_needed(id) {
        let what = format!(
            "the record of {text} in commit {number} is collected before what it sends is confirmed"
        );
        report.broken(Predicate::P15, what);
    }
}
