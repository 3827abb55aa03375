//! Lives of workers: P16, P19 and P20, and the runs of P18.

use super::super::super::history::{Event, RunEnd, Written};
use super::super::Predicate;
use super::story::{Story, done, message, sending};

/// A life whose store has failed, with a message that was done before.
fn failed() -> Story {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.frame_ms = 5;
    story.handles(1, &a);
    story.makes_durable(sending(&a, &["a1"]));
    story.publishes("a1");
    story.confirms("a1");
    story.put(Event::DiskFailed { life: 1 });
    story
}

#[test]
fn a_life_whose_store_has_failed_ends_with_an_error() {
    let mut story = failed();
    // It was written before.
    story.acks(1);
    story.exits(Some("the store has failed"));
    story.closes(false);
    story.rest();
    story.holds();

    let mut story = failed();
    story.acks(1);
    story.exits(None);
    story.rest();
    story.breaks(Predicate::P16, "life 1, whose store failed at");

    let mut story = failed();
    story.acks(1);
    story.rest();
    story.breaks(Predicate::P16, "has not ended");
}

#[test]
fn what_goes_out_after_a_failure_of_the_store_is_found() {
    let mut story = failed();
    story.waits(10);
    story.acks(1);
    story.breaks(
        Predicate::P16,
        "an ack of tag 1 of channel 1 comes from life 1, whose store failed at",
    );
    let mut story = failed();
    story.waits(10);
    story.publishes("a1");
    story.breaks(Predicate::P16, "a1 comes from life 1");
    let mut story = failed();
    story.commits(Written::default());
    story.breaks(Predicate::P16, "commit 3 of life 1, whose store failed at");
    let (mut story, b) = (failed(), message("b", None));
    story.accepts(&b);
    story.delivers(2, &b);
    story.runs(&b, 1);
    story.breaks(Predicate::P16, "a run of orders/b in life 1, whose store failed at");
}

#[test]
fn a_second_life_on_an_open_store_is_found() {
    let mut story = Story::new();
    story.opens();
    story.breaks(Predicate::P19, "life 2 opens the store while life 1 has it");
}

#[test]
fn an_epoch_that_does_not_rise_is_found() {
    let mut story = Story::new();
    story.crashes();
    let number = story.commits(Written { epoch: Some(1), ..Written::default() });
    story.syncs(number);
    story.put(Event::Opened { life: 2, epoch: 1 });
    story.breaks(Predicate::P19, "life 2 opens the store in epoch 1, after epoch 1");
}

#[test]
fn an_epoch_that_is_not_durable_is_found() {
    let mut story = Story::new();
    story.crashes();
    story.life = 2;
    let number = story.commits(Written { epoch: Some(2), ..Written::default() });
    story.put(Event::Opened { life: 2, epoch: 2 });
    story.syncs(number);
    story.breaks(Predicate::P19, "life 2 works in epoch 2, which is not durable");
}

#[test]
fn work_of_a_life_that_is_over_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.crashes();
    story.runs(&a, 1);
    story.breaks(Predicate::P19, "life 1 runs orders/a after its end");
}

/// A life that is asked to drain while the handler of a message runs.
fn draining() -> Story {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.put(Event::Drain { life: 1 });
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story
}

#[test]
fn a_drain_acks_what_is_finished_and_returns_the_rest() {
    let (mut story, b) = (draining(), message("b", None));
    story.accepts(&b);
    story.delivers(2, &b);
    story.acks(1);
    story.closes(true);
    story.exits(None);
    story.holds();
}

#[test]
fn a_run_that_begins_in_a_drain_is_found() {
    let (mut story, b) = (draining(), message("b", None));
    story.accepts(&b);
    story.delivers(2, &b);
    story.runs(&b, 1);
    story.breaks(Predicate::P20, "a run of orders/b in life 1, which drains since");
}

#[test]
fn a_drain_that_leaves_finished_work_unacked_is_found() {
    let mut story = draining();
    story.closes(true);
    story.exits(None);
    story.breaks(
        Predicate::P20,
        "life 1 drains without an ack of tag 1 of channel 1 (orders/a), which is finished",
    );
    // The broker closed it: nothing could be done.
    let mut story = draining();
    story.closes(false);
    story.exits(None);
    story.holds();
}

#[test]
fn a_drain_that_ends_with_an_error_or_not_at_all_is_found() {
    let mut story = draining();
    story.acks(1);
    story.closes(true);
    story.exits(Some("a bug"));
    story.breaks(Predicate::P20, "life 1 drains and ends with \"a bug\"");
    let mut story = draining();
    story.acks(1);
    story.rest();
    story.breaks(Predicate::P20, "life 1, which drains since");
}

#[test]
fn a_handler_that_still_runs_at_rest_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.sees.channels = false;
    story.rules.sees.accepted = false;
    story.runs(&a, 1);
    story.rest();
    story.breaks(Predicate::P18, "the run of orders/a that began at entry");
}
