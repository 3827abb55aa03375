//! Goal: each rule that sled 0.34.7 taught, and each kind of damage, is held by a test on a real directory.
//!
//! Method: a store or its bare engine is opened, left, harmed from outside as a crash or a bad disk does, and opened
//! again. Opening either gives back everything or says what is wrong; it never gives back less.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::backend::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Batch, VALUE_BYTES_MAX};
use super::engine::{SEGMENT_BYTES, SledBackend};
use super::record::Location;
use super::record::{FORMAT, Meta};
use super::*;
use crate::identity::{Fingerprint, ID_BYTES_MAX};

mod effects;
mod encrypted;
mod expiry;
mod forget;
mod fuzz;
mod limits;
mod tools;

const RETENTION: Duration = Duration::from_secs(60);

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

fn options(path: &Path) -> StoreOptions {
    let mut options = StoreOptions::new(path);
    options.clock = Clock::manual(1_700_000_000_000);
    options
}

fn queue(name: &str) -> QueueRetention {
    QueueRetention { name: name.to_owned(), retention: RETENTION, classes: Vec::new() }
}

pub(super) fn record(number: u64) -> Record {
    let mut identity = [0; 16];
    identity[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    identity[8..].copy_from_slice(&number.to_le_bytes());
    Record {
        identity: Identity::from_bytes(identity),
        fingerprint: fingerprint(number),
        attempts: 1,
        outcome: Outcome::Done,
        result: None,
    }
}

fn fingerprint(number: u64) -> Fingerprint {
    postcard::from_bytes(&number.to_le_bytes()).expect("a fingerprint is eight bytes")
}

/// The largest record that there is.
pub(super) fn dead_record(number: u64) -> Record {
    let note = DeadNote {
        reason: Reason::Exhausted,
        error: "e".repeat(ERROR_BYTES_MAX),
        id: vec![b'i'; ID_BYTES_MAX],
        first_seen_ms: 1_700_000_000_000,
    };
    Record { outcome: Outcome::Dead(Box::new(note)), ..record(number) }
}

/// Opens the store, works on it beside its committer, and closes it.
async fn on_store<T>(
    options: &StoreOptions,
    work: impl AsyncFnOnce(&Store, QueueId) -> T,
) -> Result<T, StoreError> {
    let (store, committer, queues) = Store::open(options, &[queue("orders")], &|_| ()).await?;
    let stopping = CancellationToken::new();
    let worked = async {
        let worked = work(&store, queues[0].own).await;
        stopping.cancel();
        worked
    };
    let (ran, worked) = tokio::join!(committer.run(stopping.clone()), worked);
    ran?;
    Ok(worked)
}

async fn persist(store: &Store, queue: QueueId, records: impl Iterator<Item = Record>) {
    let persisted =
        records.map(|record| store.persist(queue, Records::from_elem(record, 1), Vec::new()));
    let proofs = join_all(persisted).await;
    assert!(proofs.iter().all(Option::is_some), "the store is sound");
}

async fn known(store: &Store, numbers: std::ops::Range<u64>) -> usize {
    let mut known = 0;
    for number in numbers {
        let found = store.lookup(record(number).identity).await;
        known += usize::from(found.expect("the store is sound").is_some());
    }
    known
}

/// Leaves a store with these records in a directory.
async fn written(path: &Path, records: u64) {
    let write = async |store: &Store, queue| persist(store, queue, (0..records).map(record)).await;
    on_store(&options(path), write).await.expect("it opens");
}

async fn open_error(path: &Path) -> StoreError {
    let opened = on_store(&options(path), async |_, _| ()).await;
    opened.expect_err("it must not open")
}

fn bare(path: &Path) -> SledBackend {
    SledBackend::open(path, 1 << 20).expect("it opens")
}

async fn put(backend: &SledBackend, key: Vec<u8>, value: Vec<u8>) {
    let mut batch = Batch::default();
    batch.put(key, value);
    backend.commit(batch).await.expect("the disk is sound");
}

#[tokio::test]
async fn the_largest_values_never_spill_into_blob_files() {
    let dir = directory();
    let path = dir.path().join("store");
    let write = async |store: &Store, queue| {
        persist(store, queue, (0..1000).map(dead_record)).await;
    };
    on_store(&options(&path), write).await.expect("it opens");
    let backend = bare(&path);
    for number in 0..1000_u64 {
        let value = (0..VALUE_BYTES_MAX).map(|_| fastrand::u8(..)).collect();
        // A prefix that no row has, and an order in which leaves split anywhere.
        let key = [&b"z"[..], &number.reverse_bits().to_be_bytes()].concat();
        put(&backend, key, value).await;
    }
    drop(backend);
    let blobs = fs::read_dir(path.join("blobs")).expect("sled makes it");
    assert_eq!(blobs.count(), 0);
}

#[tokio::test]
async fn a_snapshot_that_a_crash_left_unfinished_is_removed_and_nothing_is_lost() {
    let dir = directory();
    written(dir.path(), 100).await;
    let unfinished = dir.path().join("snap.0000000000000FFF.generating");
    fs::write(&unfinished, b"half").expect("the directory is ours");
    let look = async |store: &Store, _| known(store, 0..100).await;
    let count = on_store(&options(dir.path()), look).await;
    assert_eq!(count.expect("it opens"), 100);
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn a_store_has_one_owner_and_is_free_when_that_one_closes_it() {
    let dir = directory();
    let owner = bare(dir.path());
    let refused = open_error(dir.path()).await;
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused:?}");
    drop(owner);
    written(dir.path(), 1).await;
}

#[tokio::test]
async fn the_directory_is_for_its_owner_only() {
    let dir = directory();
    let path = dir.path().join("made").join("here");
    written(&path, 1).await;
    let mode = fs::metadata(&path).expect("it was made").permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_store_that_lost_its_log_is_damaged_and_never_silently_empty() {
    fn is_snapshot(name: &str) -> bool {
        name.starts_with("snap.")
    }
    for (harm, with_snapshots) in
        [("remove", false), ("remove", true), ("empty", false), ("empty", true)]
    {
        let dir = directory();
        written(dir.path(), 100).await;
        let log = dir.path().join("db");
        match harm {
            "remove" => fs::remove_file(&log).expect("it is there"),
            _ => fs::write(&log, b"").expect("it is ours"),
        }
        for entry in fs::read_dir(dir.path()).expect("it is there") {
            let entry = entry.expect("it can be read");
            if with_snapshots && is_snapshot(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).expect("it is ours");
            }
        }
        for _ in 0..2 {
            let error = open_error(dir.path()).await;
            let is_damaged = matches!(error, StoreError::Damaged { .. });
            assert!(is_damaged, "{harm} {with_snapshots}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_in_a_block_is_damage_and_the_block_is_named() {
    let dir = directory();
    written(dir.path(), 100).await;
    let backend = bare(dir.path());
    let blocks = backend.scan(record::BLOCK_PREFIX, None, usize::MAX).await;
    let (key, mut value) = blocks.expect("it can be read").pop().expect("it has blocks");
    let sequence = Location::from_key(&key).expect("its key").sequence();
    let middle = value.len() / 2;
    value[middle] ^= 1;
    put(&backend, key, value).await;
    drop(backend);
    let error = open_error(dir.path()).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    let named = format!("block {sequence}: checksum does not match");
    assert!(error.to_string().contains(&named), "{error}");
}

#[tokio::test]
async fn a_store_without_its_own_row_is_damaged() {
    let dir = directory();
    written(dir.path(), 1).await;
    let backend = bare(dir.path());
    let mut batch = Batch::default();
    batch.remove(record::META_KEY.to_vec());
    backend.commit(batch).await.expect("the disk is sound");
    drop(backend);
    let error = open_error(dir.path()).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unknown_format_is_told_with_both_numbers() {
    let dir = directory();
    let meta = Meta { format: FORMAT + 1, hash_key: [7; 32], epoch: 1 };
    let backend = bare(dir.path());
    put(&backend, record::META_KEY.to_vec(), record::seal(&meta)).await;
    drop(backend);
    let error = open_error(dir.path()).await;
    let StoreError::Format { found, known, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((found, known), (FORMAT + 1, FORMAT));
}

#[tokio::test]
async fn the_epoch_rises_at_each_open_and_the_hash_key_stays() {
    let dir = directory();
    let mut hash_keys = Vec::new();
    for epoch in 1..=3 {
        let look = async |store: &Store, _| {
            assert_eq!(store.shared.epoch, epoch);
            store.hash_key().identity(&crate::identity::ScopeName::global(), b"id")
        };
        hash_keys.push(on_store(&options(dir.path()), look).await.expect("it opens"));
    }
    hash_keys.dedup();
    assert_eq!(hash_keys.len(), 1);
}

#[tokio::test]
async fn an_index_that_is_rebuilt_is_the_index_that_was() {
    let dir = directory();
    let first = async |store: &Store, queue| {
        persist(store, queue, (0..3000).map(record)).await;
        persist(store, queue, (3000..3100).map(dead_record)).await;
        (store.shared.index.len(), known(store, 0..3200).await)
    };
    let before = on_store(&options(dir.path()), first).await.expect("it opens");
    assert_eq!(before, (3100, 3100));
    let second = async |store: &Store, _| (store.shared.index.len(), known(store, 0..3200).await);
    let after = on_store(&options(dir.path()), second).await.expect("it opens");
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_worker_may_have_more_queues_than_a_batch_has_operations() {
    let dir = directory();
    let queues: Vec<_> = (0..600).map(|number| queue(&format!("q{number}"))).collect();
    let mut opened = Vec::new();
    for _ in 0..2 {
        let (_, _, ids) =
            Store::open(&options(dir.path()), &queues, &|_| ()).await.expect("it opens");
        opened.push(ids.iter().map(|ids| ids.own).collect::<Vec<_>>());
    }
    assert_eq!(opened[0], opened[1]);
    assert_eq!(opened[0].len(), 600);
}

/// sled takes a record with a wrong checksum for the torn end of its log, and forgets what comes after it.
#[tokio::test]
async fn a_flipped_byte_in_the_log_is_damage_or_changes_nothing() {
    const RECORDS: u64 = 20_000;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = directory();
    let write = async |store: &Store, queue| {
        for first in (0..RECORDS).step_by(200) {
            persist(store, queue, (first..first + 200).map(record)).await;
        }
    };
    on_store(&options(dir.path()), write).await.expect("it opens");
    let log = fs::read(dir.path().join("db")).expect("it is there");
    let used = log.iter().rposition(|byte| *byte != 0).expect("it has rows");
    let mut shortened = Vec::new();
    for _ in 0..60 {
        let copy = directory();
        for entry in fs::read_dir(dir.path()).expect("it is there") {
            let entry = entry.expect("it can be read");
            if entry.file_type().expect("it has one").is_file() {
                fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("room");
            }
        }
        let mut log = log.clone();
        let at = rng.usize(0..used);
        log[at] ^= 1 << rng.u8(0..8);
        fs::write(copy.path().join("db"), log).expect("room");
        let count = async |store: &Store, _| store.shared.index.len() as u64;
        if let Ok(left) = on_store(&options(copy.path()), count).await
            && left != RECORDS
        {
            shortened.push((at, left));
        }
    }
    assert!(shortened.is_empty(), "byte and records left: {shortened:?}");
}

const LOG_CHILD: &str = "ONCEWARD_TEST_LOG_CHILD";

/// sled frees a segment when its replacement is written, not when it is synced: so at most one may be written between
/// two syncs. What it writes for one batch is counted in a process of its own, by the bytes of its write calls.
#[test]
fn the_largest_batches_make_less_log_than_a_segment() {
    let child = std::process::Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", "store::tests::the_log_of_the_largest_batches", "--nocapture"])
        .env(LOG_CHILD, "1")
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    let worst = said.lines().find_map(|line| line.strip_prefix("worst ")?.parse::<u64>().ok());
    let worst = worst.unwrap_or_else(|| panic!("the child has measured nothing: {said}"));
    println!("at most {worst} bytes of log a batch");
    assert!(worst < SEGMENT_BYTES as u64, "{worst} bytes");
}

/// The child of the test above; without its variable it does nothing.
#[tokio::test]
async fn the_log_of_the_largest_batches() {
    if std::env::var_os(LOG_CHILD).is_none() {
        return;
    }
    const BATCHES: u64 = 200;
    let mut worst = 0;
    // What makes the most log is looked at encrypted too: that adds 41 bytes to a row.
    let plain = MIXES.iter().map(|mix| (mix, None));
    let encrypted = MIXES.iter().filter(|(what, _)| *what == "small states");
    let encrypted = encrypted.map(|mix| (mix, Some(StoreKey::new([1; 32]))));
    for ((what, mix), key) in plain.chain(encrypted) {
        let dir = directory();
        let options = StoreOptions { key: key.clone(), ..options(dir.path()) };
        let backend = super::encrypted::wrap(Arc::new(bare(dir.path())), &options).await;
        let backend = backend.expect("it is empty");
        // What a busier time has left behind.
        for number in 0..BATCHES * REMOVED_MAX / 8 {
            let mut batch = Batch::default();
            for row in number * 8..(number + 1) * 8 {
                batch.put(numbered(b"old", row), vec![7; VALUE_BYTES_MAX - 6]);
            }
            backend.commit(batch).await.expect("the disk is sound");
        }
        let (mut worst_of_mix, mut removed) = (0, 0);
        for number in 0..BATCHES {
            let batch = largest_batch(*mix, number, &mut removed);
            let before = written_bytes();
            backend.commit(batch).await.expect("the disk is sound");
            worst_of_mix = worst_of_mix.max(written_bytes() - before);
        }
        println!("\n{what}, encrypted {}: {worst_of_mix}", key.is_some());
        worst = worst.max(worst_of_mix);
    }
    println!("\nworst {worst}");
}

/// What fills a batch, as long as there is room: a number of rows of each kind.
#[derive(Clone, Copy)]
struct Mix {
    /// Full blocks or pieces of spilled values, one after the other.
    blocks: u64,
    /// Rows of any key, and their bytes: states, steps, watermarks, attempts.
    anywhere: usize,
    anywhere_bytes: usize,
    /// Of how many keys.
    keys: u64,
}

const MIXES: &[(&str, Mix)] = &[
    ("blocks", Mix { blocks: 6, anywhere: 200, anywhere_bytes: 40, keys: u64::MAX }),
    ("watermarks", Mix { blocks: 0, anywhere: 200, anywhere_bytes: 3500, keys: 300 }),
    ("large states", Mix { blocks: 0, anywhere: 200, anywhere_bytes: 2700, keys: 3000 }),
    ("middling states", Mix { blocks: 0, anywhere: 200, anywhere_bytes: 510, keys: 10_000 }),
    ("small states", Mix { blocks: 0, anywhere: 200, anywhere_bytes: 100, keys: 50_000 }),
    ("new states", Mix { blocks: 0, anywhere: 200, anywhere_bytes: 700, keys: u64::MAX }),
    ("nothing", Mix { blocks: 0, anywhere: 0, anywhere_bytes: 0, keys: 1 }),
];

/// More than collection ever removes of blocks and of pieces.
const REMOVED_MAX: u64 = 32;

fn numbered(prefix: &[u8], number: u64) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

/// As much as a group takes, and what collection adds to it.
fn largest_batch(mix: Mix, number: u64, removed: &mut u64) -> Batch {
    const COLLECT_BYTES: usize = 15 * 1024;
    let mut batch = Batch::default();
    let value = |bytes: usize| vec![number as u8; bytes];
    for block in number * mix.blocks..(number + 1) * mix.blocks {
        batch.put(numbered(b"b", block), value(VALUE_BYTES_MAX - 6));
    }
    for _ in 0..mix.anywhere {
        let bytes = 20 + Batch::bytes_anywhere(mix.anywhere_bytes);
        if batch.bytes() + bytes + COLLECT_BYTES > BATCH_BYTES_MAX {
            break;
        }
        let hash = blake3::hash(&fastrand::u64(..mix.keys).to_le_bytes());
        let key = [&b"s00"[..], &hash.as_bytes()[..16]].concat();
        batch.put_anywhere(key, value(mix.anywhere_bytes));
    }
    // Blocks with their ghosts, and pieces without.
    for block in 0..REMOVED_MAX {
        if batch.bytes() + 2100 > BATCH_BYTES_MAX || batch.len() + 2 > BATCH_OPS_MAX {
            break;
        }
        if block % 4 > 0 {
            batch.put(numbered(b"g", number * REMOVED_MAX + block), value(900));
        }
        batch.remove_large(numbered(b"old", *removed));
        *removed += 1;
    }
    batch
}

/// Bytes that this process has handed to write calls.
fn written_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("Linux");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("a number")
}
