//! Attempts: P13 (on record they never fall, each run has the next number, and the limit is passed by one at most).

use super::super::history::Event;
use super::table::Table;
use super::world::{ChannelId, CommitId, MessageId, NameId, Now, World};
use super::{Judge, Predicate, Report};

/// After so long without a delivery, attempts may be forgotten.
pub(super) const FORGOTTEN_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Attempts on record of an unfinished message.
#[derive(Clone, Copy, Debug)]
struct Row {
    begun: u32,
    is_running: bool,
    life: u32,
    clock_ms: u64,
}

#[derive(Clone, Copy, Default)]
struct Of {
    durable: Option<Row>,
    ahead: Option<Row>,
}

/// Deliveries of a message in one life.
#[derive(Clone, Copy, Default)]
struct Deliveries {
    life: u32,
    has_new: bool,
}

#[derive(Default)]
pub(super) struct Attempts {
    names: Table<Of>,
    made: Table<Vec<(NameId, Option<Row>)>>,
    deliveries: Table<Option<Deliveries>>,
    clock_ms: u64,
}

impl Judge for Attempts {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        match (now.event, now.message) {
            (Event::Commit { .. }, _) => {
                if let Some(commit) = now.commit {
                    self.commit(world, commit, report);
                }
            }
            (Event::Delivered { redelivered, .. }, Some(message)) => {
                if let Some(channel) = now.channel {
                    self.delivered(world, channel, message, *redelivered);
                }
            }
            (Event::Run { life, attempt, .. }, Some(message)) => {
                self.run(world, (*life, *attempt), message, report);
            }
            _ => {}
        }
        for commit in &now.synced {
            for (name, row) in std::mem::take(self.made.row_or_default(*commit)) {
                self.names.row_or_default(name).durable = row;
            }
        }
        for commit in &now.lost {
            for (name, _) in std::mem::take(self.made.row_or_default(*commit)) {
                let of = self.names.row_or_default(name);
                of.ahead = of.durable;
            }
        }
    }
}

impl Attempts {
    fn commit(&mut self, world: &World<'_>, id: CommitId, report: &mut Report<'_>) {
        let commit = &world.commits[id];
        self.clock_ms = commit.clock_ms;
        let mut made = Vec::new();
        if world.rules().sees.has_effects() {
            for (name, begun, is_running) in &commit.written.attempts {
                let Some(name) = world.name_id(name) else { continue };
                let row = Row {
                    begun: *begun,
                    is_running: *is_running,
                    life: commit.life,
                    clock_ms: commit.clock_ms,
                };
                let of = self.names.row_or_default(name);
                if let Some(before) = of.ahead
                    && *begun < before.begun
                    && !is_forgotten(before, commit.clock_ms)
                {
                    let what = format!(
                        "commit {} says that {} has {begun} attempts, {} were on record",
                        commit.number,
                        world.name_text(name),
                        before.begun,
                    );
                    report.broken(Predicate::P13, what);
                }
                of.ahead = Some(row);
                made.push((name, Some(row)));
            }
        }
        for record in commit.records.clone().map(|record| &world.records[record]) {
            // The number of a message that a watermark passes is not on record.
            if let Some(message) = record.message {
                let text = format!("commit {} says that", commit.number);
                within_limit(world, message, (&text, record.attempts), report);
                if let Some(row) = self.names.row_or_default(record.name).ahead
                    && !record.is_conflict
                    && record.attempts < row.begun
                    && !is_forgotten(row, commit.clock_ms)
                {
                    let what = format!(
                        "{text} {} has ended after {} attempts, {} were on record",
                        world.text(message),
                        record.attempts,
                        row.begun,
                    );
                    report.broken(Predicate::P13, what);
                }
            }
            if !record.is_conflict {
                self.names.row_or_default(record.name).ahead = None;
                made.push((record.name, None));
            }
        }
        *self.made.row_or_default(id) = made;
    }

    fn delivered(
        &mut self,
        world: &World<'_>,
        channel: ChannelId,
        message: MessageId,
        redelivered: bool,
    ) {
        let life = world.channels[channel].life;
        let row = self.deliveries.row_or_default(message);
        let has_new = row.is_some_and(|row| row.life == life && row.has_new);
        *row = Some(Deliveries { life, has_new: has_new || !redelivered });
    }

    fn run(
        &mut self,
        world: &World<'_>,
        (life, attempt): (u32, u32),
        message: MessageId,
        report: &mut Report<'_>,
    ) {
        within_limit(world, message, (&format!("life {life} says that"), attempt), report);
        if !world.rules().sees.has_effects() {
            return;
        }
        let name = world.messages[message].name_id;
        let row = self.names.row_or_default(name).durable;
        let row = row.filter(|row| attempt > 1 || !is_forgotten(*row, self.clock_ms));
        let is_begun = row.is_some_and(|row| row.is_running && row.life == life);
        let expected = row.map_or(1, |row| if is_begun { row.begun } else { row.begun + 1 });
        let text = world.text(message);
        if attempt != expected {
            let what = format!(
                "a run of {text} in life {life} is called attempt {attempt}, by what is on record it is {expected}"
            );
            report.broken(Predicate::P13, what);
        }
        let deliveries = *self.deliveries.row_or_default(message);
        let is_redelivered = deliveries.is_some_and(|row| row.life == life && !row.has_new);
        if world.rules().sees.channels && is_redelivered && !is_begun {
            let what = format!(
                "{text} was delivered before, and attempt {attempt} begins in life {life} without being on record"
            );
            report.broken(Predicate::P13, what);
        }
    }
}

fn is_forgotten(row: Row, clock_ms: u64) -> bool {
    clock_ms.saturating_sub(row.clock_ms) >= FORGOTTEN_MS
}

fn within_limit(
    world: &World<'_>,
    message: MessageId,
    (who, attempts): (&str, u32),
    report: &mut Report<'_>,
) {
    let limits = world.messages[message].all_rules().map(|rules| rules.max_attempts);
    let Some(limit) = limits.max() else { return };
    if attempts > limit + 1 {
        let text = world.text(message);
        let what =
            format!("{who} {text} has {attempts} attempts, the limit is {limit} and one alone");
        report.broken(Predicate::P13, what);
    }
}
