//! Goal: a message is forgotten whole, and none of which something is still to be sent, or of which no record is kept.
//!
//! Method: as in `expiry.rs`; what a worker leaves of a message is written by hand, and the tools look at it.

use super::effects::{Place, message, put};
use super::*;
use crate::identity::{ScopeName, SequenceId};
use crate::message::Key;

const SCOPE: InspectScope<'_> = InspectScope::Queue("orders");

fn identity(store: &Store, id: &[u8]) -> Identity {
    store.hash_key().identity(&ScopeName::queue("orders"), id)
}

async fn forget_it(place: &Place, id: &[u8], dry_run: bool) -> Result<Forgotten, ForgetError> {
    forget(&place.options, ForgetRequest { scope: SCOPE, id, reason: "it did not", dry_run }).await
}

#[tokio::test]
async fn steps_that_were_begun_are_forgotten_with_their_message_and_finished_ones_stay() {
    for (place, begun) in Place::each().into_iter().zip([3, 200]) {
        place
            .open(async |store, queue| {
                let identity = identity(store, b"1");
                for number in 0..begun {
                    let step = store.put_step(identity, queue, &format!("b{number}"), None).await;
                    assert!(step.is_some());
                }
                for name in ["x", "y"] {
                    let result = Some(vec![1; 9000]);
                    assert!(store.put_step(identity, queue, name, result).await.is_some());
                }
                persist(store, queue, [Record { identity, ..dead_record(1) }].into_iter()).await;
            })
            .await;
        let steps = async || place.open(async |store, _| store.steps(identity(store, b"1"))).await;
        let would = forget_it(&place, b"1", true).await.expect("it is dead");
        assert_eq!((would.steps, would.begun_steps), (2, begun));
        assert_eq!(steps().await.len(), 2 + begun);
        let done = forget_it(&place, b"1", false).await.expect("it is dead");
        assert_eq!((done.steps, done.begun_steps), (2, begun));
        let left = steps().await;
        assert!(left.len() == 2 && left.iter().all(|step| step.result.is_some()));
        assert!(matches!(forget_it(&place, b"1", false).await, Err(ForgetError::Already)));
    }
}

#[tokio::test]
async fn a_message_is_not_forgotten_before_what_it_sends_is_confirmed() {
    let place = Place::simulated().0;
    place
        .open(async |store, queue| {
            let identity = identity(store, b"1");
            let key = store.key_id(queue, &Key::new(b"k"));
            let row = store.stage_outgoing(identity, key, &[message(1, 10)], 1000).await;
            let rows = vec![Change::PutOutgoing(row.expect("the store is sound"))];
            put(store, queue, Records::from_elem(Record { identity, ..record(1) }, 1), rows).await;
        })
        .await;
    let refused = forget_it(&place, b"1", false).await.expect_err("it is not sent");
    assert!(matches!(refused, ForgetError::Unsent), "{refused:?}");
    assert!(refused.to_string().contains("let the worker publish it"), "{refused}");
    place
        .open(async |store, queue| {
            let [unsent] = &store.take_unsent()[..] else { panic!("one is unsent") };
            put(store, queue, Records::new(), store.sent(unsent.identity)).await;
        })
        .await;
    assert!(forget_it(&place, b"1", false).await.is_ok());
}

#[tokio::test]
async fn a_numbered_message_that_is_done_is_told_as_such_and_cannot_be_forgotten() {
    let place = Place::simulated().0;
    place
        .open(async |store, queue| {
            let producer = store.hash_key().producer(&ScopeName::queue("orders"), b"a/b");
            let numbers = [0, 1, 2, 7].map(|number| SequenceId { producer, number });
            put(store, queue, Records::new(), numbers.map(Change::Advance).into()).await;
        })
        .await;
    let look = async |id: &[u8]| inspect(&place.options, SCOPE, id).await.expect("it opens");
    for id in [&b"a/b/0"[..], b"a/b/2", b"a/b/7"] {
        assert_eq!(look(id).await, Inspection::Numbered);
        let refused = forget_it(&place, id, false).await;
        assert!(matches!(refused, Err(ForgetError::Numbered)), "{refused:?}");
    }
    for id in [&b"a/b/3"[..], b"a/b/8", b"a/b/02", b"a/b/+2", b"a/b/", b"a/b", b"a/c/1", b"1"] {
        assert_eq!(look(id).await, Inspection::Unknown, "{id:?}");
        assert!(matches!(forget_it(&place, id, false).await, Err(ForgetError::Unknown)));
    }
}
