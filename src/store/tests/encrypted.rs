//! Goal: what an encrypted store holds is readable with its key and with no other, and a change is noticed.
//!
//! Method: stores on real directories and on the simulated disk are written, looked at as bytes, harmed by whoever has
//! the disk and not the key, and opened with and without it.

use proptest::prelude::*;

use super::super::tools::{Damage, Watch, compact, export, import, verify};
use super::super::{SimulatedDisk, StoreKey};
use super::effects::{message, put, set_state, value};
use super::*;
use crate::message::{Key, Message};

const CANARY: &[u8] = b"4111-1111-1111-1111";

fn with_key(path: &Path, key: u8) -> StoreOptions {
    StoreOptions { key: Some(StoreKey::new([key; 32])), ..options(path) }
}

/// Leaves the canary in a state, small and large, in an outgoing message, in a result and as the id of a dead message.
async fn leave_canaries(options: &StoreOptions) {
    let write = async |store: &Store, queue| {
        let note = DeadNote {
            reason: Reason::Exhausted,
            error: "e".to_owned(),
            id: CANARY.to_vec(),
            first_seen_ms: 1,
        };
        let dead = Record { outcome: Outcome::Dead(Box::new(note)), ..record(1) };
        put(store, queue, Records::from_elem(dead, 1), Vec::new()).await;
        for (name, times) in [("small", 1), ("large", 500)] {
            let key = store.key_id(queue, &Key::new(name.as_bytes()));
            set_state(store, key, Some(value(CANARY.repeat(times)))).await;
        }
        let Record { identity, .. } = record(2);
        let sent = Message { body: CANARY.to_vec().into(), ..(*message(2, 10)).clone() };
        let key = store.key_id(queue, &Key::new(b"k"));
        let row =
            store.stage_outgoing(identity, key, &[Arc::new(sent)], 2000).await.expect("sound");
        let result = store.stage_result(identity, None, CANARY.to_vec().into()).await;
        let done = Record { result: Some(result.expect("sound")), ..record(2) };
        put(store, queue, Records::from_elem(done, 1), vec![Change::PutOutgoing(row)]).await;
        persist(store, queue, (10..500).map(record)).await;
    };
    on_store(options, write).await.expect("it opens");
}

fn files(path: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).expect("it can be read");
            found.push((path, bytes));
        }
    }
    found
}

fn canaries(path: &Path) -> usize {
    let count = |bytes: &[u8]| memchr::memmem::find_iter(bytes, CANARY).count();
    files(path).iter().map(|(_, bytes)| count(bytes)).sum()
}

async fn exported(options: &StoreOptions) -> String {
    let mut out = Vec::new();
    export(options, false, &mut out, &mut ()).await.expect("it exports");
    String::from_utf8(out).expect("text")
}

#[tokio::test]
async fn nothing_of_what_it_holds_is_on_the_disk_in_the_clear() {
    let plain = directory();
    leave_canaries(&options(plain.path())).await;
    assert!(canaries(plain.path()) >= 500, "the canary is looked for in the right way");
    let dir = directory();
    let sealed = with_key(dir.path(), 1);
    leave_canaries(&sealed).await;
    assert_eq!(canaries(dir.path()), 0);
    let key: Vec<u8> = vec![1; 32];
    for (path, bytes) in files(dir.path()) {
        let found = memchr::memmem::find(&bytes, &key);
        assert_eq!(found, None, "the key itself is in {}", path.display());
    }
    // And all of it is there for who has the key.
    assert_eq!(
        exported(&sealed).await.lines().count(),
        exported(&options(plain.path())).await.lines().count()
    );
    on_store(&sealed, async |store: &Store, _| assert_eq!(known(store, 10..500).await, 490))
        .await
        .expect("it opens");
}

