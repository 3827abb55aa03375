//! Goal: records are kept for their retention and known as expired for one more; the latest record of an id counts.
//!
//! Method: a store on a real directory and one on the simulated disk, with a clock that the test sets.

use super::super::spill::PIECE_PREFIX;
use super::effects::{Place, message, put, rows, write_groups};
use super::*;
use crate::identity::ScopeName;

fn forgotten(number: u64) -> Record {
    let note = ForgetNote { reason: "an order".into(), id: b"1".to_vec() };
    Record { outcome: Outcome::Forgotten(Box::new(note)), ..record(number) }
}

async fn expired(store: &Store, numbers: std::ops::Range<u64>) -> usize {
    numbers.filter(|number| store.has_expired(record(*number).identity)).count()
}

async fn outcome(store: &Store, number: u64) -> Option<Outcome> {
    let found = store.lookup(record(number).identity).await.expect("it can be read");
    found.map(|found| found.record.outcome)
}

fn is_forgotten(outcome: Option<Outcome>) -> bool {
    matches!(outcome, Some(Outcome::Forgotten(_)))
}

#[tokio::test]
async fn a_record_is_known_as_expired_for_one_more_retention() {
    const RECORDS: u64 = 3000;
    for place in Place::each() {
        let clock = &place.options.clock;
        place
            .open(async |store, queue| {
                persist(store, queue, (0..RECORDS).map(record)).await;
                clock.advance(RETENTION.saturating_sub(Duration::from_millis(1)));
                write_groups(store, queue, 10).await;
                assert_eq!(expired(store, 0..RECORDS).await, 0);
                clock.advance(Duration::from_millis(1));
                write_groups(store, queue, 10).await;
                assert_eq!(known(store, 0..RECORDS).await, 0);
                assert_eq!(expired(store, 0..RECORDS).await, RECORDS as usize);
                assert_eq!(expired(store, RECORDS..2 * RECORDS).await, 0);
            })
            .await;
        clock.advance(RETENTION.saturating_sub(Duration::from_millis(1)));
        place
            .open(async |store, queue| {
                write_groups(store, queue, 10).await;
                assert_eq!(expired(store, 0..RECORDS).await, RECORDS as usize);
                clock.advance(Duration::from_millis(1));
                write_groups(store, queue, 10).await;
                assert_eq!(expired(store, 0..RECORDS).await, 0);
                assert_eq!(rows(store, ghosts::GHOST_PREFIX).await.len(), 0);
            })
            .await;
    }
}

#[tokio::test]
async fn each_class_of_a_queue_has_a_retention_of_its_own() {
    for place in Place::each() {
        let clock = &place.options.clock;
        let classes = [("short", 10), ("long", 600)]
            .map(|(class, seconds)| (class.to_owned(), Duration::from_secs(seconds)));
        let queue = QueueRetention { classes: classes.to_vec(), ..queue("orders") };
        let mut numbers = Vec::new();
        for round in 0..2 {
            let opened = Store::open(&place.options, std::slice::from_ref(&queue), &|_| ()).await;
            let (store, committer, mut ids) = opened.expect("it opens");
            let QueueIds { own, classes } = ids.remove(0);
            numbers.push((own, classes.clone()));
            let stopping = CancellationToken::new();
            let work = async {
                if round == 0 {
                    persist(&store, own, (0..10).map(record)).await;
                    persist(&store, classes[0], (10..20).map(record)).await;
                    persist(&store, classes[1], (20..30).map(record)).await;
                    clock.advance(Duration::from_secs(10));
                    write_groups(&store, own, 5).await;
                    assert_eq!(known(&store, 0..30).await, 20);
                    assert_eq!(expired(&store, 10..20).await, 10);
                } else {
                    clock.advance(RETENTION);
                    write_groups(&store, own, 5).await;
                    assert_eq!(known(&store, 20..30).await, 10);
                    assert_eq!(known(&store, 0..30).await, 10);
                    assert_eq!(expired(&store, 0..10).await, 10);
                    assert_eq!(expired(&store, 10..20).await, 0, "the short one's is over");
                }
                stopping.cancel();
            };
            let (ran, ()) = tokio::join!(committer.run(stopping.clone()), work);
            ran.expect("the disk is sound");
        }
        assert_eq!(numbers[0], numbers[1]);
    }
}

