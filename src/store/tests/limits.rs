//! Goal: what the store keeps beside records is bounded, and damage in it is named.
//!
//! Method: as in `effects.rs`; rows are harmed through the bare engine.

use super::super::rows::INLINE_BYTES_MAX;
use super::super::spill::{PIECE_PREFIX, after_value};
use super::super::{outgoing, record, steps, watermark};
use super::effects::{Place, message, put, rows, set_state, stage_outgoing, value};
use super::*;
use crate::identity::SequenceId;
use crate::message::Key;

#[tokio::test]
async fn watermarks_survive_and_their_rows_are_bounded() {
    let producer = Identity::from_bytes([5; 16]);
    let sequence = |number| SequenceId { producer, number };
    for place in Place::each() {
        place
            .open(async |store, queue| {
                for first in (1..8000).step_by(200) {
                    // Each second number never comes.
                    let numbers = (first..first + 200).step_by(2);
                    let advances = numbers.map(|number| Change::Advance(sequence(number)));
                    put(store, queue, Records::new(), advances.collect()).await;
                }
            })
            .await;
        place
            .open(async |store, _| {
                let row = rows(store, watermark::WATERMARK_PREFIX).await;
                assert!(row[0].1.len() <= watermark::MARKS_BYTES_MAX && row.len() == 1);
                assert!(matches!(store.watermark(sequence(8001)), Watermark::New));
                assert!(matches!(store.watermark(sequence(7998)), Watermark::New));
                assert!(matches!(store.watermark(sequence(7999)), Watermark::Done(_)));
                assert!(matches!(store.watermark(sequence(0)), Watermark::Unsure));
                let other = SequenceId { producer: Identity::from_bytes([6; 16]), number: 0 };
                assert!(matches!(store.watermark(other), Watermark::New));
            })
            .await;
    }
}

#[tokio::test]
async fn a_commit_of_a_hundred_messages_fits_a_batch() {
    for place in Place::each() {
        place
            .open(async |store, queue| {
                let producer = |number: u64| Identity::from_bytes((number as u128).to_le_bytes());
                // Producers with as many gaps as a row can hold.
                for number in 0..100 {
                    let advances = (0..150).map(|at| {
                        Change::Advance(SequenceId { producer: producer(number), number: at * 99 })
                    });
                    put(store, queue, Records::new(), advances.collect()).await;
                }
                let mut changes = Vec::new();
                for number in 0..100 {
                    let sequence = SequenceId { producer: producer(number), number: u64::MAX };
                    changes.push(Change::Advance(sequence));
                    changes.push(Change::RemoveAttempts(record(number).identity));
                }
                let key = store.key_id(queue, &Key::new(b"k"));
                let large = Some(value(vec![0; INLINE_BYTES_MAX - 1]));
                let state = store.stage_state(key, &None, large, &mut changes);
                state.await.expect("the store is sound");
                let messages = [message(1, INLINE_BYTES_MAX - 50)];
                let identity = record(0).identity;
                let staged = stage_outgoing(store, identity, key, &messages, &mut changes);
                staged.await.expect("the store is sound");
                put(store, queue, (0..100).map(record).collect(), changes).await;
                assert_eq!(known(store, 0..100).await, 100);
            })
            .await;
    }
}

