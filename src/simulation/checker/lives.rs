//! Lives of workers: P16 (after a failure of the store nothing goes out), P19 (one at a time, each with a higher epoch)
//! and P20 (what a drain begins, acks and returns).

use super::super::history::{Event, RunEnd};
use super::channels::Tag;
use super::table::Table;
use super::world::{ChannelId, Life, MessageId, Now, World};
use super::{Judge, Predicate, Report};

/// The last run of a message that came to an end by itself.
#[derive(Clone, Copy)]
struct Ran {
    life: u32,
    /// By the rules' number of it.
    queue: Option<usize>,
    ended: usize,
}

#[derive(Default)]
pub(super) struct Lives {
    epoch: Option<u64>,
    ran: Table<Option<Ran>>,
}

impl Judge for Lives {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        match now.event {
            Event::Opened { life, epoch } => self.opened(world, now, (*life, *epoch), report),
            Event::Run { life, seen, .. } => {
                works(world, now, *life, &format!("runs {}", seen.name), report);
                may_run(world, now, *life, &seen.name, report);
            }
            Event::Consuming { life, queue, .. } => {
                works(world, now, *life, &format!("consumes {queue}"), report);
            }
            Event::Called { life, name, step, .. } => {
                works(world, now, *life, &format!("calls step {step:?} of {name}"), report);
            }
            Event::Commit { life, number, .. } => {
                works(world, now, *life, &format!("makes commit {number}"), report);
                if let Some(failed_ms) = world.known_life(*life).and_then(|life| life.failed_ms) {
                    let what = format!(
                        "commit {number} of life {life}, whose store failed at {failed_ms} ms"
                    );
                    report.broken(Predicate::P16, what);
                }
            }
            Event::End { life, seen, ended, .. } if *ended != RunEnd::Dropped => {
                if let Some(message) = now.message {
                    let queue = world.queue_number(&seen.queue);
                    let ran = Ran { life: *life, queue, ended: now.at };
                    *self.ran.row_or_default(message) = Some(ran);
                }
            }
            Event::Acked { channel, tag, .. } => {
                if let Some(id) = now.channel {
                    let what = format!("an ack of tag {tag} of channel {channel}");
                    goes_out(world, now, world.channels[id].life, &what, report);
                }
            }
            Event::Published { life, id, .. } => {
                goes_out(world, now, *life, &format!("{id}"), report);
            }
            Event::ChannelClosed { asked: true, .. } => {
                if let Some(channel) = now.channel {
                    self.left(world, now, channel, report);
                }
            }
            Event::Exited { life, error } => exited(world, *life, error.as_deref(), report),
            Event::AtRest => rest(world, report),
            _ => {}
        }
    }
}

impl Lives {
    fn opened(
        &mut self,
        world: &World<'_>,
        now: &Now<'_>,
        (number, epoch): (u32, u64),
        report: &mut Report<'_>,
    ) {
        if let Some(before) = self.epoch
            && epoch <= before
        {
            let what =
                format!("life {number} opens the store in epoch {epoch}, after epoch {before}");
            report.broken(Predicate::P19, what);
        }
        self.epoch = self.epoch.max(Some(epoch));
        if let Some(other) = open_beside(world, number) {
            let what = format!("life {number} opens the store while life {other} has it");
            report.broken(Predicate::P19, what);
        }
        if world.known_life(number).and_then(|life| life.opened) != Some(now.at) {
            report.broken(Predicate::P19, format!("life {number} opens the store again"));
        }
        if world.rules().sees.has_effects() && !world.has_durable_epoch(epoch) {
            let what = format!("life {number} works in epoch {epoch}, which is not durable");
            report.broken(Predicate::P19, what);
        }
    }

    /// What was finished on a channel that the worker closes.
    fn left(&self, world: &World<'_>, now: &Now<'_>, channel: ChannelId, report: &mut Report<'_>) {
        let row = &world.channels[channel];
        let life = world.known_life(row.life).filter(|life| life.failed_ms.is_none());
        let Some((_, drain_ms)) = life.and_then(|life| life.drain) else { return };
        // What a full store has not taken in is not finished with its twin.
        if world.rules().may_be_full || !world.rules().sees.has_effects() {
            return;
        }
        let frame_ms = world.rules().frame_ms;
        // Nor is what has arrived in the drain.
        let is_in = |tag: &&Tag| world.at_ms(tag.at).saturating_add(frame_ms) <= drain_ms;
        for tag in now.tags.iter().filter(is_in) {
            let queue = world.queue_number(&row.queue);
            let is_finished = self
                .finished(world, (row.life, queue), tag)
                .is_some_and(|finished| world.at_ms(finished).saturating_add(frame_ms) < now.at_ms);
            if is_finished && !world.is_contested(tag.message) {
                let text = world.tag_text(row.number, tag);
                let what =
                    format!("life {} drains without an ack of {text}, which is finished", row.life);
                report.broken(Predicate::P20, what);
            }
        }
    }

