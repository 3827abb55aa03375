//! What stands before a run: the breaker's and the drain's part of P13, the full store of P17; classes of retention
//! (P15), twins of two queues (P5), and guarded steps (P14).

use super::super::super::history::{Call, Ended, Event, RunEnd, Seen, Written};
use super::super::Predicate;
use super::story::{Story, done, message, recorded};

fn row(seen: &Seen, begun: u32, is_running: bool) -> Written {
    Written { attempts: vec![(seen.name.clone(), begun, is_running)], ..Written::default() }
}

/// A redelivered message whose first attempt has failed, behind a breaker that opens at so many.
fn failed(breaker_failures: u32, ended: RunEnd) -> (Story, Seen) {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.queues[0].breaker_failures = Some(breaker_failures);
    story.accepts(&a);
    story.redelivers(1, &a);
    story.makes_durable(row(&a, 1, true));
    story.runs(&a, 1);
    story.ends(&a, 1, ended);
    (story, a)
}

#[test]
fn an_attempt_that_fails_while_the_breaker_is_open_is_no_attempt() {
    let (mut story, a) = failed(1, RunEnd::Failed);
    story.makes_durable(row(&a, 0, false));
    story.makes_durable(row(&a, 1, true));
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story.holds();

    let (mut story, a) = failed(1, RunEnd::Failed);
    story.makes_durable(row(&a, 1, false));
    story.makes_durable(row(&a, 2, true));
    story.runs(&a, 2);
    story.breaks(Predicate::P13, "attempt 1 has failed, while the breaker was open");

    let (mut story, a) = failed(1, RunEnd::Failed);
    let records = vec![recorded(&a, Ended::Dead("exhausted".into()), 1)];
    story.makes_durable(Written { records, ..Written::default() });
    story.breaks(Predicate::P13, "are exhausted, and the last one failed while");
}

#[test]
fn an_attempt_counts_while_the_breaker_is_closed_and_if_it_tells_nothing() {
    for (failures, ended) in [(2, RunEnd::Failed), (1, RunEnd::Panicked)] {
        let (mut story, a) = failed(failures, ended);
        let begun = story.history.clone();
        story.makes_durable(row(&a, 1, false));
        story.makes_durable(row(&a, 2, true));
        story.runs(&a, 2);
        story.holds();
        story.history = begun;
        story.makes_durable(row(&a, 0, false));
        story.breaks(Predicate::P13, "says that orders/a has 0 attempts, 1 were on record");
    }
}

#[test]
fn an_attempt_that_a_drain_came_before_is_none() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.redelivers(1, &a);
    story.makes_durable(row(&a, 1, true));
    let begun = story.history.clone();
    story.put(Event::Drain { life: 1 });
    story.makes_durable(row(&a, 0, false));
    story.holds();
    story.history = begun;
    story.makes_durable(row(&a, 0, false));
    story.breaks(Predicate::P13, "says that orders/a has 0 attempts, 1 were on record");
}

#[test]
fn a_run_of_what_came_while_the_store_was_full_is_found() {
    let (mut story, a, b) = (Story::new(), message("a", None), message("b", None));
    story.accepts(&a);
    story.accepts(&b);
    story.delivers(1, &a);
    story.put(Event::Full { life: 1, is_full: true });
    story.runs(&a, 1);
    story.delivers(2, &b);
    story.holds();
    let full = story.history.clone();
    story.put(Event::Full { life: 1, is_full: false });
    story.runs(&b, 1);
    story.holds();
    story.history = full;
    story.runs(&b, 1);
    story.breaks(Predicate::P17, "a run of orders/b in life 1, whose store is full since");
}

#[test]
fn a_record_is_kept_as_long_as_its_class_says() {
    let (mut story, a) = (Story::new(), message("a", None));
    let a = Seen { class: Some("brief".into()), ..a };
    story.works_off(1, &a);
    story.waits(1000);
    story.makes_durable(Written { collected: vec![a.name.clone()], ..Written::default() });
    story.rules.queues[0].retention_ms_by = vec![("brief".into(), 900)];
    story.holds();
    story.rules.queues[0].retention_ms_by = vec![("brief".into(), 9000)];
    story.breaks(Predicate::P15, "the retention is 9000 ms");
}

#[test]
fn twins_in_two_queues_run_one_after_the_other() {
    let (mut story, a) = (Story::new(), message("a", Some("k")));
    let other = Seen { queue: "other".into(), key: Some("other/k".into()), copy: 2, ..a.clone() };
    story.rules.queues.push(super::super::QueueRules::new("other"));
    story.accepts(&a);
    story.accepts(&other);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.delivers(2, &other);
    let running = story.history.clone();
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story.acks_to(2);
    story.holds();
    story.history = running;
    story.runs(&other, 1);
    story.breaks(Predicate::P5, "a run of orders/a in life 1 beside orders/a");
}

/// A step that must not be called twice, its intent on record or not, with these calls.
fn guarded(has_intent: bool, calls: &[Call]) -> Story {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    if has_intent {
        let steps = vec![(a.name.clone(), "card".into(), false)];
        story.makes_durable(Written { steps, ..Written::default() });
    }
    for call in calls {
        let (name, step, effect_key) = (a.name.clone(), "card".into(), "k".into());
        story.put(Event::Called { life: 1, name, step, effect_key, call: *call });
    }
    story
}

#[test]
fn a_step_that_must_not_be_called_twice_is_called_on_record_and_again_when_that_is_cleared() {
    guarded(true, &[Call::Guarded, Call::Clears, Call::Guarded]).holds();
    guarded(false, &[Call::Guarded])
        .breaks(Predicate::P14, "is called, and its intent is not on record");
    guarded(true, &[Call::Guarded, Call::Guarded])
        .breaks(Predicate::P14, "and nobody knows that it did not happen");
}
