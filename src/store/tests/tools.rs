//! Goal: an export has every kind of row, an import gives all of them back, and neither trusts what it reads.
//!
//! Method: a store with something of each kind is exported, imported, and exported again; then bytes of the export are
//! changed at random.

use std::collections::BTreeSet;

use super::super::tools::{Damage, ImportError, Watch};
use super::effects::{Place, message, put, set_state, value, write_groups};
use super::*;
use crate::identity::SequenceId;
use crate::message::Key;

/// Larger than a chunk of an export.
const LARGE_BYTES: usize = 70_000;

fn one(record: Record) -> Records {
    Records::from_elem(record, 1)
}

/// Leaves something of each kind.
async fn fill(place: &Place) {
    let clock = place.options.clock.clone();
    place
        .open(async |store, queue| {
            persist(store, queue, (0..300).map(record)).await;
            clock.advance(RETENTION);
            write_groups(store, queue, 5).await;
            persist(store, queue, (300..900).map(record)).await;
            let dead = vec![Change::PutPending(dead_record(900).identity)];
            put(store, queue, one(dead_record(900)), dead).await;
            let attempts = Attempts {
                queue,
                started: 3,
                unfinished: true,
                alone: false,
                first_seen_ms: 5,
                updated_at_ms: 6,
            };
            let tried = vec![Change::PutAttempts(record(901).identity, attempts)];
            put(store, queue, Records::new(), tried).await;
            for (key, bytes) in [("small", 10), ("large", LARGE_BYTES), ("chunks", 64_000)] {
                let key = store.key_id(queue, &Key::new(key.as_bytes()));
                set_state(store, key, Some(value(vec![7; bytes]))).await;
            }
            let gone = store.key_id(queue, &Key::new(b"cleared"));
            set_state(store, gone, Some(KeyState { value: None, latest: Some(4) })).await;
            for (name, result) in [("begun", None), ("done", Some(vec![1; LARGE_BYTES]))] {
                let step = store.put_step(record(901).identity, queue, name, result).await;
                assert!(step.is_some(), "the store is sound");
            }
            for number in [902, 903, 904] {
                let sent = [message(number, 10), message(number, 4000 * (number as usize - 902))];
                let Record { identity, .. } = record(number);
                let key = store.key_id(queue, &Key::new(b"k"));
                let row = store.stage_outgoing(identity, key, &sent, 2000).await.expect("sound");
                let result = vec![2; if number == 903 { LARGE_BYTES } else { 20 }];
                let content_type = Some("text/plain".to_owned());
                let result = store.stage_result(identity, content_type, result.into()).await;
                let done = Record { result: Some(result.expect("sound")), ..record(number) };
                put(store, queue, one(done), vec![Change::PutOutgoing(row)]).await;
            }
            let producer = Identity::from_bytes([9; 16]);
            let numbers = [0, 1, 2, 5, 6, 100, u64::MAX - 1];
            let advance = |number| Change::Advance(SequenceId { producer, number });
            put(store, queue, Records::new(), numbers.map(advance).into()).await;
        })
        .await;
}

#[derive(Default)]
struct Found(Vec<String>);

impl Watch for Found {
    fn damaged(&mut self, damage: &Damage) {
        self.0.push(damage.to_string());
    }
}

async fn exported(options: &StoreOptions) -> String {
    let mut out = Vec::new();
    export(options, false, &mut out, &mut ()).await.expect("the store is sound");
    String::from_utf8(out).expect("JSON is text")
}

/// All but the first line, which has the epoch, and the last, which has the hash.
fn middle(export: &str) -> Vec<&str> {
    let lines: Vec<&str> = export.lines().collect();
    lines[1..lines.len() - 1].to_vec()
}

