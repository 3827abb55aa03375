//! Goal: the simulation finds what it is there to find.
//!
//! Method: each planted bug in turn, from the first seed on, until a seed breaks a promise; the table of first seeds is
//! printed. A bug that no seed finds is a hole in the simulation, and fails the test.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use onceward::simulation::{Bug, run};

/// Seeds that a bug may take.
const SEEDS_MAX: u64 = 20_000;

#[test]
fn every_planted_bug_is_found() {
    let started = tokio::time::Instant::now();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let seed = (0..SEEDS_MAX).find_map(|seed| {
                        Some((seed, run(seed, Some(*bug)).violations.into_iter().next()?))
                    });
                    found.lock().expect("no thread has panicked").push((format!("{bug:?}"), seed));
                }
            });
        }
    });
    let mut found = found.into_inner().expect("no thread has panicked");
    found.sort();
    for (bug, seed) in &found {
        match seed {
            Some((seed, violation)) => println!("{bug:<28} seed {seed:>5}  {violation}"),
            None => println!("{bug:<28} not found"),
        }
    }
    let lost: Vec<_> =
        found.iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| bug).collect();
    let (bugs, lost_bugs) = (found.len(), lost.len());
    println!(
        "TIER planted-bugs: {bugs} bugs, {lost_bugs} violations, {} s",
        started.elapsed().as_secs()
    );
    assert!(lost.is_empty(), "not found in {SEEDS_MAX} seeds: {lost:?}");
}
