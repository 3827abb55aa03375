//! Goal: the effects of a message are durable with its record or not at all, and come back after any end of a process.
//!
//! Method: a store on a real directory and one on the simulated disk are used, left in the middle, and opened again.

use bytes::Bytes;
use tokio::time::Instant;

use super::super::rows::INLINE_BYTES_MAX;
use super::super::spill::PIECE_PREFIX;
use super::super::{outgoing, steps};
use super::*;
use crate::identity::SequenceId;
use crate::message::{Key, Message};

/// Adds what a message sends to the rows of its commit.
pub(super) async fn stage_outgoing(
    store: &Store,
    identity: Identity,
    key: KeyId,
    messages: &[Arc<Message>],
    rows: &mut Vec<Change>,
) -> Option<()> {
    let row = store.stage_outgoing(identity, key, messages, INLINE_BYTES_MAX).await?;
    rows.push(Change::PutOutgoing(row));
    Some(())
}

/// Where a store lies.
pub(super) struct Place {
    pub(super) options: StoreOptions,
    _dir: TempDir,
}

impl Place {
    pub(super) fn sled() -> Self {
        let dir = directory();
        Self { options: options(dir.path()), _dir: dir }
    }

    pub(super) fn simulated() -> (Self, SimulatedDisk) {
        let (mut place, disk) = (Self::sled(), SimulatedDisk::new());
        place.options.simulated = Some(disk.clone());
        (place, disk)
    }

    /// One on each kind of disk, and an encrypted one.
    pub(super) fn each() -> [Self; 3] {
        let mut encrypted = Self::sled();
        encrypted.options.key = Some(StoreKey::new([5; 32]));
        [Self::sled(), Self::simulated().0, encrypted]
    }

    pub(super) async fn open<T>(&self, work: impl AsyncFnOnce(&Store, QueueId) -> T) -> T {
        on_store(&self.options, work).await.expect("it opens")
    }
}

pub(super) async fn rows(store: &Store, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.shared.backend.scan(prefix, None, usize::MAX).await.expect("it can be read")
}

/// Makes the committer write this many groups, each of which collects something.
pub(super) async fn write_groups(store: &Store, queue: QueueId, groups: usize) {
    for _ in 0..groups {
        let rows = vec![Change::RemovePending(record(0).identity)];
        let _persisted =
            store.persist(queue, Records::new(), rows).await.expect("the store is sound");
    }
}

pub(super) async fn put(store: &Store, queue: QueueId, records: Records, rows: Vec<Change>) {
    let _persisted = store.persist(queue, records, rows).await.expect("the store is sound");
}

pub(super) fn value(bytes: impl Into<Bytes>) -> KeyState {
    let value = StateValue { name: "n".into(), version: 3, bytes: bytes.into(), spilled: None };
    KeyState { value: Some(value), latest: Some(9) }
}

fn bytes_of(state: &SharedState) -> Option<&[u8]> {
    state.as_ref().and_then(|state| state.value.as_ref()).map(|value| &value.bytes[..])
}

pub(super) fn message(number: u64, body_bytes: usize) -> Arc<Message> {
    let body = vec![number as u8; body_bytes].into();
    Arc::new(Message { routing_key: number.to_string(), body, ..Message::default() })
}

pub(super) async fn set_state(store: &Store, key: KeyId, new: Option<KeyState>) -> SharedState {
    let old = store.state(key).await.expect("it can be read");
    let mut rows = Vec::new();
    let state = store.stage_state(key, &old, new, &mut rows).await.expect("the store is sound");
    store
        .commit(Commit {
            queue: key.queue,
            records: Records::new(),
            rows,
            submitted: Instant::now(),
            on_persisted: Box::new(drop),
        })
        .await;
    state
}

#[tokio::test]
async fn the_state_of_a_key_is_that_of_the_last_commit_handed_in_durable_or_not() {
    for place in Place::each() {
        let key = place
            .open(async |store, queue| {
                let key = store.key_id(queue, &Key::new(b"k"));
                assert_eq!(store.state(key).await.expect("it can be read"), None);
                for number in 0..20_u8 {
                    let new = (number % 5 != 0).then(|| value(vec![number; 30]));
                    let given = set_state(store, key, new.clone()).await;
                    assert_eq!(given.as_deref(), new.as_ref());
                    assert_eq!(store.state(key).await.expect("it can be read"), given);
                }
                let other = store.key_id(queue, &Key::new(b"l"));
                assert_eq!(store.state(other).await.expect("it can be read"), None);
                assert_ne!(store.key_id(QueueId(7), &Key::new(b"k")), key);
                write_groups(store, queue, 1).await;
                assert!(store.shared.states.is_durable());
                assert_eq!(
                    bytes_of(&store.state(key).await.expect("it can be read")),
                    Some(&[19; 30][..])
                );
                key
            })
            .await;
        place
            .open(async |store, queue| {
                assert_eq!(store.key_id(queue, &Key::new(b"k")), key);
                let state = store.state(key).await.expect("it can be read");
                assert_eq!(state.as_deref(), Some(&value(vec![19; 30])));
                set_state(store, key, None).await;
                write_groups(store, queue, 1).await;
                assert_eq!(store.state(key).await.expect("it can be read"), None);
                assert!(rows(store, state::STATE_PREFIX).await.is_empty());
            })
            .await;
    }
}

