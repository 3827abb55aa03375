//! What is sent: P4 (only what a durable commit holds), P10 (all of it, with the same bytes each time) and P11 (first
//! arrivals of a key in commit order).

use super::super::history::{Event, Name};
use super::outbox::{OutId, Sent};
use super::table::Table;
use super::world::{CommitId, Now, World};
use super::{Judge, Predicate, Report};

/// Outgoing messages of one key, in commit order.
#[derive(Default)]
struct Lane {
    outs: Vec<OutId>,
    /// All before have arrived or are lost.
    head: usize,
}

/// Where the order of an outgoing message is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneId {
    Key(usize),
    /// Its sender has no key, and is its own.
    Own(usize),
}

#[derive(Default)]
pub(super) struct Outgoing {
    keys: Table<Lane>,
    own: Table<Lane>,
    /// The lane of each outgoing message.
    lanes: Table<Option<LaneId>>,
}

impl Judge for Outgoing {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        if !world.rules().sees.has_effects() {
            return;
        }
        match now.event {
            Event::Commit { .. } => {
                if let Some(commit) = now.commit {
                    self.commit(world, commit);
                }
            }
            Event::Published { id, body, letter: None, answers: None, .. } => {
                self.published(world, now, (id, *body), report);
            }
            Event::AtRest if world.rules().sees.published => rest(world, report),
            _ => {}
        }
    }
}

impl Outgoing {
    fn commit(&mut self, world: &World<'_>, id: CommitId) {
        let commit = &world.commits[id];
        for out in commit.outs.clone() {
            let sender = world.outbox.outs[out].sender;
            let mut records = commit.records.clone().map(|record| &world.records[record]);
            let record = records.find(|record| record.name == sender && !record.is_conflict);
            let message = record.and_then(|record| record.message);
            let message = message.or_else(|| world.names[sender].messages.first().copied());
            let key = message.and_then(|message| world.messages[message].key);
            let (lane, id) = match key {
                Some(key) => (self.keys.row_or_default(key), LaneId::Key(key)),
                None => (self.own.row_or_default(sender), LaneId::Own(sender)),
            };
            lane.outs.push(out);
            *self.lanes.row_or_default(out) = Some(id);
        }
    }

    fn published(
        &mut self,
        world: &World<'_>,
        now: &Now<'_>,
        (id, body): (&Name, u64),
        report: &mut Report<'_>,
    ) {
        let Some(Sent::Out(out)) = world.outbox.sent(id) else {
            let what = format!("{id} is published, and no commit has it");
            return report.broken(Predicate::P4, what);
        };
        let row = &world.outbox.outs[out];
        let sender = world.name_text(row.sender);
        let number = world.commits[row.commit].number;
        let all = world.outbox.outs_of(row.sender).filter(|out| out.id == &**id && !out.is_lost);
        let all: Vec<_> = all.collect();
        if all.iter().all(|out| world.commits[out.commit].synced_at.is_none()) {
            let state = if row.is_lost { "is lost" } else { "is not durable" };
            let what = format!(
                "{id} of {sender} is published, and commit {number}, which has it, {state}"
            );
            report.broken(Predicate::P4, what);
        }
        // One that ran again after its record had expired sends under the same ids, and a block that is not all
        // confirmed is sent again whole: which of the two this is nobody can tell.
        if all.len() > 1 || row.is_lost {
            return;
        }
        if let Some(first) = row.body
            && first != body
        {
            let what = format!(
                "{id} of {sender} is published with body {body:x}, and before with {first:x}"
            );
            report.broken(Predicate::P10, what);
        }
        if row.arrived == Some(now.at) {
            self.arrived(world, out, report);
        }
    }

    fn arrived(&mut self, world: &World<'_>, out: OutId, report: &mut Report<'_>) {
        let lane = match self.lanes.row_or_default(out) {
            Some(LaneId::Key(key)) => self.keys.row_or_default(*key),
            Some(LaneId::Own(name)) => self.own.row_or_default(*name),
            None => return,
        };
        let is_over = |out: &OutId| {
            let out = &world.outbox.outs[*out];
            out.is_lost || out.arrived.is_some()
        };
        lane.head += lane.outs.iter().skip(lane.head).take_while(|out| is_over(out)).count();
        if let Some(ahead) = lane.outs.get(lane.head).filter(|ahead| **ahead < out) {
            let (row, ahead) = (&world.outbox.outs[out], &world.outbox.outs[*ahead]);
            let what = format!(
                "{} of {} arrives before {} of {}, which was committed ahead of it",
                row.id,
                world.name_text(row.sender),
                ahead.id,
                world.name_text(ahead.sender),
            );
            report.broken(Predicate::P11, what);
        }
    }
}

fn rest(world: &World<'_>, report: &mut Report<'_>) {
    for (_, out) in world.outbox.outs.iter() {
        let commit = &world.commits[out.commit];
        if out.arrived.is_none() && !out.is_lost && commit.synced_at.is_some() {
            let (id, sender, number) = (out.id, world.name_text(out.sender), commit.number);
            let what = format!("{id} of {sender}, in commit {number}, has arrived in no queue");
            report.broken(Predicate::P10, what);
        }
    }
}
