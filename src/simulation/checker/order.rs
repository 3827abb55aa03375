//! The order of a key: P7 (messages end in the order of their deliveries).
//!
//! A message that ends before one that was delivered ahead of it, on every channel on which it was delivered itself,
//! has overtaken it. Exempt are messages whose name has several bodies, because they are judged when the name is
//! free; those without an id, which are on record only when their dead letter is confirmed; and the dead ones of a
//! batch, which are on record behind the others.

use std::collections::HashMap;

use super::super::history::Event;
use super::table::Table;
use super::world::{ChannelId, KeyId, MessageId, Now, RecordId, World};
use super::{Judge, Predicate, Report};

/// Deliveries of one key on one channel.
struct Lane {
    channel: ChannelId,
    life: u32,
    /// Message and entry of its delivery, in order.
    deliveries: Vec<(MessageId, usize)>,
    /// All before have ended.
    head: usize,
}

/// The runs of a message in one life.
#[derive(Clone, Copy, Default)]
struct Ran {
    life: u32,
    first: usize,
    batch: Option<u64>,
}

#[derive(Default)]
pub(super) struct Order {
    lanes: HashMap<KeyId, Vec<Lane>>,
    ran: Table<Option<Ran>>,
}

impl Judge for Order {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        if !world.rules().sees.channels || !world.rules().sees.has_effects() {
            return;
        }
        match (now.event, now.message) {
            (Event::Delivered { .. }, Some(message)) => {
                if let (Some(channel), Some(key)) = (now.channel, now.key) {
                    self.delivered(world, channel, key, (message, now.at));
                }
            }
            (Event::Run { life, batch, .. }, Some(message)) => {
                let ran = self.ran.row_or_default(message);
                let first = ran.filter(|ran| ran.life == *life).map_or(now.at, |ran| ran.first);
                *ran = Some(Ran { life: *life, first, batch: *batch });
            }
            (Event::Commit { .. }, _) => {
                let records = now.commit.map(|commit| world.commits[commit].records.clone());
                for record in records.into_iter().flatten() {
                    self.ended(world, record, report);
                }
            }
            (Event::Opened { life, .. }, _) => {
                for lanes in self.lanes.values_mut() {
                    lanes.retain(|lane| lane.life == *life);
                }
            }
            _ => {}
        }
    }
}

impl Order {
    fn delivered(
        &mut self,
        world: &World<'_>,
        channel: ChannelId,
        key: KeyId,
        delivery: (MessageId, usize),
    ) {
        let lanes = self.lanes.entry(key).or_default();
        match lanes.iter_mut().find(|lane| lane.channel == channel) {
            Some(lane) => lane.deliveries.push(delivery),
            None => {
                let life = world.channels[channel].life;
                lanes.push(Lane { channel, life, deliveries: vec![delivery], head: 0 });
            }
        }
    }

    fn ended(&mut self, world: &World<'_>, id: RecordId, report: &mut Report<'_>) {
        let record = &world.records[id];
        let Some(message) = record.message.filter(|message| is_ordered(world, *message)) else {
            return;
        };
        let Some(key) = world.messages[message].key else { return };
        if record.is_conflict || record.is_carried || has_expired(world, id) {
            return;
        }
        let commit = &world.commits[record.commit];
        let ran = self.ran(message).filter(|ran| ran.life == commit.life);
        // By which of its queues one has ended that never ran is not on record.
        if ran.is_none() && !world.messages[message].others.is_empty() {
            return;
        }
        // From here on it cannot have been dropped with its channel.
        let began = ran.map_or(commit.at, |ran| ran.first);
        let Some(lanes) = self.lanes.get_mut(&key) else { return };
        let is_open = |lane: &Lane| {
            let closed = world.channels[lane.channel].closed;
            closed.is_none_or(|closed| closed > began)
        };
        let mut overtaken = None;
        for lane in lanes.iter_mut().filter(|lane| lane.life == commit.life && is_open(lane)) {
            let Some(place) = lane.place(message) else { continue };
            lane.skip_ended(world, id);
            let ahead = lane.deliveries.get(lane.head..place).unwrap_or_default();
            overtaken = ahead.iter().copied().find(|(other, at)| {
                is_ordered(world, *other) && !may_have_ended(world, (*other, *at), id)
            });
            break;
        }
        let Some((other, at)) = overtaken else { return };
        let everywhere = lanes.iter().filter(|lane| lane.life == commit.life).all(|lane| {
            let place = lane.place(message);
            place.is_none_or(|place| lane.place(other).is_some_and(|other| other < place))
        });
        let batch = ran.and_then(|ran| ran.batch);
        let is_of_batch = batch.is_some() && self.ran(other).and_then(|ran| ran.batch) == batch;
        if everywhere && !is_of_batch {
            let what = format!(
                "commit {} ends {} of key {}, before {}, which was delivered ahead of it at entry {at}",
                commit.number,
                world.text(message),
                world.key_text(key),
                world.text(other),
            );
            report.broken(Predicate::P7, what);
        }
    }

    fn ran(&self, message: MessageId) -> Option<Ran> {
        if message < self.ran.len() { self.ran[message] } else { None }
    }
}

impl Lane {
    /// Where a message was first delivered that had not ended before.
    fn place(&self, message: MessageId) -> Option<usize> {
        let mut waiting = self.deliveries.iter().enumerate().skip(self.head);
        waiting.find(|(_, (other, _))| *other == message).map(|(place, _)| place)
    }

    fn skip_ended(&mut self, world: &World<'_>, before: RecordId) {
        let waiting = self.deliveries.iter().skip(self.head);
        self.head += waiting.take_while(|delivery| has_ended(world, **delivery, before)).count();
    }
}

fn is_ordered(world: &World<'_>, message: MessageId) -> bool {
    world.messages[message].has_id && !world.is_contested(message)
}

/// Whether its message had ended before and was forgotten: which of its deliveries this one ends is not known.
fn has_expired(world: &World<'_>, id: RecordId) -> bool {
    let record = &world.records[id];
    let earlier = world.names[record.name].records.iter().take_while(|other| **other < id);
    earlier.map(|other| &world.records[*other]).any(|other| {
        other.message == record.message && !other.is_conflict && other.collected_by.is_some()
    })
}

/// Whether a delivered message has a record that comes before this one.
fn has_ended(world: &World<'_>, (message, at): (MessageId, usize), before: RecordId) -> bool {
    let commit = world.records[before].commit;
    world.records_since(message, at).any(|(id, record)| {
        // The order of what watermarks pass is not known within a commit.
        id < before || (record.message.is_none() && record.commit == commit)
    })
}

/// The same, or it is in another block of the same commit: which of the two came first is not known.
fn may_have_ended(world: &World<'_>, (message, at): (MessageId, usize), before: RecordId) -> bool {
    let other = &world.records[before];
    let class = other.message.and_then(|message| world.messages[message].class);
    let in_other_block = world.messages[message].class != class;
    has_ended(world, (message, at), before)
        || (in_other_block
            && world.records_since(message, at).any(|(_, record)| record.commit == other.commit))
}