#[tokio::test]
async fn values_of_any_size_come_back_whole_and_leave_nothing_behind() {
    let sizes = [0, 1, INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX, 4000, 4001, 8000, 24_001, 150_000];
    for place in Place::each() {
        for (number, size) in (0..).zip(sizes) {
            let body: Vec<u8> = (0..size).map(|_| fastrand::u8(..)).collect();
            let key = place
                .open(async |store, queue| {
                    let key = store.key_id(queue, &Key::new(b"k"));
                    set_state(store, key, Some(value(body.clone()))).await;
                    // The next version of it that a message carries changes no piece.
                    let mut same = KeyState::clone(
                        &store.state(key).await.expect("it can be read").expect("it is set"),
                    );
                    same.latest = Some(10);
                    set_state(store, key, Some(same)).await;
                    let identity = record(number).identity;
                    let mut result = record(number);
                    result.result = store
                        .stage_result(identity, Some("text/plain".into()), body.clone().into())
                        .await;
                    put(store, queue, Records::from_elem(result, 1), Vec::new()).await;
                    let begun = store.put_step(identity, queue, "s", None).await;
                    let _persisted = begun.expect("the store is sound");
                    let step = store.put_step(identity, queue, "s", Some(body.clone())).await;
                    let _persisted = step.expect("the store is sound");
                    key
                })
                .await;
            place
                .open(async |store, queue| {
                    let state = store.state(key).await.expect("it can be read");
                    assert_eq!(bytes_of(&state), Some(&body[..]), "{size}");
                    assert_eq!(state.and_then(|state| state.latest), Some(10));
                    let identity = record(number).identity;
                    let found = store.lookup(identity).await.expect("it can be read");
                    let result = found.and_then(|found| found.record.result).expect("it has one");
                    assert_eq!(store.fetch(&result.body).await.expect("it is whole"), body);
                    let [step] = &store.steps(identity)[..] else { panic!("one step") };
                    let stored = step.result.clone().expect("it has ended");
                    assert_eq!(store.fetch(&stored).await.expect("it is whole"), body);
                    set_state(store, key, None).await;
                    let gone = vec![Change::RemoveStep(identity, "s".into())];
                    put(store, queue, Records::new(), gone).await;
                    assert!(store.steps(identity).is_empty());
                })
                .await;
        }
        place
            .open(async |store, queue| {
                place.options.clock.advance(RETENTION);
                write_groups(store, queue, 60).await;
                assert_eq!(store.shared.index.len(), 0);
            })
            .await;
        place
            .open(async |store, queue| {
                write_groups(store, queue, 60).await;
                assert_eq!(rows(store, PIECE_PREFIX).await.len(), 0);
                assert_eq!(rows(store, steps::STEP_PREFIX).await.len(), 0);
                assert_eq!(rows(store, state::STATE_PREFIX).await.len(), 0);
            })
            .await;
    }
}

