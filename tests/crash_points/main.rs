//! Every named point of a message's way, reached for the first, second and tenth time, on classic and quorum queues:
//! the worker kills itself there, and what comes after it must be as if nothing had happened.
//!
//! A worker is a child process (this test, executed again) on a real queue and a real store. Its handler uses
//! everything: the state of the key, outgoing messages (some large), a step at a ledger that loses answers, failing
//! attempts, dead letters of all kinds, twins, conflicts, records that expire while it runs. What is judged is seen
//! from outside: what is downstream, the calls of the ledger, what handlers say when they begin and end, the store
//! that is left. A run in which the worker did not die at its point is an error: it would prove nothing.
//!
//! `ONCEWARD_SEED=…` takes the printed seed again, `ONCEWARD_CRASH_RUNS=ack-written:10` only the runs of that name.

#![expect(clippy::indexing_slicing, reason = "a panic is how a test fails")]

use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onceward::simulation::{Bug, Point};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::bench::{Bench, QueueKind};
use self::traffic::{Kind, Mix, Plan, SLOW_KEYS};
use crate::support::rabbitmq::{Client, Vhost};

mod audit;
mod bench;
mod book;
mod broker;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod traffic;
mod worker;

/// The test that a child executes.
const CHILD_TEST: &str =
    "every_point_and_hit_on_both_kinds_of_queue_ends_as_if_nothing_had_happened";

const HITS: [u64; 3] = [1, 2, 10];

/// Runs at a time: most of a run is waiting for disk and broker.
const AT_A_TIME: usize = 8;

/// Between two waves, so that a group of commits is not all there is.
const WAVE_PAUSE: Duration = Duration::from_millis(20);

/// What is struck, and how.
#[derive(Clone, Copy, Debug)]
struct Strike {
    point: Point,
    hit: u64,
    queue: QueueKind,
    in_batches: bool,
    bug: Option<Bug>,
}

impl Strike {
    fn crash(self) -> String {
        format!("{}:{}", self.point.name(), self.hit)
    }
}

impl std::fmt::Display for Strike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let batches = if self.in_batches { " in batches" } else { "" };
        write!(f, "{} on a {:?} queue{batches}", self.crash(), self.queue)?;
        self.bug.map_or(Ok(()), |bug| write!(f, " with {bug:?}"))
    }
}

#[test]
fn every_point_and_hit_on_both_kinds_of_queue_ends_as_if_nothing_had_happened() {
    if worker::is_child() {
        return worker::run_as_child();
    }
    let mut strikes = Vec::new();
    for point in Point::ALL {
        for hit in HITS {
            for queue in QueueKind::ALL {
                strikes.push(Strike { point, hit, queue, in_batches: false, bug: None });
            }
        }
    }
    let _alone = alone();
    judge("crash-points", strikes);
}

/// The points where messages that run together take a way of their own.
#[test]
fn a_batch_that_is_struck_ends_as_if_nothing_had_happened() {
    let points = [
        Point::LookedUp,
        Point::HandlerReturned,
        Point::Applied,
        Point::Synced,
        Point::AckWritten,
        Point::Confirmed,
    ];
    let strikes = points.map(|point| {
        let (hit, queue) = (2, QueueKind::Classic);
        Strike { point, hit, queue, in_batches: true, bug: None }
    });
    let _alone = alone();
    judge("crash-points-of-batches", strikes.into());
}

