//! Runs of handlers: P5 (never two of one message) and P6 (never two of one key, but for those of one batch).

use super::super::history::Event;
use super::world::{KeyId, MessageId, NameId, Now, World};
use super::{Judge, Predicate, Report};

/// A handler that runs.
struct Run {
    life: u32,
    batch: Option<u64>,
    name: NameId,
    key: Option<KeyId>,
    message: MessageId,
    at: usize,
}

#[derive(Default)]
pub(super) struct Runs {
    running: Vec<Run>,
}

impl Judge for Runs {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        match (now.event, now.message) {
            (Event::Run { life, batch, .. }, Some(message)) => {
                let row = &world.messages[message];
                let (life, batch, key) = (*life, *batch, row.key);
                let run = Run { life, batch, name: row.name_id, key, message, at: now.at };
                self.begin(world, run, report);
            }
            (Event::End { life, .. }, Some(message)) => {
                let place =
                    self.running.iter().position(|run| run.message == message && run.life == *life);
                match place {
                    Some(place) => drop(self.running.swap_remove(place)),
                    None if world.rules().sees.runs => {
                        let text = world.text(message);
                        let what = format!("a run of {text} in life {life} ends that is not there");
                        report.broken(Predicate::P5, what);
                    }
                    None => {}
                }
            }
            (Event::Exited { life, .. } | Event::Crashed { life }, _) => {
                self.running.retain(|run| run.life != *life);
            }
            (Event::AtRest, _) => {
                for run in &self.running {
                    let (text, at) = (world.text(run.message), run.at);
                    let what = format!("the run of {text} that began at entry {at} has not ended");
                    report.broken(Predicate::P18, what);
                }
            }
            _ => {}
        }
    }
}

impl Runs {
    fn begin(&mut self, world: &World<'_>, run: Run, report: &mut Report<'_>) {
        for other in &self.running {
            let (text, at) = (world.text(other.message), other.at);
            let since = format!("which runs since entry {at} in life {}", other.life);
            if other.name == run.name {
                let own = world.text(run.message);
                let what = format!("a run of {own} in life {} beside {text}, {since}", run.life);
                report.broken(Predicate::P5, what);
            } else if let Some(key) = run.key
                && other.key == run.key
                && !(run.batch.is_some() && other.batch == run.batch && other.life == run.life)
            {
                let (own, key) = (world.text(run.message), world.key_text(key));
                let what = format!("a run of {own} of key {key} beside {text}, {since}");
                report.broken(Predicate::P6, what);
            }
        }
        self.running.push(run);
    }
}
