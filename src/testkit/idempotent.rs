//! The same scenario again and again, each time with one fault; every run must leave behind what the clean one did.
//!
//! Every run is a world of its own. The clean run says how many commits and publishes there are to strike at; runs are
//! repeatable, as time is paused and random delays are seeded, so most faults strike where the clean run had them.
//! What a fault struck is told from what was struck.

use super::bed::Testbed;
use super::fault::{Fault, Struck};
use super::origin;
use super::snapshot::Snapshot;
use crate::store::SimulatedDisk;

/// Most differences that are told.
const TOLD_MAX: usize = 8;

/// Of random delays: the same in every run.
const SEED: u64 = 7;

/// Runs the scenario with a crash or a lost connection at every commit, a crash after every publish, and every message
/// delivered more than once, and asserts that each run leaves the same behind as a clean one.
///
/// The scenario makes its whole world anew at each call: it gives queues their handlers, publishes, and names what it
/// watches outside by [`Testbed::observe`]. What is left behind is: the state of every key, how every message ended and
/// what its handler returned, what is downstream for a reader who dedupes by id (and that one id always has the same
/// bytes, and each key its order), and the observations.
///
/// Handlers outlive the crashes of a run: what they keep in their own memory a real crash would take, so let them keep
/// nothing there that matters.
///
/// A message that a crash leaves `in-doubt` ends otherwise than in the clean run, and that is told: a step by
/// [`once_or_park`](crate::Context::once_or_park) asks for an operator.
///
/// # Panics
///
/// If a run differs, with the fault, what it struck, and what is different; if messages are not settled in a run; if
/// two clean runs differ, as then nothing can be told from a third; if nothing is published, or many faults found
/// nothing to strike at.
#[track_caller]
pub fn assert_idempotent(scenario: impl Fn(&mut Testbed)) {
    let (clean, mut bed) = run(&scenario, &Plan::Clean);
    assert!(clean.faults.is_empty(), "in a clean run: {}", clean.faults.join("\n  and "));
    assert!(bed.world.wire.has_inbound(), "the scenario publishes nothing, so nothing can be told");
    let (commits, publishes) = bed.world.faults.counted();
    let (mut planned, mut missed) = (0, 0);
    let in_order = [Plan::Clean].into_iter().chain(plans(commits, publishes));
    for plan in in_order {
        let (snapshot, after) = run(&scenario, &plan);
        bed = after;
        if matches!(plan, Plan::Fault(_)) {
            planned += 1;
            missed += u32::from(!bed.world.faults.has_struck());
        }
        let mut differences = snapshot.differences(&clean);
        if !differences.is_empty() {
            let more = differences.len().saturating_sub(TOLD_MAX);
            differences.truncate(TOLD_MAX);
            if more > 0 {
                differences.push(format!("{more} more differences"));
            }
            let when = plan.tell(&bed, commits, publishes);
            panic!("{when}: {}", differences.join("\n  and "));
        }
    }
    drop(bed);
    // Commits that share a group in one run and not in another move the last ones.
    assert!(
        missed * 4 <= planned,
        "{missed} of {planned} faults found nothing to strike at: runs of the scenario differ too much"
    );
}

/// What is different in a run.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Clean,
    Fault(Fault),
    TwiceAtOnce,
    AgainAfterTheEnd,
    AllRedelivered,
}

fn plans(commits: u64, publishes: u64) -> impl Iterator<Item = Plan> {
    let at_commits = (1..=commits).flat_map(|commit| {
        [
            Fault::BeforeCommit(commit),
            Fault::AfterCommit(commit),
            Fault::AfterCommitAndAgain(commit),
            Fault::LostAtCommit(commit),
        ]
    });
    let faults = at_commits.chain((1..=publishes).map(Fault::AfterPublish)).map(Plan::Fault);
    faults.chain([Plan::TwiceAtOnce, Plan::AgainAfterTheEnd, Plan::AllRedelivered])
}

