//! One run: a scenario is played to its end, lives follow one another, and then everything must come to rest.
//!
//! The worker is the real one, on a runtime whose time is paused. Says what is wrong beside the history: a worker that
//! ends by itself, that hangs, that lets a second one in. Judges nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::cast;
use super::checker;
use super::history::History;
use super::scenario::Scenario;
use super::tally::Tally;
use super::world::World;
use crate::failpoint;
use crate::planted::{self, Bug};

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// All that happened.
    pub history: History,
    /// What must not be, in words; empty if all is well.
    pub violations: Vec<String>,
    /// What was met.
    pub tally: Tally,
}

/// Runs the scenario of a seed, with a planted bug or without, and has the checker judge what happened.
///
/// # Panics
///
/// If the system gives no runtime.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    planted::plant(bug);
    fastrand::seed(seed);
    let scenario = Scenario::of(seed);
    let rules = cast::rules(&scenario);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build();
        #[expect(clippy::expect_used, reason = "without a runtime there is no simulation")]
        let runtime = runtime.expect("a runtime can be built");
        runtime.block_on(async {
            let mut world = World::new(scenario);
            let stage = world.stage.clone();
            let watched = stage.clone();
            failpoint::watch(Some(Arc::new(move |point| watched.reached(point))));
            world.play().await;
            stage.leave();
            let history = stage.log.take();
            stage.tally(|tally| {
                tally.runs = 1;
                tally.network(stage.network.counts());
                tally.history(&history);
            });
            let tally = stage.tally(std::mem::take);
            Outcome { history, violations: world.faults, tally }
        })
    }));
    failpoint::watch(None);
    planted::plant(None);
    match ran {
        Ok(mut outcome) => {
            let judged = || checker::check(&outcome.history, &rules);
            match catch_unwind(judged) {
                Ok(judged) => outcome.violations.extend(judged.iter().map(ToString::to_string)),
                Err(panic) => {
                    let text = panic_text(&*panic);
                    outcome.violations.push(format!("the checker panicked: {text}"));
                }
            }
            outcome
        }
        Err(panic) => {
            let violations = vec![format!("a panic: {}", panic_text(&*panic))];
            Outcome { history: History::default(), violations, tally: Tally::default() }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_default()
}