#[tokio::test]
async fn every_kind_of_row_survives_export_and_import() {
    let place = Place::sled();
    fill(&place).await;
    let export = exported(&place.options).await;
    let kinds: BTreeSet<&str> =
        export.lines().skip(1).filter_map(|line| line.split('"').nth(1)).collect();
    let expected = [
        "attempts",
        "chunk",
        "counts",
        "end",
        "ghosts",
        "next_block",
        "outgoing",
        "pending",
        "queue",
        "record",
        "state",
        "step",
        "watermark",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
    assert!(export.lines().all(|line| line.len() < 64 << 10), "lines are bounded");

    let copy = Place::sled();
    let imported = import(&copy.options, &mut export.as_bytes(), &mut ()).await;
    assert_eq!(imported.expect("it is sound").records, 604);
    let again = exported(&copy.options).await;
    assert_eq!(middle(&again), middle(&export));
    for options in [&place.options, &copy.options] {
        let mut found = Found::default();
        let verified = verify(options, &mut found).await.expect("it opens");
        assert_eq!((verified.damages, verified.left_over), (0, 0), "{:?}", found.0);
    }
    let first = stats(&place.options, &mut ()).await.expect("sound");
    let second = stats(&copy.options, &mut ()).await.expect("sound");
    assert_eq!((first.ghosts, first.queues), (second.ghosts, second.queues));

    copy.open(async |store, queue| {
        assert_eq!(known(store, 300..900).await, 600);
        assert!(store.has_expired(record(7).identity));
        assert!(store.is_pending(dead_record(900).identity));
        let unsent = store.take_unsent();
        let sent: Vec<Identity> = unsent.iter().map(|row| row.identity).collect();
        assert_eq!(sent, [902, 903, 904].map(|number| record(number).identity));
        let key = store.key_id(queue, &Key::new(b"large"));
        let state = store.state(key).await.expect("it can be read").expect("there is one");
        assert_eq!(state.value.as_ref().map(|value| value.bytes.len()), Some(LARGE_BYTES));
        let found = store.lookup(record(903).identity).await.expect("sound").expect("known");
        let result = found.record.result.expect("there is one");
        assert_eq!(store.fetch_result(&result).await.expect("it is whole").len(), LARGE_BYTES);
        let sequence = SequenceId { producer: Identity::from_bytes([9; 16]), number: 6 };
        assert!(!store.watermark(sequence).is_new());
        let sequence = SequenceId { number: 4, ..sequence };
        assert!(store.watermark(sequence).is_new());
        // New values get ids that no imported one has.
        set_state(store, key, Some(value(vec![8; LARGE_BYTES]))).await;
    })
    .await;
    let mut found = Found::default();
    verify(&copy.options, &mut found).await.expect("it opens");
    assert_eq!(found.0, Vec::<String>::new());

    let before = stats(&copy.options, &mut ()).await.expect("sound");
    compact(&copy.options, &mut ()).await.expect("sound");
    let after = stats(&copy.options, &mut ()).await.expect("sound");
    assert_eq!((before.rows_bytes, before.queues), (after.rows_bytes, after.queues));
}

#[tokio::test]
async fn an_export_with_any_byte_changed_is_refused_and_never_a_panic() {
    let place = Place::sled();
    fill(&place).await;
    let export = exported(&place.options).await.into_bytes();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let copy = Place::sled();
    let ends: Vec<usize> = (0..export.len()).filter(|at| export[*at] == b'\n').collect();
    for _ in 0..60 {
        let mut changed = export.clone();
        // As many lines of each kind as there are few.
        let line = if rng.bool() { rng.usize(..20) } else { rng.usize(..ends.len()) };
        let line = if rng.bool() { line } else { ends.len() - 1 - line };
        let from = line.checked_sub(1).map_or(0, |before| ends[before] + 1);
        let at = rng.usize(from..ends[line]);
        changed[at] = match rng.u8(0..3) {
            0 if changed[at].is_ascii_digit() => b'9',
            0 | 1 => changed[at] ^ (1 << rng.u8(0..8)),
            _ => rng.u8(..),
        };
        if changed == export {
            continue;
        }
        let imported = import(&copy.options, &mut &changed[..], &mut ()).await;
        let text = String::from_utf8_lossy(&changed[from..ends[line].min(from + 300)]).into_owned();
        assert!(matches!(imported, Err(ImportError::Refused { .. })), "{text}: {imported:?}");
    }
    import(&copy.options, &mut &export[..], &mut ()).await.expect("the directory is free");
}
