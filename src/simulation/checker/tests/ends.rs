//! How messages end: P1 to P4, P9, P12, P13, P15, P17 and P18.

use std::sync::Arc;

use super::super::super::history::{Ended, Event, Letter, RunEnd, Written};
use super::super::Predicate;
use super::super::rules::{Commits, Sees};
use super::story::{Story, dead, done, letter, message, other_body, recorded, sending, twin};

#[test]
fn an_ack_of_what_is_durable_is_legal_also_for_a_duplicate() {
    let (mut story, a, b) = (Story::new(), message("a", None), message("b", None));
    story.handles(1, &a);
    story.handles(2, &b);
    story.accepts(&twin(&a));
    story.delivers(3, &twin(&a));
    let (first, second) = (story.commits(done(&a)), story.commits(done(&b)));
    story.syncs(second);
    assert!(first < second);
    story.acks_to(3);
    story.rest();
    story.holds();
}

#[test]
fn an_ack_before_the_sync_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    let number = story.commits(done(&a));
    story.acks(1);
    story.syncs(number);
    story.rest();
    story.breaks(
        Predicate::P1,
        "tag 1 of channel 1 (orders/a), but its record is in commit 2, which is not durable",
    );
}

#[test]
fn an_ack_without_a_record_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.acks(1);
    story.breaks(Predicate::P1, "nothing is on record of it");
}

#[test]
fn an_ack_of_several_that_covers_an_unfinished_one_is_found() {
    let (mut story, a, b) = (Story::new(), message("a", None), message("b", None));
    story.handles(1, &a);
    story.handles(2, &b);
    story.makes_durable(done(&b));
    story.acks_to(2);
    story.breaks(
        Predicate::P1,
        "an ack of tag 2 and all before covers tag 1 of channel 1 (orders/a)",
    );
}

#[test]
fn an_ack_before_what_the_message_sends_is_confirmed_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(sending(&a, &["o1", "o2"]));
    story.publishes("o1");
    story.confirms("o1");
    story.publishes("o2");
    story.acks(1);
    story.confirms("o2");
    story.rest();
    story.breaks(Predicate::P1, "what it sends, o2, is not confirmed");
}

#[test]
fn a_record_that_was_lost_with_a_crash_covers_no_ack() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.commits(done(&a));
    story.crashes();
    story.opens();
    story.consumes(3);
    story.redelivers(1, &a);
    story.acks(1);
    story.breaks(Predicate::P1, "nothing is on record of it");
}

#[test]
fn a_record_that_survived_a_crash_unsaid_covers_the_redelivery() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    let number = story.commits(done(&a));
    story.crashes();
    story.syncs(number);
    story.opens();
    story.consumes(3);
    story.redelivers(1, &a);
    story.acks(1);
    story.rest();
    story.holds();
}

#[test]
fn an_ack_of_another_body_by_the_record_of_the_first_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.works_off(1, &a);
    story.accepts(&other_body(&a));
    story.delivers(2, &other_body(&a));
    story.acks(2);
    story.breaks(Predicate::P1, "nothing is on record of it");
}

/// The record of another body under a known id.
fn conflict(story: &Story, seen: &super::super::super::history::Seen) -> Written {
    let _ = story;
    let mut written = dead(seen, "conflict", 0);
    written.records[0].is_conflict = true;
    written
}

#[test]
fn another_body_ends_by_a_record_of_its_own() {
    let (mut story, a) = (Story::new(), message("a", None));
    let b = other_body(&a);
    story.works_off(1, &a);
    story.accepts(&b);
    story.delivers(2, &b);
    let written = conflict(&story, &b);
    story.makes_durable(written);
    story.buries(letter(&b, "conflict", 0));
    story.confirms_letter(&b);
    story.acks(2);
    story.rest();
    story.holds();
}

