//! Intake: P17 (deliveries under way stay within the prefetch, and none is taken in while the store is full).

use super::super::history::Event;
use super::table::Table;
use super::world::{MessageId, Now, World};
use super::{Judge, Predicate, Report};

/// When a message was first delivered in a life.
#[derive(Clone, Copy)]
struct Delivered {
    life: u32,
    at_ms: u64,
}

#[derive(Default)]
pub(super) struct Intake {
    delivered: Table<Option<Delivered>>,
}

impl Judge for Intake {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        if !world.rules().sees.channels {
            return;
        }
        match (now.event, now.message) {
            (Event::Consuming { life, queue, prefetch, .. }, _) => {
                let rules = world.rules().queues.iter().find(|rules| rules.queue == *queue);
                // 0 is no limit, to a broker.
                if let Some(rules) = rules.filter(|of| *prefetch == 0 || *prefetch > of.prefetch) {
                    let limit = rules.prefetch;
                    let what = format!(
                        "life {life} consumes {queue} with prefetch {prefetch}, its option is {limit}"
                    );
                    report.broken(Predicate::P17, what);
                }
            }
            (Event::Delivered { channel, tag, .. }, Some(message)) => {
                within_prefetch(world, now, (*channel, *tag), report);
                let life = now.channel.map(|id| world.channels[id].life);
                let first = self.delivered.row_or_default(message);
                let is_known = first.is_some_and(|first| Some(first.life) == life);
                if let Some(life) = life.filter(|_| !is_known) {
                    *first = Some(Delivered { life, at_ms: now.at_ms });
                }
            }
            (Event::Run { life, .. }, Some(message)) => {
                self.run(world, *life, message, report);
            }
            _ => {}
        }
    }
}

impl Intake {
    /// What the broker sends ahead of a full store waits there.
    fn run(&mut self, world: &World<'_>, number: u32, message: MessageId, report: &mut Report<'_>) {
        let full_ms = world.known_life(number).and_then(|life| life.full_ms);
        let delivered = self.delivered.row_or_default(message).filter(|of| of.life == number);
        let (Some(full_ms), Some(Delivered { at_ms, .. })) = (full_ms, delivered) else { return };
        if at_ms > full_ms.saturating_add(world.rules().told_ms) {
            let what = format!(
                "a run of {} in life {number}, whose store is full since {full_ms} ms, delivered at {at_ms} ms",
                world.text(message)
            );
            report.broken(Predicate::P17, what);
        }
    }
}

fn within_prefetch(
    world: &World<'_>,
    now: &Now<'_>,
    (channel, tag): (u64, u64),
    report: &mut Report<'_>,
) {
    let Some(row) = now.channel.map(|id| &world.channels[id]) else { return };
    let (unacked, prefetch) = (row.unacked.len(), usize::from(row.prefetch));
    if unacked > prefetch {
        let what = format!(
            "with tag {tag}, {unacked} deliveries are under way on channel {channel}, prefetch {prefetch}"
        );
        report.broken(Predicate::P17, what);
    }
}
