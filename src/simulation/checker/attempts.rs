//! Attempts: P13 (on record they never fall, each run has the next number, and the limit is passed by one at most).

use super::super::history::{Ended, Event, RunEnd};
use super::breaker::Breakers;
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

/// The last run of a message that did not end it.
#[derive(Clone, Copy)]
struct Ran {
    life: u32,
    message: MessageId,
    attempt: u32,
    is_over: bool,
    /// Whether it failed while the breaker was closed, or says nothing of what is downstream.
    counts: bool,
}

#[derive(Clone, Copy, Default)]
struct Of {
    durable: Option<Row>,
    ahead: Option<Row>,
    ran: Option<Ran>,
}

impl Of {
    /// Whether what is on record as begun is no attempt: it failed while the breaker was open, or a drain came before
    /// it ran.
    fn is_void(&self, world: &World<'_>, row: Row, life: u32) -> bool {
        let has_run = self.ran.filter(|ran| ran.life == life && ran.attempt == row.begun);
        let is_draining = || world.known_life(life).is_some_and(|life| life.drain.is_some());
        row.is_running && row.life == life && has_run.map_or_else(is_draining, |ran| !ran.counts)
    }
}

/// Deliveries of a message in one life and queue.
#[derive(Clone, Copy)]
struct Deliveries {
    life: u32,
    queue: Option<usize>,
    has_new: bool,
}

#[derive(Default)]
pub(super) struct Attempts {
    names: Table<Of>,
    made: Table<Vec<(NameId, Option<Row>)>>,
    deliveries: Table<Vec<Deliveries>>,
    breakers: Breakers,
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
            (Event::Run { life, seen, attempt, batch }, Some(message)) => {
                self.breakers.begun(*batch, message);
                self.run(world, (*life, *attempt, *batch), (&seen.queue, message), report);
            }
            (Event::End { life, seen, attempt, batch, ended }, Some(message)) => {
                let of = (seen, message);
                let counts = self.breakers.ended(world, (*life, *batch), of, *ended);
                let ran = Ran { life: *life, message, attempt: *attempt, is_over: true, counts };
                let is_attempt =
                    batch.is_none() && matches!(ended, RunEnd::Failed | RunEnd::Panicked);
                let name = world.messages[message].name_id;
                self.names.row_or_default(name).ran = is_attempt.then_some(ran);
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
                    && !(*begun + 1 == before.begun && of.is_void(world, before, commit.life))
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
                    // Of another body that dies unread.
                    && !(record.attempts == 0 && world.is_contested(message))
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
                let of = self.names.row_or_default(record.name);
                if let Some(ran) = of.ran.take().filter(|ran| ran.life == commit.life)
                    && !ran.counts
                    && Some(ran.message) == record.message
                    && matches!(record.ended, Ended::Dead(reason) if &**reason == "exhausted")
                {
                    let what = format!(
                        "commit {} says that the attempts of {} are exhausted, and the last one failed while the breaker was open",
                        commit.number,
                        world.name_text(record.name),
                    );
                    report.broken(Predicate::P13, what);
                }
                of.ahead = None;
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
        let channel = &world.channels[channel];
        let (life, queue) = (channel.life, world.queue_number(&channel.queue));
        let rows = self.deliveries.row_or_default(message);
        match rows.iter_mut().find(|row| row.life == life && row.queue == queue) {
            Some(row) => row.has_new |= !redelivered,
            None => rows.push(Deliveries { life, queue, has_new: !redelivered }),
        }
    }

    fn run(
        &mut self,
        world: &World<'_>,
        (life, attempt, batch): (u32, u32, Option<u64>),
        (queue, message): (&str, MessageId),
        report: &mut Report<'_>,
    ) {
        within_limit(world, message, (&format!("life {life} says that"), attempt), report);
        if !world.rules().sees.has_effects() {
            return;
        }
        let name = world.messages[message].name_id;
        let Of { durable: row, ran, .. } = *self.names.row_or_default(name);
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
        // Of a batch that failed the messages run one by one, as if there had been none.
        if let Some(ran) = ran.filter(|ran| ran.life == life && ran.is_over)
            && attempt != ran.attempt + u32::from(ran.counts)
        {
            let how = if ran.counts { "" } else { ", while the breaker was open" };
            let what = format!(
                "a run of {text} in life {life} is called attempt {attempt}, and attempt {} has failed{how}",
                ran.attempt,
            );
            report.broken(Predicate::P13, what);
        }
        // A run that goes on may count.
        let ran = Ran { life, message, attempt, is_over: false, counts: true };
        self.names.row_or_default(name).ran = batch.is_none().then_some(ran);
        let queue = world.queue_number(queue);
        let mut deliveries = self.deliveries.row_or_default(message).iter();
        let is_redelivered =
            deliveries.any(|row| row.life == life && row.queue == queue && !row.has_new);
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
    // Attempts are those of the id, whatever the body and the queue.
    let bodies = world.names[world.messages[message].name_id].messages.iter();
    let rules = bodies.flat_map(|body| world.messages[*body].all_rules());
    let limits = rules.map(|rules| rules.max_attempts);
    let Some(limit) = limits.max() else { return };
    if attempts > limit + 1 {
        let text = world.text(message);
        let what =
            format!("{who} {text} has {attempts} attempts, the limit is {limit} and one alone");
        report.broken(Predicate::P13, what);
    }
}
