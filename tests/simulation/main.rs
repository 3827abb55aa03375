//! Goal: whatever goes wrong around it, the worker keeps its promise, and what it does follows from the seed alone.
//!
//! Method: each seed is a scenario of queues, messages and faults that the real worker runs through on virtual time;
//! the checker judges what happened at its borders. `ONCEWARD_SEEDS=N` runs N seeds instead of the usual number,
//! `ONCEWARD_SEED=S` begins with that one. A seed that breaks a promise is named with the command that replays it.

mod planted;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use onceward::simulation::{Point, Tally, run};

/// Runs of every test run.
const SEEDS: u64 = 20_000;

/// Seeds that are run twice.
const REPEATED: u64 = 200;

/// Most broken seeds that are shown.
const SHOWN_MAX: usize = 20;

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: {value:?} is no number")))
}

/// Runs as many seeds on two threads; what they met, and which broke a promise.
fn run_all(seeds: u64) -> (Tally, Vec<(u64, String)>) {
    let first = setting("ONCEWARD_SEED").unwrap_or(0);
    let next = AtomicU64::new(first);
    let found = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut tally = Tally::default();
                let mut broken = Vec::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let outcome = run(seed, None);
                    tally.add(&outcome.tally);
                    broken.extend(outcome.violations.into_iter().next().map(|text| (seed, text)));
                }
                let mut found = found.lock().expect("no thread has panicked");
                found.0.add(&tally);
                found.1.append(&mut broken);
            });
        }
    });
    found.into_inner().expect("no thread has panicked")
}

#[test]
fn no_seed_breaks_a_promise_and_every_fault_is_met() {
    let seeds = setting("ONCEWARD_SEEDS").unwrap_or(SEEDS);
    let started = tokio::time::Instant::now();
    let (tally, mut broken) = run_all(seeds);
    println!("{tally}");
    let seconds = started.elapsed().as_secs();
    println!("TIER simulation: {seeds} seeds, {} violations, {seconds} s", broken.len());
    broken.sort_unstable();
    let lines: Vec<_> = broken
        .iter()
        .take(SHOWN_MAX)
        .map(|(seed, text)| {
            format!("{text}\n  replay: cargo run --features simulation --bin onceward-sim -- --seed {seed} --history")
        })
        .collect();
    assert!(broken.is_empty(), "{} of {seeds} seeds:\n{}", broken.len(), lines.join("\n"));
    if seeds >= SEEDS {
        let unmet = unmet(&tally);
        assert!(unmet.is_empty(), "never met in {seeds} seeds: {}", unmet.join(", "));
    }
}

/// What a run of all seeds must meet.
fn unmet(tally: &Tally) -> Vec<String> {
    let plain = [
        ("power cuts", tally.power_cuts),
        ("disk failures", tally.disk_failures),
        ("slow syncs", tally.slow_syncs),
        ("takeovers", tally.takeovers),
        ("drains", tally.drains),
        ("clock jumps", tally.clock_jumps),
        ("collections", tally.collections),
    ];
    // What is counted when it happens only.
    let named = [
        "twins",
        "twins in another queue",
        "conflicts",
        "replies",
        "calls that are cleared",
        "done",
        "done by number",
        "collected records",
        "runs in batches",
        "full stores",
        "room in full stores again",
        "dead: bad-id",
        "dead: conflict",
        "dead: crash-loop",
        "dead: exhausted",
        "dead: expired",
        "dead: in-doubt",
        "dead: missing-id",
        "dead: rejected",
        "dead: too-large",
    ];
    let is_unmet = |what: &&str| tally.counted.get(what).is_none_or(|times| *times == 0);
    let mut unmet: Vec<String> = named.into_iter().filter(is_unmet).map(str::to_owned).collect();
    unmet.extend(plain.iter().filter(|(_, times)| *times == 0).map(|(what, _)| (*what).to_owned()));
    // An ack that the broker refuses is a fault of the worker.
    let counted = tally.counted.iter().filter(|(what, times)| **what != "406" && **times == 0);
    unmet.extend(counted.map(|(what, _)| (*what).to_owned()));
    for point in Point::ALL {
        for (how, times) in [("reached", &tally.reached), ("a crash", &tally.struck)] {
            if times.get(point.name()).is_none_or(|times| *times == 0) {
                unmet.push(format!("{how} at {}", point.name()));
            }
        }
    }
    unmet
}

#[test]
fn a_seed_makes_the_same_history_twice() {
    for seed in 0..REPEATED {
        let [first, second] = [run(seed, None), run(seed, None)];
        let (first, second) = (first.history.to_string(), second.history.to_string());
        let differs = first.lines().zip(second.lines()).find(|(one, other)| one != other);
        assert!(first == second, "seed {seed} differs first at: {differs:?}");
    }
}