fn run(scenario: &impl Fn(&mut Testbed), plan: &Plan) -> (Snapshot, Testbed) {
    fastrand::seed(SEED);
    let fault = if let Plan::Fault(fault) = plan { Some(*fault) } else { None };
    let copies = if matches!(plan, Plan::TwiceAtOnce) { 2 } else { 1 };
    let mut bed = Testbed::with_fault(fault, copies);
    bed.world.run = format!("{}: ", plan.name());
    if matches!(plan, Plan::AllRedelivered) {
        bed.world.wire.hold_acks();
    }
    scenario(&mut bed);
    bed.run();
    if matches!(plan, Plan::AgainAfterTheEnd) {
        bed.world.publish_again();
        bed.run();
    }
    (Snapshot::of(&bed), bed)
}

impl Plan {
    /// Which run it is, before anything is known of it.
    fn name(&self) -> String {
        match self {
            Self::Clean => "in a clean run".to_owned(),
            Self::Fault(Fault::BeforeCommit(at)) => {
                format!("after a crash before commit {at} was durable")
            }
            Self::Fault(Fault::AfterCommit(at)) => {
                format!("after a crash when commit {at} was durable")
            }
            Self::Fault(Fault::AfterCommitAndAgain(at)) => {
                format!("after a crash when commit {at} was durable and another one behind it")
            }
            Self::Fault(Fault::LostAtCommit(at)) => {
                format!("after the connection to the broker was lost at commit {at}")
            }
            Self::Fault(Fault::AfterPublish(at)) => {
                format!("after a crash right after publish {at}")
            }
            Self::TwiceAtOnce => "with each message published twice at once".to_owned(),
            Self::AgainAfterTheEnd => "with each message published again after the end".to_owned(),
            Self::AllRedelivered => "with each message delivered again".to_owned(),
        }
    }

    /// Which run it was, with what the fault struck.
    fn tell(&self, bed: &Testbed, commits: u64, publishes: u64) -> String {
        let Self::Fault(fault) = self else {
            return match self {
                Self::Clean => "two clean runs differ, so nothing can be told of others: let the \
                                scenario make all that it uses anew, without real time and chance"
                    .to_owned(),
                other => other.name(),
            };
        };
        let struck = bed.world.faults.take_struck();
        let mut struck = struck.iter().map(|struck| tell_struck(bed, struck));
        let none = || "which did not come in this run".to_owned();
        let (first, second) = (struck.next().unwrap_or_else(none), struck.next());
        match fault {
            Fault::BeforeCommit(at) => {
                format!("after a crash before commit {at} of {commits} ({first}) was durable")
            }
            Fault::AfterCommit(at) => format!(
                "after a crash when commit {at} of {commits} ({first}) was durable and nobody had been told"
            ),
            Fault::AfterCommitAndAgain(at) => format!(
                "after a crash when commit {at} of {commits} ({first}) was durable and nobody had been told, and \
                 another one before the next commit ({}) was durable",
                second.unwrap_or_else(none)
            ),
            Fault::LostAtCommit(at) => format!(
                "after the connection to the broker was lost at commit {at} of {commits} ({first})"
            ),
            Fault::AfterPublish(at) => format!(
                "after a crash when publish {at} of {publishes} ({first}) had gone out and its confirmation had not come"
            ),
        }
    }
}

fn tell_struck(bed: &Testbed, struck: &Struck) -> String {
    match struck {
        Struck::Commit(ops) => {
            let names = origin::names(&bed.world);
            SimulatedDisk::describe(ops, &|identity| names.get(&identity).cloned())
        }
        Struck::Publish(messages) => {
            let origins = origin::origins(&bed.world);
            let told = messages.iter().map(|message| {
                let id = message.properties.message_id.as_deref().unwrap_or_default();
                match origins.get(id) {
                    Some(origin) => format!("what message \"{}\" sent", origin.id),
                    None => format!("the dead letter of message {id:?}"),
                }
            });
            let mut told: Vec<String> = told.collect();
            told.dedup();
            told.join(", ")
        }
    }
}