#[tokio::test]
async fn without_its_key_it_does_not_open_and_says_why() {
    let dir = directory();
    let sealed = with_key(dir.path(), 1);
    leave_canaries(&sealed).await;
    for (options, said) in [
        (options(dir.path()), "no key was given"),
        (with_key(dir.path(), 2), "it is encrypted with the key of id"),
    ] {
        let error = on_store(&options, async |_, _| ()).await.expect_err("it must not open");
        assert!(matches!(error, StoreError::Key { .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
        let error = verify(&options, &mut ()).await.expect_err("nor for the tools");
        assert!(matches!(error, StoreError::Key { .. }), "{error:?}");
        let error = compact(&options, &mut ()).await.expect_err("nor for the tools");
        assert!(matches!(error, StoreError::Key { .. }), "{error:?}");
    }
    on_store(&sealed, async |store: &Store, _| assert_eq!(known(store, 10..500).await, 490))
        .await
        .expect("it is as it was");

    let plain = directory();
    written(plain.path(), 10).await;
    let opened = on_store(&with_key(plain.path(), 1), async |_, _| ()).await;
    let error = opened.expect_err("it must not open");
    assert!(error.to_string().contains("it is not encrypted, and a key was given"), "{error}");
    assert_eq!(known_in(&options(plain.path())).await, 10);
}

async fn known_in(options: &StoreOptions) -> usize {
    on_store(options, async |store: &Store, _| known(store, 0..1000).await).await.expect("it opens")
}

#[derive(Default)]
struct Told(Vec<String>);

impl Watch for Told {
    fn damaged(&mut self, damage: &Damage) {
        self.0.push(damage.to_string());
    }
}

/// All rows, as they lie in the engine.
async fn stored(path: &Path, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    bare(path).scan(prefix, None, usize::MAX).await.expect("the disk is sound")
}

async fn put_stored(path: &Path, rows: &[(Vec<u8>, Vec<u8>)]) {
    let mut batch = Batch::default();
    for (key, value) in rows {
        batch.put_stored(key.clone(), value.clone());
    }
    bare(path).commit(batch).await.expect("the disk is sound");
}

#[tokio::test]
async fn rows_that_change_places_or_come_from_elsewhere_are_damaged_and_named() {
    let (dir, other, plain) = (directory(), directory(), directory());
    let sealed = with_key(dir.path(), 1);
    leave_canaries(&sealed).await;
    leave_canaries(&with_key(other.path(), 1)).await;
    leave_canaries(&options(plain.path())).await;
    let states = stored(dir.path(), b"s").await;
    let [(first, a), (second, b)] = &states[..] else { panic!("{} states", states.len()) };
    let foreign = stored(other.path(), b"q").await;
    let clear = stored(plain.path(), b"o").await;
    let swapped = [(first.clone(), b.clone()), (second.clone(), a.clone())];
    put_stored(dir.path(), &swapped).await;
    put_stored(dir.path(), &foreign).await;
    put_stored(dir.path(), &clear).await;
    let mut told = Told::default();
    let verified = verify(&sealed, &mut told).await.expect("it opens");
    let of = |what: &str| {
        let is = |text: &&String| text.starts_with(what) && text.contains("it does not decrypt");
        told.0.iter().filter(is).count()
    };
    assert_eq!(of("state of key"), 2, "{:?}", told.0);
    assert_eq!(of("queue 0"), 1, "a row of another store with the same key: {:?}", told.0);
    assert_eq!(of("block 0 of outgoing"), 1, "a plain row: {:?}", told.0);
    assert!(verified.rows > 5, "and the others are read");
    let error = on_store(&sealed, async |_, _| ()).await.expect_err("it must not open");
    assert!(error.to_string().contains("it does not decrypt"), "{error}");
}

#[tokio::test]
async fn a_compacted_store_stays_encrypted_and_an_import_changes_the_key() {
    let dir = directory();
    let sealed = with_key(dir.path(), 1);
    leave_canaries(&sealed).await;
    let before = exported(&sealed).await;
    let rows = stored(dir.path(), b"b").await;
    compact(&sealed, &mut ()).await.expect("it compacts");
    assert_eq!(stored(dir.path(), b"b").await, rows, "copied as they are");
    assert_eq!(canaries(dir.path()), 0);
    // But for the header, where the epoch and with it the time of the look is.
    let body =
        |text: &str| text.lines().skip(1).take_while(|line| !line.contains("blake3")).count();
    assert_eq!(body(&exported(&sealed).await), body(&before));

    let target = directory();
    let rotated = with_key(target.path(), 2);
    import(&rotated, &mut before.as_bytes(), &mut ()).await.expect("it imports");
    assert_eq!(canaries(target.path()), 0);
    assert_eq!(known_in(&rotated).await, 492);
    let opened = on_store(&with_key(target.path(), 1), async |_, _| ()).await;
    assert!(matches!(opened, Err(StoreError::Key { .. })), "the old key is worth nothing");
}

#[tokio::test]
async fn the_largest_encrypted_values_never_spill_into_blob_files() {
    let dir = directory();
    let sealed = with_key(dir.path(), 1);
    let write = async |store: &Store, queue| {
        for first in (0..600).step_by(100) {
            persist(store, queue, (first..first + 100).map(dead_record)).await;
        }
    };
    on_store(&sealed, write).await.expect("it opens");
    let blobs = fs::read_dir(dir.path().join("blobs")).expect("sled makes it").count();
    assert_eq!(blobs, 0);
    assert_eq!(known_in(&sealed).await, 600);
}

#[tokio::test]
async fn a_power_cut_leaves_an_encrypted_store_what_was_synced() {
    let disk = SimulatedDisk::new();
    let sealed =
        StoreOptions { simulated: Some(disk.clone()), ..with_key(Path::new("simulated"), 1) };
    for life in 0..5 {
        let write = async |store: &Store, queue| {
            assert_eq!(known(store, 0..1000).await, life * 100);
            let first = 100 * life as u64;
            persist(store, queue, (first..first + 100).map(record)).await;
            disk.set_sync_delay(Duration::from_secs(3600));
            let late = store.persist(queue, Records::from_elem(record(900), 1), Vec::new());
            let waited = tokio::time::timeout(Duration::from_millis(20), late).await;
            assert!(waited.is_err(), "its sync has not ended");
            disk.cut();
            disk.set_sync_delay(Duration::ZERO);
        };
        let (store, committer, queues) =
            Store::open(&sealed, &[queue("orders")], &|_| ()).await.expect("it opens");
        let stopping = CancellationToken::new();
        tokio::select! {
            // It ends with the power, or waits for it.
            ran = committer.run(stopping) => assert!(ran.is_err(), "the power was cut"),
            () = write(&store, queues[0].own) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_changed_byte_of_any_row_is_noticed(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads");
        runtime.block_on(async {
            let disk = SimulatedDisk::new();
            let sealed = StoreOptions {
                simulated: Some(disk.clone()),
                ..with_key(Path::new("simulated"), 1)
            };
            let write = async |store: &Store, queue| persist(store, queue, (0..3).map(record)).await;
            on_store(&sealed, write).await.expect("it opens");
            let rows = disk.open().expect("free").scan(b"", None, 100).await.expect("sound");
            let mut rng = fastrand::Rng::with_seed(seed);
            let (key, mut value) = rows[rng.usize(..rows.len())].clone();
            let at = rng.usize(..value.len());
            value[at] ^= 1 << rng.u8(..8);
            let mut batch = Batch::default();
            batch.put_stored(key.clone(), value);
            disk.open().expect("free").commit(batch).await.expect("sound");
            let opened = on_store(&sealed, async |_, _| ()).await;
            let error = opened.expect_err("it must not open");
            // A changed id of the key, with its checksum broken, is no other key.
            assert!(matches!(error, StoreError::Damaged { .. }), "{key:?} at {at}: {error:?}");
        });
    }
}