#[tokio::test]
async fn what_was_forgotten_runs_again_and_its_next_record_counts() {
    for place in Place::each() {
        let check = async |expected: fn(Option<Outcome>) -> bool| {
            place.open(async |store, _| assert!(expected(outcome(store, 7).await))).await;
        };
        place.open(async |store, queue| persist(store, queue, (0..20).map(record)).await).await;
        place
            .open(async |store, queue| {
                persist(store, queue, [forgotten(7)].into_iter()).await;
                assert!(is_forgotten(outcome(store, 7).await));
                assert_eq!(known(store, 0..20).await, 20);
            })
            .await;
        check(is_forgotten).await;
        place
            .open(async |store, queue| {
                let QueueId(other) = queue;
                persist(store, QueueId(other + 1), [record(7)].into_iter()).await;
                assert_eq!(outcome(store, 7).await, Some(Outcome::Done));
            })
            .await;
        check(|outcome| outcome == Some(Outcome::Done)).await;
        place.options.clock.advance(Duration::from_millis(1));
        place
            .open(async |store, queue| {
                let QueueId(other) = queue;
                persist(store, QueueId(other + 1), [forgotten(7)].into_iter()).await;
                assert!(is_forgotten(outcome(store, 7).await));
            })
            .await;
        check(is_forgotten).await;
        place.options.clock.advance(Duration::from_millis(1));
        place.open(async |store, queue| persist(store, queue, [record(7)].into_iter()).await).await;
        check(|outcome| outcome == Some(Outcome::Done)).await;
    }
}

#[tokio::test]
async fn an_earlier_record_does_not_come_back_when_a_later_one_leaves_first() {
    for place in Place::each() {
        let short = QueueRetention { retention: Duration::from_secs(5), ..queue("short") };
        let opened = Store::open(&place.options, &[queue("orders"), short], &|_| ()).await;
        let (store, committer, ids) = opened.expect("it opens");
        let stopping = CancellationToken::new();
        let work = async {
            persist(&store, ids[0].own, [dead_record(7)].into_iter()).await;
            persist(&store, ids[0].own, [forgotten(7)].into_iter()).await;
            persist(&store, ids[1].own, [record(7)].into_iter()).await;
            place.options.clock.advance(Duration::from_secs(5));
            write_groups(&store, ids[0].own, 3).await;
            assert_eq!(outcome(&store, 7).await, None);
            assert_eq!(store.shared.index.len(), 0);
            place.options.clock.advance(RETENTION);
            write_groups(&store, ids[0].own, 3).await;
            stopping.cancel();
        };
        let (ran, ()) = tokio::join!(committer.run(stopping.clone()), work);
        ran.expect("the disk is sound");
    }
}

#[tokio::test]
async fn what_was_forgotten_is_never_known_as_expired() {
    for place in Place::each() {
        place
            .open(async |store, queue| {
                persist(store, queue, [record(1), record(2), forgotten(1)].into_iter()).await;
                place.options.clock.advance(RETENTION);
                write_groups(store, queue, 3).await;
                assert_eq!(known(store, 0..5).await, 0);
                assert_eq!(expired(store, 0..5).await, 1);
                assert!(!store.has_expired(record(1).identity));
            })
            .await;
    }
}

#[tokio::test]
async fn an_inspection_tells_done_forgotten_expired_and_unknown_apart() {
    let place = Place::simulated().0;
    let look = async |id: &[u8]| {
        inspect(&place.options, InspectScope::Queue("orders"), id).await.expect("it opens")
    };
    place
        .open(async |store, queue| {
            let identity = store.hash_key().identity(&ScopeName::queue("orders"), b"1");
            persist(store, queue, [Record { identity, ..record(1) }].into_iter()).await;
        })
        .await;
    assert!(matches!(look(b"1").await, Inspection::Known(Known { outcome: Outcome::Done, .. })));
    place.options.clock.advance(RETENTION);
    place.open(async |store, queue| write_groups(store, queue, 3).await).await;
    assert_eq!(look(b"1").await, Inspection::Expired);
    assert_eq!(look(b"2").await, Inspection::Unknown);
    place
        .open(async |store, queue| {
            let identity = store.hash_key().identity(&ScopeName::queue("orders"), b"1");
            persist(store, queue, [Record { identity, ..forgotten(1) }].into_iter()).await;
        })
        .await;
    let Inspection::Known(known) = look(b"1").await else { panic!("it is known") };
    assert!(is_forgotten(Some(known.outcome)));
}