/// That the matrix can fail: each of these is found by a strike at the point beside it.
#[test]
fn a_planted_bug_is_found_by_its_crash_point() {
    let planted = [
        (Bug::AckBeforeSync, Point::Applied),
        (Bug::MarkBeforeRun, Point::HandlerReturned),
        (Bug::FingerprintNotCompared, Point::Received),
        (Bug::OutgoingNotStored, Point::Synced),
        (Bug::UnsentForgotten, Point::Published),
        (Bug::LetterIdChanges, Point::DeadLetterPublished),
        (Bug::EffectsInCommitOfTheirOwn, Point::Synced),
        (Bug::StateNotRemembered, Point::LookedUp),
        (Bug::IndexNotRebuilt, Point::OutgoingRemoved),
    ];
    let _alone = alone();
    let mut missed = planted.to_vec();
    // What the same hit meets differs from run to run: a strike can fall where a bug does no harm. One in two does for
    // effects in a commit of their own: a group may have none of them.
    for hit in [10, 7, 13, 4, 16, 8, 11, 14, 5, 12, 6, 15] {
        let (queue, in_batches) = (QueueKind::Classic, false);
        let strike = |&(bug, point)| Strike { point, hit, queue, in_batches, bug: Some(bug) };
        let (_, ended) = strike_all(missed.iter().map(strike).collect());
        for (strike, wrong) in ended {
            if let Some(wrong) = wrong.first() {
                println!("{strike}: {}", wrong.lines().next().unwrap_or_default());
                missed.retain(|(bug, _)| strike.bug != Some(*bug));
            }
        }
        if missed.is_empty() {
            break;
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Strikes, and fails if anything is wrong then.
fn judge(tier: &str, strikes: Vec<Strike>) {
    let only = std::env::var("ONCEWARD_CRASH_RUNS").ok();
    let chosen = |strike: &Strike| only.as_ref().is_none_or(|only| *only == strike.crash());
    let strikes: Vec<Strike> = strikes.into_iter().filter(chosen).collect();
    assert!(!strikes.is_empty(), "ONCEWARD_CRASH_RUNS={only:?} names no run");
    let count = strikes.len();
    let (took, ended) = strike_all(strikes);
    let violations: Vec<String> = ended
        .iter()
        .flat_map(|(strike, wrong)| wrong.iter().map(move |wrong| format!("{strike}: {wrong}")))
        .collect();
    // Past the capture of test output: the proof's figures are taken from it.
    let (broken, seconds) = (violations.len(), took.as_secs());
    writeln!(std::io::stderr(), "TIER {tier}: {count} runs, {broken} violations, {seconds} s")
        .expect("stderr is there");
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// What is wrong after each of the strikes.
#[tokio::main]
async fn strike_all(strikes: Vec<Strike>) -> (Duration, Vec<(Strike, Vec<String>)>) {
    let seed = number("ONCEWARD_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ONCEWARD_SEED={seed} cargo test --features simulation --test crash_points");
    let started = Instant::now();
    let vhost = Vhost::new();
    let client = Arc::new(vhost.client().await);
    let at_a_time = Arc::new(Semaphore::new(AT_A_TIME));
    let mut runs = JoinSet::new();
    for (place, strike) in strikes.into_iter().enumerate() {
        // The same whichever others there are.
        let own = book::fingerprint(strike.to_string().as_bytes());
        let (url, client) = (vhost.url(), Arc::clone(&client));
        let at_a_time = Arc::clone(&at_a_time);
        let random = fastrand::Rng::with_seed(seed.wrapping_add(own));
        runs.spawn(async move {
            let _permit = at_a_time.acquire().await.expect("it is never closed");
            let queue = format!("in{place}");
            let ended = Box::pin(run(&url, &client, &queue, strike, random)).await;
            (strike, ended)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = runs.join_next().await {
        let (strike, ended) = ended.expect("a run does not panic");
        all.push((strike, ended.unwrap_or_else(|error| vec![error])));
    }
    (started.elapsed(), all)
}

/// One traffic with one strike in it; gives what is wrong in the end, or why it proves nothing.
async fn run(
    url: &str,
    client: &Client,
    queue: &str,
    strike: Strike,
    mut random: fastrand::Rng,
) -> Result<Vec<String>, String> {
    let mut bench = Bench::new(url, client, queue, strike.queue).await;
    if strike.in_batches {
        bench.in_batches();
    }
    if let Some(bug) = strike.bug {
        bench.plant(bug);
    }
    let slow_ms = if strike.point == Point::Draining { 700 } else { 10 };
    let plan = Plan::new(&Mix { keys: 5, scale: 1, slow_ms, slow_each: 2 }, 0, &mut random);
    let mut producer = bench.producer();
    let crash = strike.crash();
    let publishing = async {
        for wave in &plan.waves {
            producer.publish(wave).await;
            tokio::time::sleep(WAVE_PAUSE).await;
        }
        producer.publish(&plan.slow).await;
    };
    let half = plan.waves.iter().flatten().count() / 2;
    let striking = async {
        match strike.point {
            Point::Opening => {
                let life = bench.start(None);
                bench.until("half done", |pages| pages.ended.len() >= half).await?;
                life.strike();
                bench.dead(life).await?;
                // The second one opens what the first one left half open.
                for _ in 0..2 {
                    let life = bench.start(Some(&crash));
                    bench.dead(life).await?;
                }
                Ok(())
            }
            Point::Draining => {
                let life = bench.start(Some(&crash));
                let are_at_work = |pages: &book::Pages| {
                    let slow = |run: &&book::Run| {
                        let order = pages.orders.get(&run.number);
                        order.is_some_and(|order| matches!(order.kind, Kind::Slow { .. }))
                    };
                    pages.runs.iter().filter(slow).count() >= SLOW_KEYS
                };
                bench.until("at the slow ones", are_at_work).await?;
                life.drain(&bench);
                bench.dead(life).await
            }
            _ => {
                let life = bench.start(Some(&crash));
                bench.dead(life).await
            }
        }
    };
    let (_, struck) = tokio::join!(publishing, striking);
    struck?;
    bench.finish(client, &mut producer, &plan).await
}

/// One test at a time: each has as much to do as the machine can.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}
