//! Records: P2 (a message ends once, with all its effects), the commits of P4 (only what was delivered), and at rest
//! P3 (everything accepted has ended) and P18 (nothing is left).

use std::collections::HashMap;

use super::super::history::{Ended, Event};
use super::rules::Commits;
use super::world::{CommitId, MessageId, Now, RecordId, World};
use super::{Judge, Predicate, Report};

/// What a commit makes.
pub(super) struct Once;

impl Judge for Once {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        let Some(commit) = now.commit else { return };
        if !world.rules().sees.has_records() {
            return;
        }
        for record in world.commits[commit].records.clone() {
            ends_once(world, record, report);
            was_delivered(world, record, report);
        }
        if world.rules().sees.has_effects() {
            senders_are_done(world, commit, report);
        }
    }
}

fn ends_once(world: &World<'_>, id: RecordId, report: &mut Report<'_>) {
    let record = &world.records[id];
    // A message without an id is as new each time.
    let has_id = record.message.is_none_or(|message| world.messages[message].has_id);
    if record.is_carried || !has_id {
        return;
    }
    let earlier = world.names[record.name].records.iter().take_while(|other| **other < id);
    let mut kept = earlier.filter(|other| world.is_kept(**other));
    let twin = kept.find(|other| {
        let other = &world.records[**other];
        other.is_conflict == record.is_conflict
            && (!record.is_conflict || other.message == record.message)
    });
    if let Some(twin) = twin {
        let twin = &world.records[*twin];
        let text = match record.message {
            Some(message) => world.text(message),
            None => world.name_text(record.name).to_owned(),
        };
        let what = format!(
            "commit {} says that {text} is {}, but commit {} said that it is {}",
            world.commits[record.commit].number,
            ended(record.ended),
            world.commits[twin.commit].number,
            ended(twin.ended),
        );
        report.broken(Predicate::P2, what);
    }
}

fn was_delivered(world: &World<'_>, id: RecordId, report: &mut Report<'_>) {
    if !world.rules().sees.channels || world.rules().sees.commits == Commits::AtRest {
        return;
    }
    let record = &world.records[id];
    let is_delivered = |message: &MessageId| world.messages[*message].delivered.is_some();
    let messages = &world.names[record.name].messages;
    let is_known =
        record.message.as_ref().map_or_else(|| messages.iter().any(is_delivered), is_delivered);
    if !is_known {
        let number = world.commits[record.commit].number;
        let text = record.message.map(|message| world.text(message)).unwrap_or_default();
        let what = format!("commit {number} has a record of {text}, which was never delivered");
        report.broken(Predicate::P4, what);
    }
}

/// What a message sends is in the commit that says that it is done, and in no other.
fn senders_are_done(world: &World<'_>, id: CommitId, report: &mut Report<'_>) {
    let commit = &world.commits[id];
    for (sender, outs) in &commit.written.outgoing {
        let mut done = commit.records.clone().map(|record| &world.records[record]);
        let is_done = done.any(|record| {
            matches!(record.ended, Ended::Done) && world.name_text(record.name) == &**sender
        });
        if !is_done && !commit.written.passed.contains(sender) {
            let (number, count) = (commit.number, outs.len());
            let what = format!(
                "commit {number} has {count} outgoing messages of {sender}, and no record that it is done"
            );
            report.broken(Predicate::P2, what);
        }
    }
}

fn ended(ended: &Ended) -> String {
    match ended {
        Ended::Done => "done".to_owned(),
        Ended::Dead(reason) => format!("dead, {reason}"),
    }
}

/// Every copy of a message that producers have published.
#[derive(Default)]
pub(super) struct AtRest {
    copies: HashMap<u64, Copy>,
}

struct Copy {
    message: MessageId,
    accepted: usize,
    is_acked: bool,
}

impl Judge for AtRest {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        match (now.event, now.message) {
            (Event::Accepted(seen), Some(message)) => {
                let copy = Copy { message, accepted: now.at, is_acked: false };
                self.copies.insert(seen.copy, copy);
            }
            (Event::Acked { .. }, _) => {
                for tag in &now.tags {
                    if let Some(copy) = self.copies.get_mut(&tag.copy) {
                        copy.is_acked = true;
                    }
                }
            }
            (Event::AtRest, _) => self.rest(world, report),
            _ => {}
        }
    }
}

impl AtRest {
    fn rest(&self, world: &World<'_>, report: &mut Report<'_>) {
        let sees = &world.rules().sees;
        let mut left: Vec<(&u64, &Copy, bool)> = Vec::new();
        for (number, copy) in &self.copies {
            let has_ended = !sees.has_records() || has_ever_ended(world, copy.message);
            let is_settled = copy.is_acked || !sees.channels;
            let is_consumed = world.messages[copy.message].rules.is_some();
            if is_consumed && !(has_ended && is_settled) {
                left.push((number, copy, has_ended));
            }
        }
        left.sort_unstable_by_key(|(_, copy, _)| copy.accepted);
        for (number, copy, has_ended) in left {
            let Copy { message, accepted, is_acked } = copy;
            let text = world.text(*message);
            let text = format!("{text}, copy {number}, accepted at entry {accepted},");
            if sees.channels && !is_acked {
                let on_record = if has_ended { "it has ended" } else { "it has not ended" };
                report.broken(Predicate::P18, format!("{text} is not acked, and {on_record}"));
            } else {
                report.broken(Predicate::P3, format!("{text} has not ended"));
            }
        }
        for (_, channel) in world.channels.iter() {
            if channel.closed.is_some() || !sees.channels {
                continue;
            }
            let is_over = world.known_life(channel.life).is_some_and(|life| life.ended.is_some());
            if let (Some(tag), false) = (channel.unacked.first(), is_over) {
                let (count, text) = (channel.unacked.len(), world.tag_text(channel.number, tag));
                let what = format!("{count} deliveries are unacked, the first is {text}");
                report.broken(Predicate::P18, what);
            }
        }
    }
}

/// Also if its record has been collected since.
fn has_ever_ended(world: &World<'_>, message: MessageId) -> bool {
    let name = &world.names[world.messages[message].name_id];
    name.records.iter().map(|record| &world.records[*record]).any(|record| {
        record.message.is_none_or(|recorded| recorded == message)
            && world.commits[record.commit].synced_at.is_some()
    })
}
