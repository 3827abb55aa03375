//! Who runs beside whom, in what order, and what becomes of states: P5 to P8.

use std::sync::Arc;

use super::super::super::history::{Ended, KeyName, RunEnd, Seen, Written};
use super::super::super::model::State;
use super::super::Predicate;
use super::story::{Story, dead, done, letter, message, other_body, recorded, twin};

#[test]
fn two_runs_of_one_message_at_a_time_are_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.delivers(2, &twin(&a));
    story.runs(&a, 1);
    story.runs(&twin(&a), 1);
    story.breaks(
        Predicate::P5,
        "a run of orders/a in life 1 beside orders/a, which runs since entry",
    );
}

#[test]
fn a_run_ends_with_its_life() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.crashes();
    story.opens();
    story.consumes(3);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.holds();
}

#[test]
fn two_runs_of_one_key_at_a_time_are_found() {
    let mut story = Story::new();
    for (tag, id) in [(1, "a"), (2, "b")] {
        let seen = message(id, Some("k"));
        story.accepts(&seen);
        story.delivers(tag, &seen);
        story.runs(&seen, 1);
    }
    story.breaks(Predicate::P6, "a run of orders/b of key orders/k beside orders/a");
}

/// Two messages of a key, delivered in order and run together.
fn batch() -> (Story, Seen, Seen) {
    let (mut story, a, b) = (Story::new(), message("a", Some("k")), message("b", Some("k")));
    for (tag, seen) in [(1, &a), (2, &b)] {
        story.accepts(seen);
        story.delivers(tag, seen);
    }
    for seen in [&a, &b] {
        story.runs_in(seen, 1, Some(1));
    }
    (story, a, b)
}