#[test]
fn an_ack_before_the_dead_letter_is_confirmed_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(dead(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.acks(1);
    story.confirms_letter(&a);
    story.rest();
    story.breaks(Predicate::P1, "its dead letter is not confirmed");
}

#[test]
fn a_numbered_message_is_covered_by_its_watermark() {
    let (mut story, a) = (Story::new(), message("a", Some("k")));
    story.handles(1, &a);
    story.makes_durable(Written { passed: vec![Arc::clone(&a.name)], ..Written::default() });
    story.acks(1);
    story.rest();
    story.holds();
}

#[test]
fn a_second_record_of_a_message_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.works_off(1, &a);
    story.accepts(&twin(&a));
    story.delivers(2, &twin(&a));
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story.acks(2);
    story.breaks(
        Predicate::P2,
        "commit 3 says that orders/a is done, but commit 2 said that it is done",
    );
}

#[test]
fn a_message_that_is_done_and_then_dead_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.works_off(1, &a);
    story.makes_durable(dead(&a, "crash-loop", 1));
    story.buries(letter(&a, "crash-loop", 1));
    story.breaks(Predicate::P2, "orders/a is dead, crash-loop, but commit 2 said that it is done");
}

#[test]
fn a_message_runs_again_when_its_record_has_expired() {
    let (mut story, a) = (Story::new(), message("a", None));
    let retention_ms = story.rules.queues[0].retention_ms;
    story.works_off(1, &a);
    story.waits(retention_ms);
    story.makes_durable(Written { collected: vec![Arc::clone(&a.name)], ..Written::default() });
    story.accepts(&twin(&a));
    story.delivers(2, &twin(&a));
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Ok);
    story.makes_durable(done(&a));
    story.acks(2);
    story.rest();
    story.holds();
}

#[test]
fn a_record_that_is_carried_into_a_later_block_is_no_second_end() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(sending(&a, &["o1"]));
    story.waits(story.rules.queues[0].retention_ms);
    story.makes_durable(done(&a));
    story.makes_durable(Written { collected: vec![Arc::clone(&a.name)], ..Written::default() });
    story.publishes("o1");
    story.confirms("o1");
    story.acks(1);
    story.rest();
    story.holds();
}

#[test]
fn outgoing_messages_without_the_record_of_their_sender_are_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(Written { records: Vec::new(), ..sending(&a, &["o1"]) });
    story.breaks(
        Predicate::P2,
        "commit 2 has 1 outgoing messages of orders/a, and no record that it is done",
    );
}

#[test]
fn a_message_that_was_acked_and_never_ended_is_found_at_rest() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.sees.commits = Commits::AtRest;
    story.accepts(&a);
    story.delivers(1, &a);
    story.acks(1);
    story.rest();
    story.breaks(Predicate::P3, "orders/a, copy");
}

#[test]
fn a_message_that_is_nowhere_on_record_is_found_with_nothing_else_to_see() {
    let (mut story, a, b) = (Story::new(), message("a", None), message("b", None));
    story.rules.sees = Sees { accepted: true, commits: Commits::AtRest, ..Sees::NOTHING };
    story.accepts(&a);
    story.accepts(&b);
    story.makes_durable(done(&b));
    story.rest();
    story.breaks(Predicate::P3, "orders/a, copy");
}

#[test]
fn a_record_of_a_message_that_was_never_delivered_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.makes_durable(done(&a));
    story.breaks(Predicate::P4, "commit 2 has a record of orders/a, which was never delivered");
}

#[test]
fn a_tag_that_is_settled_twice_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.works_off(1, &a);
    story.acks(1);
    story.breaks(Predicate::P9, "an ack of tag 1 of channel 1, but that tag is settled");
}

#[test]
fn a_tag_of_a_closed_channel_or_of_none_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(done(&a));
    story.closes(false);
    story.acks(1);
    story.breaks(Predicate::P9, "an ack of tag 1 of channel 1, but it is closed");
    for (tag, words) in [(0, "the last tag that was delivered on it is 0"), (4, "is 0")] {
        let mut story = Story::new();
        story.acks(tag);
        story.breaks(Predicate::P9, words);
    }
    let mut story = Story::new();
    story.channel = 9;
    story.acks(1);
    story.breaks(Predicate::P9, "nothing was consumed on it");
}

#[test]
fn an_ack_that_the_broker_refuses_is_found() {
    let mut story = Story::new();
    story.put(Event::AckRefused { channel: 1, tag: 5 });
    story.breaks(Predicate::P9, "the broker refuses an ack of tag 5");
}

