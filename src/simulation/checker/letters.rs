//! Dead letters: P12 (one is confirmed for whoever is dead, whole, with what is on record) and P4 (and for nobody
//! else).

use super::super::history::{Ended, Event, Letter};
use super::commits::Record;
use super::outbox::Sent;
use super::rules::{Commits, QueueRules};
use super::world::{MessageId, Now, RecordId, UNROUTABLE, World};
use super::{Judge, Predicate, Report};
use crate::options::OnUnroutable;

pub(super) struct Letters;

impl Judge for Letters {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        let sees = &world.rules().sees;
        if !sees.published || !sees.has_records() {
            return;
        }
        match now.event {
            Event::Published { id, to, letter: Some(letter), .. } => {
                let to: Vec<&str> = to.iter().map(|queue| &**queue).collect();
                if &*letter.reason == UNROUTABLE {
                    instead(world, (id, &to), letter, report);
                } else if sees.commits == Commits::AsTheyHappened {
                    published(world, now, (id, &to), letter, report);
                }
            }
            Event::Commit { .. } if sees.has_effects() => {
                let records = now.commit.map(|commit| world.commits[commit].records.clone());
                for record in records.into_iter().flatten() {
                    came_first(world, record, report);
                }
            }
            Event::AtRest => rest(world, report),
            _ => {}
        }
    }
}

/// The dead letter of a message of ours that no queue took.
fn instead(world: &World<'_>, (id, to): (&str, &[&str]), letter: &Letter, report: &mut Report<'_>) {
    if !world.rules().sees.has_effects() {
        return;
    }
    let Some(Sent::Out(out) | Sent::Instead(out)) = world.outbox.sent(&letter.name) else {
        let what = format!("dead letter {id} is of {}, which is in no commit", letter.name);
        return report.broken(Predicate::P4, what);
    };
    let senders = &world.names[world.outbox.outs[out].sender].messages;
    let rules: Vec<_> = senders.iter().flat_map(|id| world.messages[*id].all_rules()).collect();
    if rules.is_empty() {
        return;
    }
    if rules.iter().all(|rules| rules.on_unroutable != OnUnroutable::DeadLetter) {
        let what =
            format!("{id} is published in the place of {}, which is to be held", letter.name);
        report.broken(Predicate::P12, what);
    }
    lies_in(id, to, &rules, report);
}

/// In the dead-letter queue of one of the queues that the message has come by.
fn lies_in(id: &str, to: &[&str], rules: &[&QueueRules], report: &mut Report<'_>) {
    let queues: Vec<&str> = rules.iter().map(|rules| &*rules.dead_letter).collect();
    // None took it: it is not there yet.
    if let Some(other) = to.iter().find(|queue| !queues.contains(queue)) {
        let right = queues.join(" or ");
        let what =
            format!("dead letter {id} is in queue {other}, the dead-letter queue is {right}");
        report.broken(Predicate::P12, what);
    }
}

fn published(
    world: &World<'_>,
    now: &Now<'_>,
    (id, to): (&str, &[&str]),
    letter: &Letter,
    report: &mut Report<'_>,
) {
    let Some(message) = world.message_id(&letter.name, letter.fingerprint) else { return };
    let row = &world.messages[message];
    let rules: Vec<_> = row.all_rules().collect();
    if !rules.is_empty() {
        lies_in(id, to, &rules, report);
    }
    if !letter.is_whole {
        let text = world.text(message);
        let what = format!("dead letter {id} of {text} lacks something of it, or has other bytes");
        report.broken(Predicate::P12, what);
    }
    if row.has_id {
        // Its readers know a repetition by the id.
        let mut others = world.outbox.letters_of(message);
        let other = others.find(|other| other.id != id && other.letter.reason == letter.reason);
        if let Some(other) = other {
            let (text, before) = (world.text(message), other.id);
            let what = format!("dead letter {id} of {text} was published before as {before}");
            report.broken(Predicate::P10, what);
        }
        let dead = dead_records(world, message).find(|(_, record)| {
            // One that was collected while it was under way counts too.
            world.commits[record.commit].synced_at.is_some_and(|synced| synced < now.at)
        });
        match dead {
            Some((_, record)) => agrees(world, (id, letter), (message, record), report),
            None => {
                let text = world.text(message);
                let what = format!("dead letter {id} of {text}, which is not dead on record");
                report.broken(Predicate::P4, what);
            }
        }
    }
}

/// The Dead records of a message, the last one first.
fn dead_records<'a, 'h>(
    world: &'a World<'h>,
    message: MessageId,
) -> impl Iterator<Item = (RecordId, &'a Record<'h>)> {
    let name = &world.names[world.messages[message].name_id];
    let records = name.records.iter().rev().map(|id| (*id, &world.records[*id]));
    records.filter(move |(_, record)| {
        record.message == Some(message)
            && matches!(record.ended, Ended::Dead(_))
            && !world.commits[record.commit].is_lost
    })
}

fn agrees(
    world: &World<'_>,
    (id, letter): (&str, &Letter),
    (message, record): (MessageId, &Record<'_>),
    report: &mut Report<'_>,
) {
    let Ended::Dead(reason) = record.ended else { return };
    if *reason != letter.reason || record.attempts != letter.attempts {
        let what = format!(
            "dead letter {id} of {} says {} after {} attempts, its record {reason} after {}",
            world.text(message),
            letter.reason,
            letter.attempts,
            record.attempts,
        );
        report.broken(Predicate::P12, what);
    }
}

/// A message without an id is on record only when its dead letter is confirmed.
fn came_first(world: &World<'_>, id: RecordId, report: &mut Report<'_>) {
    let record = &world.records[id];
    let Some(message) = record.message.filter(|id| !world.messages[*id].has_id) else { return };
    let confirms = world.rules().sees.confirms;
    let mut letters = world.outbox.letters_of(message);
    let letter = letters
        .find(|letter| letter.arrived.is_some() && (!confirms || letter.confirmed.is_some()));
    match letter {
        Some(letter) => agrees(world, (letter.id, letter.letter), (message, record), report),
        None => {
            let (text, number) = (world.text(message), world.commits[record.commit].number);
            let what = format!(
                "commit {number} has a record of {text}, whose dead letter is not confirmed before"
            );
            report.broken(Predicate::P12, what);
        }
    }
}

fn rest(world: &World<'_>, report: &mut Report<'_>) {
    for (id, record) in world.records.iter() {
        let (Some(message), Ended::Dead(reason)) = (record.message, record.ended) else { continue };
        let commit = &world.commits[record.commit];
        // A message that was never delivered again, until its record left, has none.
        if !world.is_kept(id) || commit.synced_at.is_none() {
            continue;
        }
        let mut there = world.outbox.letters_of(message).filter(|letter| letter.arrived.is_some());
        let (text, number) = (world.text(message), commit.number);
        match there.next_back() {
            None => {
                let what = format!(
                    "{text} is dead, {reason}, in commit {number}, and not in its dead-letter queue"
                );
                report.broken(Predicate::P12, what);
            }
            Some(letter) if world.rules().sees.commits == Commits::AtRest => {
                agrees(world, (letter.id, letter.letter), (message, record), report);
            }
            Some(_) => {}
        }
    }
}