#[tokio::test(start_paused = true)]
async fn steps_and_attempts_of_a_message_that_never_came_back_go_after_a_month() {
    let place = Place::simulated().0;
    place
        .open(async |store, queue| {
            let identity = record(1).identity;
            let step = store.put_step(identity, queue, "s", Some(vec![1; 9000])).await;
            let _persisted = step.expect("the store is sound");
            let day = Duration::from_secs(24 * 60 * 60);
            for (days, kept) in [(29, 1), (2, 0)] {
                place.options.clock.advance(day * days);
                tokio::time::sleep(Duration::from_secs(61)).await;
                write_groups(store, queue, 3).await;
                assert_eq!(store.steps(identity).len(), kept);
            }
            assert!(rows(store, b"t").await.is_empty() && rows(store, b"v").await.is_empty());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_record_outlives_its_retention_while_what_its_message_sends_is_not_confirmed() {
    let place = Place::simulated().0;
    let sender = 7;
    place
        .open(async |store, queue| {
            let identity = record(sender).identity;
            let mut done = record(sender);
            done.result = store.stage_result(identity, None, vec![1; 9000].into()).await;
            let key = store.key_id(queue, &crate::message::Key::new(b"k"));
            let row = store.stage_outgoing(identity, key, &[message(1, 10)], 1000).await;
            let row = Change::PutOutgoing(row.expect("the store is sound"));
            put(store, queue, Records::from_elem(done, 1), vec![row]).await;
            persist(store, queue, (1000..3000).map(record)).await;
        })
        .await;
    for _ in 0..3 {
        place
            .open(async |store, queue| {
                place.options.clock.advance(RETENTION);
                write_groups(store, queue, 30).await;
                assert_eq!(known(store, 1000..3000).await, 0, "others are not held back");
                // What was removed may be read for a minute.
                tokio::time::sleep(Duration::from_secs(61)).await;
                write_groups(store, queue, 3).await;
                let found = store.lookup(record(sender).identity).await.expect("it can be read");
                let result = found.and_then(|found| found.record.result).expect("it is known");
                assert_eq!(store.fetch_result(&result).await.expect("it is whole").len(), 9000);
            })
            .await;
    }
    place
        .open(async |store, queue| {
            let [unsent] = &store.take_unsent()[..] else { panic!("it is not confirmed") };
            put(store, queue, Records::new(), store.sent(unsent.identity)).await;
            place.options.clock.advance(RETENTION);
            write_groups(store, queue, 3).await;
            tokio::time::sleep(Duration::from_secs(61)).await;
            write_groups(store, queue, 3).await;
            assert_eq!(known(store, 0..10).await, 0);
            assert!(rows(store, PIECE_PREFIX).await.is_empty());
        })
        .await;
}

#[tokio::test]
async fn the_later_record_counts_also_after_the_clock_went_back() {
    for mut place in Place::each() {
        place
            .open(async |store, queue| {
                persist(store, queue, [record(1)].into_iter()).await;
                persist(store, queue, [record(2), forgotten(2)].into_iter()).await;
            })
            .await;
        place.options.clock = Clock::manual(1_600_000_000_000);
        place
            .open(async |store, queue| {
                persist(store, queue, [forgotten(1)].into_iter()).await;
                persist(store, queue, [record(2)].into_iter()).await;
                assert!(is_forgotten(outcome(store, 1).await));
                assert_eq!(outcome(store, 2).await, Some(Outcome::Done));
            })
            .await;
        place
            .open(async |store, _| {
                assert!(is_forgotten(outcome(store, 1).await));
                assert_eq!(outcome(store, 2).await, Some(Outcome::Done));
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_store_removes_all_that_has_expired_at_once() {
    let place = Place::simulated().0;
    place
        .open(async |store, queue| {
            for number in 0..600 {
                persist(store, queue, [record(number)].into_iter()).await;
            }
            place.options.clock.advance(RETENTION);
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(known(store, 0..600).await, 0);
        })
        .await;
}

#[tokio::test]
async fn collection_keeps_up_with_any_number_of_lanes() {
    const LANES: u64 = 60;
    const ROUNDS: u64 = 100;
    let place = Place::simulated().0;
    let classes = (0..LANES).map(|lane| (lane.to_string(), Duration::from_secs(5)));
    let queue = QueueRetention { classes: classes.collect(), ..queue("orders") };
    let opened = Store::open(&place.options, &[queue], &|_| ()).await;
    let (store, committer, ids) = opened.expect("it opens");
    let lanes = &ids[0].classes;
    let stopping = CancellationToken::new();
    let work = async {
        for round in 0..ROUNDS {
            let persisted = (0..LANES).zip(lanes).map(|(lane, id)| {
                let record = record(round * LANES + lane);
                store.persist(*id, Records::from_elem(record, 1), Vec::new())
            });
            assert!(join_all(persisted).await.iter().all(Option::is_some));
            place.options.clock.advance(Duration::from_secs(1));
        }
        let blocks = rows(&store, record::BLOCK_PREFIX).await;
        println!("{} blocks", blocks.len());
        assert!(blocks.len() as u64 <= 10 * LANES, "{} blocks", blocks.len());
        for lane in lanes {
            let prefix = record::block_prefix(*lane);
            let left = blocks.iter().filter(|(key, _)| key.starts_with(&prefix)).count();
            assert!(left <= 15, "{left} blocks of one lane are left");
        }
        stopping.cancel();
    };
    let (ran, ()) = tokio::join!(committer.run(stopping.clone()), work);
    ran.expect("the disk is sound");
}
