//! Runs simulations by seed: one with its history, or many with what they have met.
//!
//! `onceward-sim --seed 17 --history` shows all that happened in a run; `onceward-sim --from 0 --count 1000000
//! --threads 2` runs many and names each seed that breaks a promise.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use onceward::simulation::{Bug, Tally, run};

/// Runs simulations of the worker by seed.
#[derive(Debug, Parser)]
#[command(name = "onceward-sim")]
struct Arguments {
    /// Run this one seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Show all that happened in it.
    #[arg(long, requires = "seed")]
    history: bool,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<String>,
    /// The first seed of many.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Threads to run them on.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bug = match arguments.bug.as_deref().map(bug_of).transpose() {
        Ok(bug) => bug,
        Err(problem) => {
            eprintln!("onceward-sim: {problem}");
            return ExitCode::from(2);
        }
    };
    let is_well = match arguments.seed {
        Some(seed) => one(seed, bug, arguments.history),
        None => many(&arguments, bug),
    };
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// By its name in the code.
fn bug_of(name: &str) -> Result<Bug, String> {
    let names = Bug::ALL.map(|bug| format!("{bug:?}"));
    let found = Bug::ALL.into_iter().zip(&names).find(|(_, known)| *known == name);
    found
        .map(|(bug, _)| bug)
        .ok_or_else(|| format!("no bug {name:?}; there is {}", names.join(", ")))
}

fn one(seed: u64, bug: Option<Bug>, shows_history: bool) -> bool {
    let outcome = run(seed, bug);
    if shows_history {
        print!("{}", outcome.history);
    }
    print!("{}", outcome.tally);
    for violation in &outcome.violations {
        println!("seed {seed}: {violation}");
    }
    outcome.violations.is_empty()
}

fn many(arguments: &Arguments, bug: Option<Bug>) -> bool {
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from.saturating_add(arguments.count);
    let total = Mutex::new((Tally::default(), 0_u64));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                let mut tally = Tally::default();
                let mut broken = 0;
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let outcome = run(seed, bug);
                    tally.add(&outcome.tally);
                    broken += u64::from(!outcome.violations.is_empty());
                    if let Some(first) = outcome.violations.first() {
                        println!("seed {seed}: {first}");
                    }
                }
                if let Ok(mut total) = total.lock() {
                    total.0.add(&tally);
                    total.1 += broken;
                }
            });
        }
    });
    let Ok((tally, broken)) = total.into_inner() else { return false };
    print!("{tally}");
    println!("{broken:>12}  seeds that break a promise");
    broken == 0
}
