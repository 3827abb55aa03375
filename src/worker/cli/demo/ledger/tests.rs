//! Each counter can become something else than zero, by the fault that it is for and by no other.

use super::super::orders::Size;
use super::*;

/// One key, so order number and place go together; a thousand orders, of which one is invalid.
fn ledger() -> Ledger {
    let size = Size { orders: 1_000, keys: 1, duplicates: 0.0 };
    Ledger::new(Arc::new(Plan::new(size, 1, 1)))
}

fn invalid(ledger: &Ledger) -> usize {
    let invalid = |number: &usize| ledger.is_invalid(*number);
    (0..1_000).find(invalid).expect("one in a thousand")
}

fn complete(ledger: &Ledger, number: usize) {
    ledger.start(number).complete(format!("effect-{number}"));
}

/// A run without any fault: confirmed, run once, acked.
fn handle(ledger: &Ledger, number: usize) {
    ledger.confirmed(number);
    if ledger.is_invalid(number) {
        ledger.start(number).reject();
    } else {
        complete(ledger, number);
    }
    ledger.acked(number);
}

fn dead(letters: &[(usize, &[&str])]) -> BTreeMap<usize, BTreeSet<String>> {
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    letters.iter().map(|(number, letters)| (*number, ids(letters))).collect()
}

#[test]
fn a_faultless_run_has_no_faults() {
    let ledger = ledger();
    (0..1_000).for_each(|number| handle(&ledger, number));
    let verdict = ledger.judge(&dead(&[(invalid(&ledger), &["a"])]));
    let expected = Verdict { published: 1_000, effects: 999, ..Verdict::default() };
    assert_eq!(verdict, expected);
    assert_eq!(*ledger.ended().borrow(), 1_000);
    assert!(ledger.missing().is_empty());
}

#[test]
fn a_run_after_the_ack_is_a_doubled_effect() {
    let ledger = ledger();
    handle(&ledger, 0);
    complete(&ledger, 0);
    assert_eq!(ledger.judge(&dead(&[])).doubled, [0]);
}

#[test]
fn runs_that_overlap_are_a_doubled_effect() {
    let ledger = ledger();
    let first = ledger.start(0);
    ledger.start(0).fail();
    first.fail();
    assert_eq!(ledger.judge(&dead(&[])).doubled, [0]);
}

#[test]
fn two_effect_keys_are_a_doubled_effect() {
    let ledger = ledger();
    ledger.start(0).complete("a".to_owned());
    ledger.start(0).complete("b".to_owned());
    assert_eq!(ledger.judge(&dead(&[])).doubled, [0]);
}

#[test]
fn dead_letters_with_two_ids_and_dead_letters_beside_an_effect_are_doubled() {
    let ledger = ledger();
    let invalid = invalid(&ledger);
    complete(&ledger, 0);
    let verdict = ledger.judge(&dead(&[(0, &["c"]), (invalid, &["a", "b"])]));
    assert_eq!(verdict.doubled, [0, invalid]);
    assert_eq!(verdict.wrongly_dead, [0]);
}

#[test]
fn runs_before_the_ack_under_the_same_effect_key_are_counted_apart() {
    let ledger = ledger();
    ledger.start(0).fail();
    drop(ledger.start(0));
    complete(&ledger, 0);
    complete(&ledger, 0);
    let verdict = ledger.judge(&dead(&[]));
    assert_eq!((verdict.repeated_runs, verdict.doubled), (2, vec![]));
}

#[test]
fn a_confirmed_order_without_an_outcome_is_lost() {
    let ledger = ledger();
    let invalid = invalid(&ledger);
    let other = (invalid + 1) % 1_000;
    for number in [other, invalid] {
        ledger.confirmed(number);
    }
    // Rejected, acked, and in no dead-letter queue: that counts for nothing.
    ledger.start(invalid).reject();
    ledger.acked(invalid);
    let mut lost = ledger.judge(&dead(&[])).lost;
    lost.sort_unstable();
    let mut expected = [other, invalid];
    expected.sort_unstable();
    assert_eq!(lost, expected);
    assert_eq!(ledger.missing().len(), NAMED_MAX);
}

#[test]
fn an_order_that_overtakes_is_out_of_order() {
    let ledger = ledger();
    let first = (0..1_000)
        .find(|number| (0..3).all(|next| !ledger.is_invalid(number + next)))
        .expect("three good ones in a row");
    (0..first).for_each(|number| handle(&ledger, number));
    handle(&ledger, first + 1);
    let verdict = ledger.judge(&dead(&[(invalid(&ledger), &["a"])]));
    assert_eq!(verdict.out_of_order, [first + 1]);
    // A run behind the ack of a later one is the same fault seen from the other side.
    handle(&ledger, first);
    handle(&ledger, first + 2);
    let verdict = ledger.judge(&dead(&[(invalid(&ledger), &["a"])]));
    assert_eq!(verdict.out_of_order, [first, first + 1]);
}