#[test]
fn messages_of_a_batch_run_together_and_its_dead_ones_end_behind_the_others() {
    let (mut story, a, b) = batch();
    story.ends(&a, 1, RunEnd::Rejected);
    story.ends(&b, 1, RunEnd::Ok);
    story.makes_durable(done(&b));
    story.makes_durable(dead(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.confirms_letter(&a);
    story.acks_to(2);
    story.rest();
    story.holds();
}

#[test]
fn a_run_beside_a_batch_of_its_key_is_found() {
    let (mut story, _, _) = batch();
    let c = message("c", Some("k"));
    story.accepts(&c);
    story.delivers(3, &c);
    story.runs_in(&c, 1, Some(2));
    story.breaks(Predicate::P6, "a run of orders/c of key orders/k beside");
}

#[test]
fn a_message_that_overtakes_another_of_its_key_is_found() {
    let (mut story, a, b) = (Story::new(), message("a", Some("k")), message("b", Some("k")));
    story.accepts(&a);
    story.delivers(1, &a);
    story.handles(2, &b);
    story.makes_durable(done(&b));
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story.acks_to(2);
    story.breaks(
        Predicate::P7,
        "commit 2 ends orders/b of key orders/k, before orders/a, which was delivered ahead of it",
    );
}

#[test]
fn messages_of_one_commit_are_in_order_too() {
    for is_ordered in [true, false] {
        let (mut story, a, b) = (Story::new(), message("a", Some("k")), message("b", Some("k")));
        story.handles(1, &a);
        story.handles(2, &b);
        let mut records = [&a, &b].map(|seen| recorded(seen, Ended::Done, 1)).to_vec();
        if !is_ordered {
            records.reverse();
        }
        story.makes_durable(Written { records, ..Written::default() });
        story.acks_to(2);
        if is_ordered {
            story.holds();
        } else {
            story.breaks(Predicate::P7, "ends orders/b of key orders/k, before orders/a");
        }
    }
}

#[test]
fn what_was_delivered_on_a_lost_channel_may_come_in_another_order() {
    let (mut story, a, b) = (Story::new(), message("a", Some("k")), message("b", Some("k")));
    story.accepts(&a);
    story.delivers(1, &a);
    story.accepts(&b);
    story.delivers(2, &b);
    story.closes(false);
    story.consumes(3);
    story.delivers(1, &b);
    story.delivers(2, &a);
    for seen in [&b, &a] {
        story.runs(seen, 1);
        story.ends(seen, 1, RunEnd::Ok);
        story.makes_durable(done(seen));
    }
    story.acks_to(2);
    story.rest();
    story.holds();
}

#[test]
fn a_contested_message_is_judged_behind_what_waits_for_its_key() {
    let (mut story, a, c) = (Story::new(), message("a", Some("k")), message("c", Some("k")));
    let b = other_body(&a);
    for (tag, seen) in [(1, &a), (2, &b), (3, &c)] {
        story.accepts(seen);
        story.delivers(tag, seen);
    }
    for seen in [&a, &c] {
        story.runs(seen, 1);
        story.ends(seen, 1, RunEnd::Ok);
        story.makes_durable(done(seen));
    }
    let mut written = dead(&b, "conflict", 0);
    written.records[0].is_conflict = true;
    story.makes_durable(written);
    story.buries(letter(&b, "conflict", 0));
    story.confirms_letter(&b);
    story.acks_to(3);
    story.rest();
    story.holds();
}

/// Works off messages of key `k`, each with the state that the model makes and `wrong` may change.
fn states(ids: &[&str], wrong: impl Fn(&str, &mut Written)) -> Story {
    let mut story = Story::new();
    story.rules.queues[0].has_model_state = true;
    let mut state = None;
    for (tag, id) in (1..).zip(ids) {
        let seen = message(id, Some("k"));
        story.handles(tag, &seen);
        let next = State::after(state, &seen.name, seen.fingerprint);
        state = Some(next);
        let states: Vec<(KeyName, _)> = vec![("orders/k".into(), Some(next.to_bytes()))];
        let mut written = Written { states, ..done(&seen) };
        wrong(id, &mut written);
        story.makes_durable(written);
        story.acks(tag);
    }
    story.rest();
    story
}

#[test]
fn a_state_is_what_the_model_makes_of_all_that_is_done() {
    states(&["a", "b", "c"], |_, _| ()).holds();
}

#[test]
fn a_state_that_the_model_does_not_make_is_found() {
    let wrong = |id: &str, written: &mut Written| {
        if id == "b" {
            // As if a had not been there.
            let b = message("b", None);
            written.states[0].1 = Some(State::after(None, &b.name, b.fingerprint).to_bytes());
        }
    };
    states(&["a", "b", "c"], wrong)
        .breaks(Predicate::P8, "commit 3 makes the state of key orders/k");
    let wrong = |id: &str, written: &mut Written| {
        if id == "b" {
            written.states[0].1 = Some(b"no state".to_vec());
        }
    };
    states(&["a", "b"], wrong)
        .breaks(Predicate::P8, "commit 3 has 8 bytes as the state of key orders/k");
    let wrong = |id: &str, written: &mut Written| {
        if id == "b" {
            written.states[0].1 = None;
        }
    };
    states(&["a", "b"], wrong).breaks(Predicate::P8, "makes the state of key orders/k none");
}

#[test]
fn a_record_without_its_state_and_a_state_without_a_record_are_found() {
    let wrong = |id: &str, written: &mut Written| {
        if id == "b" {
            written.states.clear();
        }
    };
    states(&["a", "b"], wrong).breaks(Predicate::P2, "and not the state that it makes");
    let mut story = states(&["a"], |_, _| ());
    let state: (KeyName, _) = ("orders/k".into(), Some(State::default().to_bytes()));
    story.makes_durable(Written { states: vec![state], ..Written::default() });
    story.breaks(Predicate::P2, "commit 3 has a state of key orders/k, and no record");
}

#[test]
fn a_new_life_goes_on_from_the_state_that_is_durable() {
    for is_durable in [true, false] {
        let mut story = states(&["a"], |_, _| ());
        story.history.entries.pop();
        let (a, b, c) = (message("a", None), message("b", Some("k")), message("c", Some("k")));
        story.handles(2, &b);
        let after_a = State::after(None, &a.name, a.fingerprint);
        let after_b = State::after(Some(after_a), &b.name, b.fingerprint);
        let write = |seen: &Seen, state: State| Written {
            states: vec![("orders/k".into(), Some(state.to_bytes()))],
            ..done(seen)
        };
        let number = story.commits(write(&b, after_b));
        story.crashes();
        if is_durable {
            story.syncs(number);
        }
        story.opens();
        story.consumes(3);
        story.accepts(&c);
        story.delivers(1, &c);
        story.runs(&c, 1);
        story.ends(&c, 1, RunEnd::Ok);
        let legal =
            State::after(Some(if is_durable { after_b } else { after_a }), &c.name, c.fingerprint);
        let other =
            State::after(Some(if is_durable { after_a } else { after_b }), &c.name, c.fingerprint);
        let begun = story.history.clone();
        story.makes_durable(write(&c, legal));
        story.holds();
        story.history = begun;
        story.makes_durable(write(&c, other));
        story.breaks(Predicate::P8, "makes the state of key orders/k");
    }
}

#[test]
fn the_key_of_a_numbered_message_is_not_held_to_the_model() {
    let mut story = Story::new();
    story.rules.queues[0].has_model_state = true;
    let (a, b) = (message("a", Some("k")), message("b", Some("k")));
    story.handles(1, &a);
    story.makes_durable(Written { passed: vec![Arc::clone(&a.name)], ..Written::default() });
    story.handles(2, &b);
    let state = State::after(Some(State::default()), &b.name, b.fingerprint);
    let states: Vec<(KeyName, _)> = vec![("orders/k".into(), Some(state.to_bytes()))];
    story.makes_durable(Written { states, ..done(&b) });
    story.holds();
}
