//! Acks: P1 (only what is durable and confirmed) and P9 (each tag once, on its own channel).

use super::super::history::Event;
use super::world::{Now, World};
use super::{Judge, Predicate, Report};

pub(super) struct Settle;

impl Judge for Settle {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        if !world.rules().sees.channels {
            return;
        }
        match now.event {
            Event::Acked { channel, tag, multiple } => {
                legality(world, now, (*channel, *tag), report);
                if world.rules().sees.has_effects() {
                    for covered in &now.tags {
                        let Some(why) = world.unfinished(covered.message, covered.at) else {
                            continue;
                        };
                        let text = world.tag_text(*channel, covered);
                        let all = if *multiple { " and all before" } else { "" };
                        let what = format!("an ack of tag {tag}{all} covers {text}, but {why}");
                        report.broken(Predicate::P1, what);
                    }
                }
            }
            Event::AckRefused { channel, tag } => {
                let what = format!("the broker refuses an ack of tag {tag} of channel {channel}");
                report.broken(Predicate::P9, what);
            }
            _ => {}
        }
    }
}

fn legality(world: &World<'_>, now: &Now<'_>, (channel, tag): (u64, u64), report: &mut Report<'_>) {
    if !now.tags.is_empty() {
        return;
    }
    let why = match now.channel.map(|id| &world.channels[id]) {
        None => "nothing was consumed on it".to_owned(),
        Some(row) if row.closed.is_some() => "it is closed".to_owned(),
        Some(row) if tag == 0 || tag > row.tag_max => {
            format!("the last tag that was delivered on it is {}", row.tag_max)
        }
        Some(_) => "that tag is settled".to_owned(),
    };
    let what = format!("an ack of tag {tag} of channel {channel}, but {why}");
    report.broken(Predicate::P9, what);
}
