//! What is sent and called: the published part of P4, P10, P11 and P14.

use super::super::super::history::{Call, Event, Letter, Written};
use super::super::Predicate;
use super::story::{Story, done, message, sending};
use crate::options::OnUnroutable;

/// Two messages of a key that send `a1`, `a2` and `b1`, durable and not published.
fn two_senders() -> Story {
    let mut story = Story::new();
    for (tag, id, outs) in [(1, "a", &["a1", "a2"][..]), (2, "b", &["b1"])] {
        let seen = message(id, Some("k"));
        story.handles(tag, &seen);
        story.makes_durable(sending(&seen, outs));
    }
    story
}

#[test]
fn what_is_committed_arrives_in_order_and_is_confirmed_before_the_ack() {
    let mut story = two_senders();
    for id in ["a1", "a2", "b1"] {
        story.publishes(id);
        // A lost confirm: it is sent again as it was.
        story.publishes(id);
        story.confirms(id);
    }
    story.acks_to(2);
    story.rest();
    story.holds();
}

#[test]
fn what_no_commit_has_is_found() {
    let mut story = two_senders();
    story.publishes("other");
    story.breaks(Predicate::P4, "other is published, and no commit has it");
}

#[test]
fn a_publish_before_its_commit_is_durable_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.commits(sending(&a, &["a1"]));
    story.publishes("a1");
    story.breaks(
        Predicate::P4,
        "a1 of orders/a is published, and commit 2, which has it, is not durable",
    );
}

#[test]
fn a_publish_of_a_commit_that_was_lost_is_found() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.commits(sending(&a, &["a1"]));
    story.crashes();
    story.opens();
    story.publishes("a1");
    story.breaks(Predicate::P4, "commit 2, which has it, is lost");
}

#[test]
fn a_reply_is_in_no_commit() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.handles(1, &a);
    story.makes_durable(done(&a));
    let answers = Some(a.name);
    let (life, id, to) = (1, "r1".into(), vec!["caller".into()]);
    story.put(Event::Published { life, id, body: 1, to, letter: None, answers });
    story.acks(1);
    story.rest();
    story.holds();
}

#[test]
fn other_bytes_under_one_id_are_found() {
    let mut story = two_senders();
    story.publishes_as("a1", 7, "sink");
    story.publishes_as("a1", 8, "sink");
    story.breaks(Predicate::P10, "a1 of orders/a is published with body 8, and before with 7");
}

#[test]
fn what_was_committed_and_never_arrived_is_found_at_rest() {
    let (mut story, a) = (Story::new(), message("a", None));
    story.rules.sees.channels = false;
    story.handles(1, &a);
    story.makes_durable(sending(&a, &["a1", "a2"]));
    story.publishes("a1");
    // No queue took it.
    story.publishes_as("a2", 7, "");
    story.rest();
    story.breaks(Predicate::P10, "a2 of orders/a, in commit 2, has arrived in no queue");
}

#[test]
fn a_message_that_overtakes_another_one_downstream_is_found() {
    let mut story = two_senders();
    story.publishes("a2");
    story.breaks(Predicate::P11, "a2 of orders/a arrives before a1 of orders/a");
    let mut story = two_senders();
    story.publishes("a1");
    story.publishes("b1");
    story.breaks(Predicate::P11, "b1 of orders/b arrives before a2 of orders/a");
}

/// The dead letter that stands for `a1`.
fn instead() -> Letter {
    let (name, reason) = ("a1".into(), "unroutable".into());
    Letter { name, fingerprint: 0, reason, attempts: 0, is_whole: true }
}

#[test]
fn what_no_queue_takes_may_go_to_the_dead_letter_queue_in_its_place() {
    for policy in [OnUnroutable::DeadLetter, OnUnroutable::Hold] {
        let mut story = two_senders();
        story.rules.queues[0].on_unroutable = policy;
        story.publishes_as("a1", 7, "");
        story.buries_in("orders.dead", "dead-a1".into(), instead());
        story.confirms("dead-a1");
        for id in ["a2", "b1"] {
            story.publishes(id);
            story.confirms(id);
        }
        story.acks_to(2);
        story.rest();
        match policy {
            OnUnroutable::DeadLetter => story.holds(),
            OnUnroutable::Hold => {
                story.breaks(
                    Predicate::P12,
                    "dead-a1 is published in the place of a1, which is to be held",
                );
            }
        }
    }
}

/// A step of `orders/a` that is called under these keys, its result on record before the last call.
fn calls(keys: &[&str], has_result: bool) -> Story {
    let (mut story, a) = (Story::new(), message("a", None));
    story.accepts(&a);
    story.delivers(1, &a);
    story.runs(&a, 1);
    for (number, key) in (1..).zip(keys) {
        if number == keys.len() && has_result {
            let steps = vec![("orders/a".into(), "card".into(), true)];
            story.makes_durable(Written { steps, ..Written::default() });
        }
        let (life, name, step) = (1, "orders/a".into(), "card".into());
        story.put(Event::Called {
            life,
            name,
            step,
            effect_key: (*key).into(),
            call: Call::Repeatable,
        });
    }
    story
}

#[test]
fn a_step_is_called_again_under_its_key_until_its_result_is_on_record() {
    calls(&["k", "k", "k"], false).holds();
    calls(&["k", "other"], false).breaks(
        Predicate::P14,
        "step \"card\" of orders/a is called with effect key other, and before with k",
    );
    calls(&["k", "k"], true).breaks(
        Predicate::P14,
        "step \"card\" of orders/a is called in life 1, and commit 2 has its result",
    );
}
