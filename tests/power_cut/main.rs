//! Goal: what was acknowledged survives a power cut at any instant, in the real store on a real filesystem.
//!
//! Method: a child process (this test, executed again) runs a worker on a store in a loop-mounted ext4 image and
//! reports every id at the moment it acknowledges it. At a random instant the child is stopped and the image is
//! copied: what was not synced is in the page cache of the mounted filesystem and not in the image, as it would be
//! in memory and not on a disk. The copy is mounted, which replays its journal, and another worker gets every message
//! again: it must not run what was acknowledged, and must not know a message without the earlier ones of its key.
//! Then the next child works on that copy and has its power cut too, some of them while they open the store.
//! One queue keeps its records, another has a retention so short that blocks are collected all the time. A second test
//! does the same with messages that have every kind of effect (`effects.rs`), and while the store is compacted.
//!
//! That this test can fail is a test as well: a child whose fdatasync does nothing, by strace, loses ids.
//!
//! Needs root, loop devices, `mkfs.ext4` and `strace`. Where they are missing it says SKIP, and fails if `CI` is set.
//! Images lie in `TMPDIR`; in memory (`TMPDIR=/dev/shm`) a busy machine's disk does not slow it down.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use onceward::Clock;
use tokio::time::Instant;

use self::disk::Disk;
use self::ledger::{Ledger, Verdict};
use self::worker::{Child, From, Life, Sync, Task};

mod disk;
mod effects;
mod ledger;
mod worker;

/// The test that a child executes.
const CHILD_TEST: &str = "what_was_acknowledged_survives_a_power_cut_at_any_instant";

/// How often the power of one disk is cut before a new disk, and so a new store, is made.
const CUTS_PER_DISK: u32 = 5;

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_instant() {
    if worker::is_child() {
        return worker::run_as_child();
    }
    let Some(mut disk) = disk_or_skip(CHILD_TEST) else {
        return;
    };
    let cuts: u32 = variable("ONCEWARD_POWER_CUTS").unwrap_or(50);
    let seed = variable("ONCEWARD_POWER_CUT_SEED").unwrap_or_else(|| fastrand::u64(..));
    say(&format!(
        "replay: ONCEWARD_POWER_CUTS={cuts} ONCEWARD_POWER_CUT_SEED={seed} cargo test --test power_cut {CHILD_TEST}"
    ));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ledger = Ledger::default();
    let mut total = Verdict::default();
    let started = Instant::now();
    for number in 0..cuts {
        if number > 0 && number % CUTS_PER_DISK == 0 {
            disk = Disk::format().expect("another disk, as the first one could be made");
            ledger = Ledger::default();
        }
        let verdict = cut_power(&mut disk, &mut ledger, &mut rng, Sync::Real)
            .unwrap_or_else(|error| panic!("cut {number}: {error}; {}", disk.keep()));
        assert!(verdict.is_clean(), "cut {number}: {verdict:?}; {}", disk.keep());
        total.add(&verdict);
    }
    say(&format!("{cuts} cuts: {total}"));
    let seconds = started.elapsed().as_secs();
    assert!(
        total.cuts_with_new_ids * 2 > cuts,
        "most cuts were before the first acknowledgement: {total}"
    );
    assert!(cuts < 50 || total.forgotten > 0, "no block was collected: {total}");
    say(&format!("TIER power-cuts: {cuts} cuts, 0 violations, {seconds} s"));
}

#[test]
fn without_fdatasync_acknowledged_ids_are_lost() {
    let name = "without_fdatasync_acknowledged_ids_are_lost";
    if Command::new("strace").arg("-V").output().is_err() {
        return skip(name, "strace is missing: apt-get install strace");
    }
    let Some(mut disk) = disk_or_skip(name) else {
        return;
    };
    let mut ledger = Ledger::default();
    // Long enough for thousands of acknowledgements, short of the 5 s after which ext4 syncs by itself.
    let life = Life {
        test: CHILD_TEST,
        task: Task::Work,
        window: 300,
        from: From::FirstAck,
        time: Duration::from_secs(1),
    };
    match cut_after(&mut disk, &mut ledger, &life, Sync::Ignored) {
        Ok(verdict) => {
            say(&format!("without fdatasync: {verdict}"));
            assert!(!verdict.missing.is_empty(), "nothing was lost: {verdict}");
        }
        // It may not even be a store any more; a test that cannot mount its disk shows nothing.
        Err(error) => {
            say(&format!("without fdatasync: {error}"));
            assert!(error.contains("the store did not come back"), "{error}");
        }
    }
}

fn cut_power(
    disk: &mut Disk,
    ledger: &mut Ledger,
    rng: &mut fastrand::Rng,
    sync: Sync,
) -> Result<Verdict, String> {
    let window = rng.choice([1, 20, 300, 600]).unwrap_or(1);
    let (from, millis) = match rng.u8(0..4) {
        0 => (From::Opening, rng.u64(0..60)),
        _ => (From::FirstAck, rng.u64(0..400)),
    };
    let time = Duration::from_millis(millis);
    let life = Life { test: CHILD_TEST, task: Task::Work, window, from, time };
    cut_after(disk, ledger, &life, sync)
}

/// Lets a child work for its time, cuts the power and judges what the disk then holds; it takes the disk's place.
fn cut_after(
    disk: &mut Disk,
    ledger: &mut Ledger,
    life: &Life,
    sync: Sync,
) -> Result<Verdict, String> {
    let child = Child::start(disk.root(), ledger.next_number(), life, sync);
    if life.from == From::FirstAck {
        child.wait_for_ack();
    }
    std::thread::sleep(life.time);
    child.stop();
    let now_ms = Clock::default().now_ms();
    let copy = disk.image_at_this_instant();
    let acked = child.kill();
    *disk = copy.mount()?;
    ledger.acknowledged(&acked, life.window);
    ledger.judge(&worker::store_in(disk.root()), now_ms)
}

/// Written past the capture of test output: a skip must be seen.
fn say(line: &str) {
    writeln!(std::io::stderr(), "power cut: {line}").expect("stderr is there");
}

fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run, and CI must not skip it: {reason}"
    );
    say(&format!("SKIP {test}: {reason}"));
}

fn disk_or_skip(test: &str) -> Option<Disk> {
    match Disk::format() {
        Ok(disk) => Some(disk),
        Err(reason) => {
            skip(test, &format!("no loop-mounted ext4 (needs root and e2fsprogs): {reason}"));
            None
        }
    }
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    let parsed = value.parse().ok();
    assert!(parsed.is_some(), "{name} is no number: {value:?}");
    parsed
}