    /// When a delivery was finished by a run that it started or joined: one of its own queue.
    fn finished(
        &self,
        world: &World<'_>,
        (life, queue): (u32, Option<usize>),
        tag: &Tag,
    ) -> Option<usize> {
        if world.messages[tag.message].rules.is_some_and(|rules| rules.replies) {
            return None;
        }
        // It has arrived by then, and is not behind others of its key.
        let arrived_ms = world.at_ms(tag.at).saturating_add(world.rules().frame_ms);
        let is_own = |ran: &Ran| {
            ran.life == life && ran.queue == queue && world.at_ms(ran.ended) >= arrived_ms
        };
        let ran = self.ran(tag.message).filter(is_own)?;
        let finished = world.finished(tag.message, tag.at)?;
        Some(finished.max(ran.ended))
    }

    fn ran(&self, message: MessageId) -> Option<Ran> {
        if message < self.ran.len() { self.ran[message] } else { None }
    }
}

/// Another life that has opened the store and has not ended.
fn open_beside(world: &World<'_>, number: u32) -> Option<u32> {
    let mut lives = world.lives.iter().map(|(_, life)| life);
    let beside =
        |life: &&Life| life.number != number && life.opened.is_some() && life.ended.is_none();
    lives.find(beside).map(|life| life.number)
}

/// Only a process that lives does anything, and none beside it.
fn works(world: &World<'_>, now: &Now<'_>, number: u32, what: &str, report: &mut Report<'_>) {
    if !world.rules().sees.lives {
        return;
    }
    let life = world.known_life(number);
    let is_over = life.and_then(|life| life.ended).is_some_and(|ended| ended < now.at);
    if is_over {
        report.broken(Predicate::P19, format!("life {number} {what} after its end"));
    }
    if let Some(other) = open_beside(world, number) {
        let what = format!("life {number} {what} while life {other} has the store");
        report.broken(Predicate::P19, what);
    }
}

fn may_run(world: &World<'_>, now: &Now<'_>, number: u32, name: &str, report: &mut Report<'_>) {
    let Some(life) = world.known_life(number) else { return };
    let told_ms = world.rules().told_ms;
    let is_told = |since_ms: u64| now.at_ms > since_ms.saturating_add(told_ms);
    if let Some((_, drain_ms)) = life.drain.filter(|(_, drain_ms)| is_told(*drain_ms)) {
        let what = format!("a run of {name} in life {number}, which drains since {drain_ms} ms");
        report.broken(Predicate::P20, what);
    }
    if let Some(failed_ms) = life.failed_ms.filter(|failed_ms| is_told(*failed_ms)) {
        let what =
            format!("a run of {name} in life {number}, whose store failed at {failed_ms} ms");
        report.broken(Predicate::P16, what);
    }
}

fn goes_out(world: &World<'_>, now: &Now<'_>, number: u32, what: &str, report: &mut Report<'_>) {
    let failed_ms = world.known_life(number).and_then(|life| life.failed_ms);
    let frame_ms = world.rules().frame_ms;
    if let Some(failed_ms) = failed_ms.filter(|ms| now.at_ms > ms.saturating_add(frame_ms)) {
        let what = format!("{what} comes from life {number}, whose store failed at {failed_ms} ms");
        report.broken(Predicate::P16, what);
    }
}

fn exited(world: &World<'_>, number: u32, error: Option<&str>, report: &mut Report<'_>) {
    let Some(life) = world.known_life(number) else { return };
    match (life.failed_ms, life.drain, error) {
        (Some(failed_ms), _, None) => {
            let what = format!(
                "life {number}, whose store failed at {failed_ms} ms, ends without an error"
            );
            report.broken(Predicate::P16, what);
        }
        (None, Some(_), Some(error)) => {
            report.broken(Predicate::P20, format!("life {number} drains and ends with {error:?}"));
        }
        _ => {}
    }
}

fn rest(world: &World<'_>, report: &mut Report<'_>) {
    for (_, life) in world.lives.iter().filter(|(_, life)| life.ended.is_none()) {
        let number = life.number;
        if let Some(failed_ms) = life.failed_ms {
            let what =
                format!("life {number}, whose store failed at {failed_ms} ms, has not ended");
            report.broken(Predicate::P16, what);
        } else if let Some((_, drain_ms)) = life.drain {
            let what = format!("life {number}, which drains since {drain_ms} ms, has not ended");
            report.broken(Predicate::P20, what);
        }
    }
}