/// One commit of each kind of row that a batch of messages can have, as large as the runtime lets it be.
#[tokio::test]
async fn the_largest_commit_that_there_can_be_fits_a_batch() {
    const PRODUCERS: u64 = 8;
    for place in Place::each() {
        place
            .open(async |store, queue| {
                let producer = |number: u64| Identity::from_bytes((number as u128).to_le_bytes());
                let sequence = |number: u64, at: u64| {
                    Change::Advance(SequenceId { producer: producer(number), number: at })
                };
                // With as many and as wide gaps as a row can hold.
                for number in 0..PRODUCERS {
                    for round in 0..5 {
                        let advances =
                            (1..100).map(|at| sequence(number, (round * 100 + at) << 40));
                        put(store, queue, Records::new(), advances.collect()).await;
                    }
                }
                let mut changes = Vec::new();
                let key = store.key_id(queue, &Key::new(b"k"));
                let mut room = 4 * 1024;
                for number in 0..100 {
                    let identity = record(number).identity;
                    changes.push(sequence(number % PRODUCERS, u64::MAX - 1 - (number << 20)));
                    changes.push(Change::RemoveAttempts(identity));
                    let bytes = if number < 2 { 2000 } else { 200 };
                    let messages = [message(number, bytes)];
                    let row = store.stage_outgoing(identity, key, &messages, room).await;
                    let row = row.expect("the store is sound");
                    if let Stored::Inline(bytes) = &row.messages {
                        room -= bytes.len();
                    }
                    changes.push(Change::PutOutgoing(row));
                }
                for step in 0..64 {
                    changes.push(Change::RemoveStep(record(0).identity, format!("step {step}")));
                }
                let large = Some(value(vec![0; INLINE_BYTES_MAX - 1]));
                let state = store.stage_state(key, &None, large, &mut changes);
                state.await.expect("the store is sound");
                put(store, queue, (0..100).map(record).collect(), changes).await;
                assert_eq!(known(store, 0..100).await, 100);
            })
            .await;
    }
}

#[tokio::test]
async fn damage_in_any_row_is_named() {
    let producer = Identity::from_bytes([5; 16]);
    let kinds: &[(&[u8], &str)] = &[
        (PIECE_PREFIX, "piece 0 of value"),
        (state::STATE_PREFIX, "the state of key"),
        (steps::STEP_PREFIX, "a step of"),
        (outgoing::OUTGOING_PREFIX, "block 0 of outgoing messages"),
        (watermark::WATERMARK_PREFIX, "the watermark of"),
        (ghosts::GHOST_PREFIX, "the expired records of block"),
        (record::QUEUE_PREFIX, "a queue"),
    ];
    for (prefix, named) in kinds {
        let place = Place::sled();
        let key = place
            .open(async |store, queue| {
                let identity = record(1).identity;
                persist(store, queue, (0..10).map(record)).await;
                place.options.clock.advance(RETENTION);
                let key = store.key_id(queue, &Key::new(b"k"));
                set_state(store, key, Some(value(vec![1; 9000]))).await;
                let _persisted = store.put_step(identity, queue, "s", None).await;
                let sequence = SequenceId { producer, number: 4 };
                let mut rows = vec![Change::Advance(sequence)];
                let messages = [message(1, 10)];
                stage_outgoing(store, identity, key, &messages, &mut rows)
                    .await
                    .expect("it is sound");
                put(store, queue, Records::new(), rows).await;
                key
            })
            .await;
        let backend = bare(&place.options.path);
        let (row, mut bytes) =
            backend.scan(prefix, None, 1).await.expect("it can be read").pop().expect("it has one");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        super::put(&backend, row, bytes).await;
        drop(backend);
        let read = async |store: &Store, _| store.state(key).await.map(drop);
        let damage = match on_store(&place.options, read).await {
            Ok(read) => read.expect_err("it is damaged"),
            Err(damage) => damage,
        };
        assert!(matches!(damage, StoreError::Damaged { .. }), "{damage:?}");
        assert!(damage.to_string().contains(named), "{damage}");
    }
}

#[tokio::test]
async fn a_missing_piece_is_damage_and_is_named() {
    let place = Place::sled();
    let key = place
        .open(async |store, queue| {
            let key = store.key_id(queue, &Key::new(b"k"));
            set_state(store, key, Some(value(vec![1; 9000]))).await;
            key
        })
        .await;
    let backend = bare(&place.options.path);
    let pieces = backend.scan(PIECE_PREFIX, None, 9).await.expect("it can be read");
    assert!(pieces.iter().all(|(key, _)| *key < after_value(u64::MAX)));
    let mut batch = Batch::default();
    batch.remove(pieces[1].0.clone());
    backend.commit(batch).await.expect("the disk is sound");
    drop(backend);
    let read = place.open(async |store, _| store.state(key).await.map(drop)).await;
    let error = read.expect_err("it is damaged");
    assert!(error.to_string().contains("piece 1 of value"), "{error}");
}