#[test]
fn more_deliveries_than_the_prefetch_are_found() {
    let mut story = Story::new();
    for tag in 1..=3 {
        let seen = message(&tag.to_string(), None);
        story.accepts(&seen);
        story.delivers(tag, &seen);
    }
    story.holds();
    story.delivers(4, &message("4", None));
    story.breaks(Predicate::P17, "with tag 4, 4 deliveries are under way on channel 1, prefetch 3");
}

#[test]
fn a_prefetch_above_the_option_is_found() {
    for (prefetch, holds) in [(500, true), (501, false), (0, false)] {
        let mut story = Story::new();
        story.consumes(prefetch);
        if holds {
            story.holds();
        } else {
            let what = format!("consumes orders with prefetch {prefetch}, its option is 500");
            story.breaks(Predicate::P17, &what);
        }
    }
}

#[test]
fn a_dead_message_is_in_its_dead_letter_queue() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(dead(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.confirms_letter(&a);
    story.acks(1);
    story.rest();
    story.holds();
}

#[test]
fn a_dead_letter_that_says_otherwise_than_the_record_is_found() {
    let a = message("a", None);
    let wrong: [(Letter, &str); 3] = [
        (
            letter(&a, "exhausted", 1),
            "says exhausted after 1 attempts, its record rejected after 1",
        ),
        (letter(&a, "rejected", 2), "says rejected after 2 attempts"),
        (Letter { is_whole: false, ..letter(&a, "rejected", 1) }, "lacks something of it"),
    ];
    for (letter, words) in wrong {
        let mut story = Story::new();
        story.handles(1, &a);
        story.makes_durable(dead(&a, "rejected", 1));
        story.buries(letter);
        story.confirms_letter(&a);
        story.acks(1);
        story.rest();
        story.breaks(Predicate::P12, words);
    }
    let mut story = Story::new();
    story.handles(1, &a);
    story.makes_durable(dead(&a, "rejected", 1));
    story.buries_in("other", "l1".into(), letter(&a, "rejected", 1));
    story.confirms("l1");
    story.acks(1);
    story.rest();
    story.breaks(
        Predicate::P12,
        "dead letter l1 is in queue other, the dead-letter queue is orders.dead",
    );
}

#[test]
fn a_dead_letter_under_a_second_id_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(dead(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.holds();
    story.buries_in("orders.dead", "l2".into(), letter(&a, "rejected", 1));
    story
        .breaks(Predicate::P10, "dead letter l2 of orders/a was published before as dead-orders/a");
}

#[test]
fn a_dead_letter_before_the_decision_is_durable_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    let number = story.commits(dead(&a, "rejected", 1));
    story.buries(letter(&a, "rejected", 1));
    story.syncs(number);
    story.confirms_letter(&a);
    story.acks(1);
    story.rest();
    story.breaks(Predicate::P4, "orders/a, which is not dead on record");
}

#[test]
fn a_dead_message_without_a_dead_letter_is_found_at_rest() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.sees.channels = false;
    story.accepts(&a);
    story.makes_durable(dead(&a, "rejected", 1));
    story.rest();
    story.breaks(
        Predicate::P12,
        "orders/a is dead, rejected, in commit 2, and not in its dead-letter queue",
    );
}

#[test]
fn a_message_without_an_id_is_in_the_dead_letter_queue_before_it_is_on_record() {
    let a = super::super::super::history::Seen { has_id: false, ..message("#1", None) };
    let mut story = Story::new();
    story.accepts(&a);
    story.delivers(1, &a);
    story.buries(letter(&a, "missing-id", 0));
    story.confirms_letter(&a);
    story.makes_durable(dead(&a, "missing-id", 0));
    // Nobody can know it again, so it may end twice.
    story.closes(false);
    story.consumes(3);
    story.redelivers(1, &a);
    story.buries_in("orders.dead", "l2".into(), letter(&a, "missing-id", 0));
    story.confirms("l2");
    story.makes_durable(dead(&a, "missing-id", 0));
    story.acks(1);
    story.rest();
    story.holds();

    let mut story = Story::new();
    story.accepts(&a);
    story.delivers(1, &a);
    story.makes_durable(dead(&a, "missing-id", 0));
    story.breaks(Predicate::P12, "whose dead letter is not confirmed before");
}