#[tokio::test]
async fn a_large_value_whose_commit_never_came_is_gone_after_the_next_open() {
    for place in Place::each() {
        let kept = place
            .open(async |store, queue| {
                let key = store.key_id(queue, &Key::new(b"k"));
                set_state(store, key, Some(value(vec![1; 9000]))).await;
                let old = store.state(key).await.expect("it can be read");
                let mut unused = Vec::new();
                let staged =
                    store.stage_state(key, &old, Some(value(vec![2; 30_000])), &mut unused);
                assert!(staged.await.is_some());
                let identity = record(1).identity;
                assert!(store.stage_result(identity, None, vec![3; 30_000].into()).await.is_some());
                let messages = [message(1, 30_000)];
                let staged = stage_outgoing(store, identity, key, &messages, &mut unused);
                assert!(staged.await.is_some());
                assert!(rows(store, PIECE_PREFIX).await.len() > 20);
                key
            })
            .await;
        place
            .open(async |store, queue| {
                write_groups(store, queue, 5).await;
                assert_eq!(rows(store, PIECE_PREFIX).await.len(), 3);
                let state = store.state(kept).await.expect("it can be read");
                assert_eq!(bytes_of(&state), Some(&[1; 9000][..]));
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_keeps_all_of_a_commit_or_nothing() {
    const COMMITS: u64 = 6;
    let mut kept_of = std::collections::BTreeSet::new();
    for cut_ms in 0..120 {
        let (place, disk) = Place::simulated();
        disk.set_sync_delay(Duration::from_millis(10));
        let work = async |store: &Store, queue| {
            let key = store.key_id(queue, &Key::new(b"k"));
            let write = async {
                for number in 0..COMMITS {
                    let body = vec![number as u8; if number % 2 == 0 { 100 } else { 5000 }];
                    let record = record(number);
                    let old = store.state(key).await.ok()?;
                    let mut rows = Vec::new();
                    store.stage_state(key, &old, Some(value(body)), &mut rows).await?;
                    let messages = [message(number, 100)];
                    stage_outgoing(store, record.identity, key, &messages, &mut rows).await?;
                    let sequence = SequenceId { producer: Identity::from_bytes([7; 16]), number };
                    rows.push(Change::Advance(sequence));
                    let _persisted =
                        store.persist(queue, Records::from_elem(record, 1), rows).await?;
                }
                Some(())
            };
            let cut = tokio::time::sleep(Duration::from_millis(cut_ms));
            tokio::select! {
                _ = write => {}
                () = cut => {}
            }
            disk.cut();
        };
        let _ended_by_the_cut = on_store(&place.options, work).await;
        disk.set_sync_delay(Duration::ZERO);
        place
            .open(async |store, queue| {
                let key = store.key_id(queue, &Key::new(b"k"));
                let kept = known(store, 0..COMMITS).await as u64;
                kept_of.insert(kept);
                assert_eq!(known(store, 0..kept).await as u64, kept, "a hole, cut at {cut_ms}");
                let state = store.state(key).await.expect("it can be read");
                let last = kept.checked_sub(1).map(|last| last as u8);
                assert_eq!(bytes_of(&state).map(|bytes| bytes[0]), last, "cut at {cut_ms}");
                assert_eq!(store.take_unsent().len() as u64, kept, "cut at {cut_ms}");
                for number in 0..COMMITS {
                    let sequence = SequenceId { producer: Identity::from_bytes([7; 16]), number };
                    let is_done = matches!(store.watermark(sequence), Watermark::Done(_));
                    assert_eq!(is_done, number < kept, "cut at {cut_ms}");
                }
            })
            .await;
    }
    assert_eq!(kept_of.len() as u64, COMMITS + 1, "{kept_of:?}");
}

#[tokio::test]
async fn what_was_not_confirmed_comes_back_in_commit_order_until_it_is() {
    for place in Place::each() {
        place
            .open(async |store, queue| {
                for number in 0..200 {
                    let record = record(number);
                    let key = store.key_id(queue, &Key::new(&number.to_le_bytes()));
                    let messages =
                        [message(number, 50), message(number + 1, (number as usize) * 40)];
                    let mut rows = Vec::new();
                    let staged = stage_outgoing(store, record.identity, key, &messages, &mut rows);
                    staged.await.expect("the store is sound");
                    let records = Records::from_elem(record, 1);
                    store
                        .commit(Commit {
                            queue,
                            records,
                            rows,
                            submitted: Instant::now(),
                            on_persisted: Box::new(drop),
                        })
                        .await;
                }
                write_groups(store, queue, 1).await;
                assert!(store.take_unsent().is_empty(), "this process sends them itself");
                for number in 0..100 {
                    let changes = store.sent(record(number).identity);
                    put(store, queue, Records::new(), changes).await;
                }
            })
            .await;
        place
            .open(async |store, queue| {
                let unsent = store.take_unsent();
                assert!(store.take_unsent().is_empty(), "once");
                let first = unsent.len();
                assert!((100..200).contains(&first), "{first}: whole blocks have left");
                for (number, row) in (200 - first as u64..).zip(&unsent) {
                    assert_eq!(row.identity, record(number).identity);
                    assert_eq!(row.key, store.key_id(queue, &Key::new(&number.to_le_bytes())));
                    let bytes = store.fetch(&row.messages).await.expect("it is whole");
                    let messages: Vec<Message> = postcard::from_bytes(&bytes).expect("messages");
                    let expected = [message(number, 50), message(number + 1, number as usize * 40)];
                    assert!(messages.iter().eq(expected.iter().map(|message| &**message)));
                }
                for row in unsent {
                    let changes = store.sent(row.identity);
                    put(store, queue, Records::new(), changes).await;
                }
                assert!(store.sent(record(3).identity).is_empty());
                assert_eq!(rows(store, outgoing::OUTGOING_PREFIX).await.len(), 0);
                write_groups(store, queue, 60).await;
                assert_eq!(rows(store, PIECE_PREFIX).await.len(), 0);
            })
            .await;
    }
}