/// A message whose attempts are on record as these numbers, the last one in a new life.
fn attempts(first: u32, second: u32) -> Story {
    let (mut story, a) = (Story::new(), message("a", None));
    let row =
        |begun| Written { attempts: vec![("orders/a".into(), begun, false)], ..Written::default() };
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Failed);
    story.makes_durable(row(first));
    story.makes_durable(row(second));
    story
}

#[test]
fn attempts_that_fall_are_found() {
    attempts(1, 2).holds();
    attempts(2, 1).breaks(Predicate::P13, "says that orders/a has 1 attempts, 2 were on record");
}

#[test]
fn an_attempt_that_a_restart_has_forgotten_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    story.ends(&a, 1, RunEnd::Failed);
    let row = |begun, is_running| Written {
        attempts: vec![("orders/a".into(), begun, is_running)],
        ..Written::default()
    };
    story.makes_durable(row(1, false));
    story.crashes();
    story.opens();
    story.consumes(3);
    story.redelivers(1, &a);
    let begun = story.history.clone();
    story.makes_durable(row(2, true));
    story.runs(&a, 2);
    story.holds();

    story.history = begun.clone();
    story.runs(&a, 1);
    story.breaks(Predicate::P13, "is called attempt 1, by what is on record it is 2");

    story.history = begun;
    story.runs(&a, 2);
    story.breaks(Predicate::P13, "attempt 2 begins in life 2 without being on record");
}

#[test]
fn attempts_beyond_the_limit_are_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.queues[0].max_attempts = 1;
    story.accepts(&a);
    story.delivers(1, &a);
    for attempt in 1..=2 {
        story.runs(&a, attempt);
        story.ends(&a, attempt, RunEnd::Failed);
        let attempts = vec![(Arc::clone(&a.name), attempt, false)];
        story.makes_durable(Written { attempts, ..Written::default() });
    }
    story.holds();
    story.runs(&a, 3);
    story.breaks(Predicate::P13, "orders/a has 3 attempts, the limit is 1 and one alone");
}

#[test]
fn an_end_after_fewer_attempts_than_were_on_record_is_found() {
    let mut story = attempts(1, 2);
    let a = message("a", None);
    story.makes_durable(Written {
        records: vec![recorded(&a, Ended::Done, 1)],
        ..Written::default()
    });
    story.acks(1);
    story.breaks(Predicate::P13, "orders/a has ended after 1 attempts, 2 were on record");
}

#[test]
fn a_record_that_is_collected_before_its_time_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    let retention_ms = story.rules.queues[0].retention_ms;
    story.works_off(1, &a);
    story.waits(retention_ms - 100);
    story.makes_durable(Written { collected: vec![Arc::clone(&a.name)], ..Written::default() });
    story.breaks(Predicate::P15, "the record of orders/a in commit 2 is collected after");
}

#[test]
fn a_record_that_is_collected_before_what_it_sends_is_confirmed_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(sending(&a, &["o1"]));
    story.waits(story.rules.queues[0].retention_ms);
    story.makes_durable(Written { collected: vec![Arc::clone(&a.name)], ..Written::default() });
    story.breaks(Predicate::P15, "commit 2 is collected before what it sends is confirmed");
}

#[test]
fn a_message_that_is_left_unacked_is_found_at_rest() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(done(&a));
    story.rest();
    story.breaks(
        Predicate::P18,
        "1 deliveries are unacked, the first is tag 1 of channel 1 (orders/a)",
    );
}

#[test]
fn a_message_that_was_never_delivered_is_found_at_rest() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.rest();
    story.breaks(Predicate::P18, "is not acked, and it has not ended");
}

#[test]
fn messages_of_queues_that_nobody_consumes_are_not_asked_about() {
    let mut story = Story::new();
    let seen = super::super::super::history::Seen { queue: "sink".into(), ..message("a", None) };
    story.accepts(&seen);
    story.rest();
    story.holds();
}
