//! Goal: what a handler changes is one fact with the record of its message: state, outgoing messages, steps, result.
//!
//! Method: one handler that does what a message's body tells it, run by the test kit on a broker and a disk in memory;
//! crashes are real ones of that disk, and what is downstream is what the broker confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::testkit::{TestMessage, Testbed, assert_idempotent, message};
use onceward::{
    Asked, BATCH_MAX, Batch, Context, HandleError, Handler, OldState, OnDuplicate, OnExpired,
    OnUnroutable, QueueOptions, RetentionBy, Retry, Source, State, reject,
};
use serde::{Deserialize, Serialize};

/// What the handler is told to do, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Do {
    /// Adds to the state, an `i64`.
    Add(i64),
    Clear,
    /// Makes the state a text of this length.
    Fill(usize),
    /// Sends the state to a queue.
    Tell(String),
    Send(String, i64),
    SendBytes(String, usize),
    /// Adds only if the version is new.
    AddIfNew(u64, i64),
    Once(String),
    Ask(String),
    Compensate(String),
    Park(String),
    /// Fails the first attempts, this many.
    Fail(u32),
    Reject,
    Sleep(u64),
    Return(usize),
}

fn told(text: &str) -> String {
    text.to_owned()
}

/// Does what it is told; clones are the same handler, and the same outer world.
#[derive(Clone, Default)]
struct Doer {
    outer: Arc<Mutex<Outer>>,
}

#[derive(Default)]
struct Outer {
    /// What the other side of steps was asked, in order.
    calls: Vec<String>,
    /// Keys of calls that happened.
    happened: BTreeSet<String>,
    /// Steps whose next call happens and then never returns.
    hanging: BTreeSet<String>,
    /// Steps whose next call does not happen and never returns.
    lost: BTreeSet<String>,
    /// Whether nobody can tell yet what happened.
    is_unknown: bool,
}

impl Doer {
    fn outer(&self) -> std::sync::MutexGuard<'_, Outer> {
        self.outer.lock().expect("not poisoned")
    }

    fn calls(&self) -> Vec<String> {
        self.outer().calls.clone()
    }

    async fn call(&self, step: &str, key: String) -> Result<String, HandleError> {
        let hangs = {
            let mut outer = self.outer();
            outer.calls.push(format!("call {step}"));
            let is_lost = outer.lost.remove(step);
            if !is_lost {
                outer.happened.insert(key.clone());
            }
            outer.hanging.remove(step) || is_lost
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(key)
    }

    async fn ask(&self, step: &str, key: String) -> Result<Asked<String>, HandleError> {
        let mut outer = self.outer();
        outer.calls.push(format!("ask {step}"));
        Ok(match outer.happened.contains(&key) {
            _ if outer.is_unknown => Asked::Unknown,
            true => Asked::Happened(key),
            false => Asked::DidNot,
        })
    }

    async fn undo(&self, step: &str, key: String) -> Result<(), HandleError> {
        let mut outer = self.outer();
        outer.calls.push(format!("undo {step}"));
        outer.happened.remove(&key);
        Ok(())
    }
}

impl Handler<Vec<Do>, String> for Doer {
    async fn handle(&self, cx: &mut Context, tasks: Vec<Do>) -> onceward::Result<String> {
        let mut result = format!("{}", cx.id());
        for task in tasks {
            match task {
                Do::Add(number) => {
                    let sum = cx.state::<i64>()?.unwrap_or(0) + number;
                    cx.set_state(&sum)?;
                }
                Do::Clear => cx.clear_state()?,
                Do::Fill(length) => cx.set_state(&"x".repeat(length))?,
                Do::Tell(queue) => {
                    let state = cx.state::<i64>()?;
                    cx.send(&queue, &state)?;
                }
                Do::Send(queue, number) => drop(cx.send(&queue, &number)?),
                Do::SendBytes(queue, length) => drop(cx.send(&queue, &"x".repeat(length))?),
                Do::AddIfNew(version, number) => {
                    if !cx.is_stale(version)? {
                        let sum = cx.state::<i64>()?.unwrap_or(0) + number;
                        cx.set_state(&sum)?;
                    }
                }
                Do::Once(step) => result = cx.once(&step, |key| self.call(&step, key)).await?,
                Do::Ask(step) => {
                    let (ask, call) = (|key| self.ask(&step, key), |key| self.call(&step, key));
                    result = cx.once_or_ask(&step, ask, call).await?;
                }
                Do::Compensate(step) => {
                    let (undo, call) = (|key| self.undo(&step, key), |key| self.call(&step, key));
                    result = cx.once_or_compensate(&step, undo, call).await?;
                }
                Do::Park(step) => {
                    result = cx.once_or_park(&step, |key| self.call(&step, key)).await?;
                }
                Do::Fail(attempts) if cx.attempt() <= attempts => {
                    return Err(std::io::Error::other("no luck").into());
                }
                Do::Fail(_) => {}
                Do::Reject => return Err(reject("no")),
                Do::Sleep(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                Do::Return(length) => result = "x".repeat(length),
            }
        }
        Ok(result)
    }
}

fn options() -> QueueOptions {
    let mut options = QueueOptions::new("work");
    options.identity.key = vec![Source::Header("key".to_owned())];
    options.retry = Retry { jitter: false, ..Retry::default() };
    options
}

fn work(id: &str, key: &str, tasks: &[Do]) -> TestMessage {
    message("work", id, tasks).header("key", key)
}

fn bed_with(options: QueueOptions) -> (Testbed, Doer) {
    let mut bed = Testbed::new();
    let doer = Doer::default();
    bed.queue_with(options, doer.clone());
    bed.declare("out");
    (bed, doer)
}

fn bed() -> (Testbed, Doer) {
    bed_with(options())
}

fn error_in(bed: &Testbed, queue: &str) -> String {
    let letters = bed.published(queue);
    let letter = letters.last().expect("a dead letter");
    let error = letter.properties.headers.get("x-onceward-error").expect("why it died");
    error.as_str().expect("a text").to_owned()
}

#[test]
fn state_is_found_by_the_next_message_of_the_key_and_by_no_other() {
    let (mut bed, _) = bed();
    for (id, key) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "a")] {
        bed.publish(work(id, key, &[Do::Add(1), Do::Tell(told("out"))]));
    }
    bed.run();
    bed.assert_state("work", "a", Some(&3i64));
    bed.assert_state("work", "b", Some(&1i64));
    bed.assert_state::<i64>("work", "c", None);
    let mut told: Vec<i64> =
        bed.published("out").iter().map(|m| serde_json::from_slice(&m.body).unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, [1, 1, 2, 3]);
}

#[test]
fn state_outlives_drains_and_crashes() {
    let (mut bed, _) = bed();
    for round in 0..5 {
        bed.publish(work(&round.to_string(), "a", &[Do::Add(1)]));
        bed.start();
        bed.settle();
        if round % 2 == 0 {
            bed.crash()
        } else {
            bed.drain()
        }
        bed.assert_state("work", "a", Some(&(round + 1i64)));
    }
}

#[test]
fn state_that_is_cleared_is_gone() {
    let (mut bed, _) = bed();
    bed.publish(work("1", "a", &[Do::Add(5)]));
    bed.run();
    bed.publish(work("2", "a", &[Do::Clear, Do::Tell(told("out"))]));
    bed.publish(work("3", "a", &[Do::Tell(told("out"))]));
    bed.run();
    bed.assert_state::<i64>("work", "a", None);
    bed.assert_published::<Option<i64>>("out", &[None, None]);
}

#[test]
fn state_of_an_attempt_that_fails_is_never_seen() {
    let (mut bed, _) = bed();
    bed.publish(work("1", "a", &[Do::Add(5), Do::Fail(2)]));
    bed.publish(work("2", "a", &[Do::Add(70), Do::Reject]));
    bed.publish(work("3", "a", &[Do::Tell(told("out"))]));
    bed.run();
    bed.assert_state("work", "a", Some(&5i64));
    bed.assert_published("out", &[5]);
}

#[test]
fn state_of_an_older_version_is_migrated_and_unknown_state_is_kept_and_told() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Account {
        cents: i64,
    }
    impl State for Account {
        const NAME: &'static str = "account";
        fn migrate(old: OldState<'_>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
            match (old.name, old.version) {
                ("i64", 1) => Ok(Self { cents: old.decode()? }),
                _ => Err("never heard of it".into()),
            }
        }
    }
    async fn new_version(cx: &mut Context, _: Vec<Do>) -> onceward::Result {
        let account = cx.state::<Account>()?.ok_or_else(|| reject("no account"))?;
        cx.set_state(&Account { cents: account.cents + 1 })?;
        Ok(())
    }
    let mut options = options();
    options.retry.max_attempts = NonZeroU32::new(3).expect("not zero");
    let (mut bed, _) = bed_with(options.clone());
    bed.publish(work("1", "a", &[Do::Add(5)]));
    bed.publish(work("2", "b", &[Do::Fill(3)]));
    bed.run();
    bed.queue_with(options, new_version);
    bed.publish(work("3", "a", &[]));
    bed.publish(work("4", "b", &[]));
    bed.run();
    bed.assert_state("work", "a", Some(&Account { cents: 6 }));
    bed.assert_state("work", "b", Some(&told("xxx")));
    let outcomes = [("1", "done"), ("2", "done"), ("3", "done"), ("4", "dead: exhausted")];
    bed.assert_outcomes("work", &outcomes);
    let error = error_in(&bed, "work.dead");
    assert!(error.contains(r#"the stored state "String" version 1 cannot be read"#), "{error}");
    assert!(error.contains("never heard of it"), "{error}");
}

#[test]
fn late_versions_of_a_key_change_nothing() {
    let (mut bed, _) = bed();
    for (id, version, number) in [("1", 3, 1), ("2", 2, 10), ("3", 3, 100), ("4", 7, 1000)] {
        bed.publish(work(id, "a", &[Do::AddIfNew(version, number)]));
        bed.run();
    }
    bed.assert_state("work", "a", Some(&1001i64));
    bed.publish(work("5", "a", &[Do::Clear]));
    bed.publish(work("6", "a", &[Do::AddIfNew(7, 10_000)]));
    bed.run();
    bed.assert_state::<i64>("work", "a", None);
}

#[test]
fn state_over_the_limit_dies_with_its_reason_and_leaves_the_old_one() {
    let (mut bed, _) = bed();
    bed.publish(work("1", "a", &[Do::Add(5)]));
    bed.publish(work("2", "a", &[Do::Send(told("out"), 1), Do::Fill(64 * 1024 + 1)]));
    bed.publish(work("3", "a", &[Do::Add(1)]));
    bed.run();
    let outcomes = [("1", "done"), ("2", "dead: state-too-large"), ("3", "done")];
    bed.assert_outcomes("work", &outcomes);
    bed.assert_state("work", "a", Some(&6i64));
    bed.assert_published::<i64>("out", &[]);
    bed.assert_published_by("work.dead", &["2"]);
}

#[test]
fn large_states_results_and_messages_survive_crashes_at_every_commit() {
    assert_idempotent(|bed| {
        bed.queue_with(options(), Doer::default());
        bed.declare("out");
        let large = [Do::Fill(60_000), Do::SendBytes(told("out"), 100_000), Do::Return(60_000)];
        bed.publish(work("1", "a", &large));
        bed.publish(work("2", "a", &[Do::Fill(10_000), Do::Once("x".repeat(255))]));
    });
}

#[test]
fn a_message_without_a_key_has_no_state_and_is_told_so() {
    let (mut bed, _) = bed();
    bed.publish(message("work", "1", &[Do::Add(1)]));
    bed.run();
    bed.assert_outcomes("work", &[("1", "dead: rejected")]);
    assert!(error_in(&bed, "work.dead").contains("no ordering key"));
}

#[test]
fn what_a_failing_handler_published_is_never_sent() {
    let (mut bed, _) = bed();
    bed.publish(work("1", "a", &[Do::Send(told("out"), 1), Do::Fail(2)]));
    bed.publish(work("2", "b", &[Do::Send(told("out"), 2), Do::Reject]));
    bed.run();
    bed.assert_published("out", &[1]);
    assert_eq!(bed.broker().take_all("out").len(), 1, "once, and not once an attempt");
    bed.assert_outcomes("work", &[("1", "done"), ("2", "dead: rejected")]);
}

#[test]
fn limits_of_results_and_outgoing_messages_reject_the_message() {
    let mut options = options();
    options.outgoing_bytes_max = 10_000;
    let (mut bed, _) = bed_with(options);
    bed.publish(work("result", "a", &[Do::Add(1), Do::Return(64 * 1024)]));
    let half = Do::SendBytes(told("out"), 6000);
    bed.publish(work("outgoing", "a", &[Do::Add(1), half.clone(), half]));
    bed.publish(work("name", "a", &[Do::Add(1), Do::Send("q".repeat(256), 1)]));
    bed.run();
    let dead = "dead: rejected";
    bed.assert_outcomes("work", &[("result", dead), ("outgoing", dead), ("name", dead)]);
    bed.assert_state::<i64>("work", "a", None);
    bed.assert_published::<String>("out", &[]);
    let letters = bed.published("work.dead");
    let errors: Vec<_> =
        letters.iter().map(|m| m.properties.headers["x-onceward-error"].as_str()).collect();
    for (error, part) in
        errors.iter().zip(["the result of the handler", "outgoing messages", "256"])
    {
        assert!(error.expect("a text").contains(part), "{errors:?}");
    }
}

#[test]
fn a_step_name_used_twice_rejects_the_message() {
    let (mut bed, doer) = bed();
    bed.publish(work("1", "a", &[Do::Once(told("card")), Do::Once(told("card"))]));
    bed.run();
    bed.assert_outcomes("work", &[("1", "dead: rejected")]);
    assert!(error_in(&bed, "work.dead").contains(r#"step "card" is used twice"#));
    assert_eq!(doer.calls(), ["call card"]);
}

#[test]
fn a_step_name_over_the_limit_rejects_the_message() {
    let (mut bed, doer) = bed();
    bed.publish(work("1", "a", &[Do::Once("x".repeat(256))]));
    bed.publish(work("2", "a", &[Do::Park("x".repeat(5000))]));
    bed.run();
    bed.assert_outcomes("work", &[("1", "dead: rejected"), ("2", "dead: rejected")]);
    assert!(error_in(&bed, "work.dead").contains("5000 bytes"));
    assert!(doer.calls().is_empty());
}

#[test]
fn a_step_is_replayed_in_a_retry_and_after_a_crash() {
    let (mut bed, doer) = bed();
    let card = Do::Once(told("card"));
    bed.publish(work("1", "a", &[card.clone(), Do::Fail(3)]));
    bed.run();
    assert_eq!(doer.calls(), ["call card"]);
    bed.publish(work("2", "a", &[card, Do::Sleep(10_000), Do::Once(told("mail"))]));
    bed.start();
    bed.wait(Duration::from_secs(1));
    bed.crash();
    bed.run();
    assert_eq!(doer.calls(), ["call card", "call card", "call mail"]);
    bed.assert_outcomes("work", &[("1", "done"), ("2", "done")]);
}

/// Runs one message with this step until its call hangs, crashes, and runs on.
fn crash_in_the_call(tasks: &[Do], prepare: impl Fn(&mut Outer)) -> (Testbed, Doer) {
    let (mut bed, doer) = bed();
    prepare(&mut doer.outer());
    bed.publish(work("1", "a", tasks));
    bed.start();
    bed.wait(Duration::from_secs(5));
    bed.crash();
    bed.run();
    (bed, doer)
}

#[test]
fn a_step_that_may_be_repeated_is_called_again_with_its_key() {
    let (bed, doer) = crash_in_the_call(&[Do::Once(told("card"))], |outer| {
        outer.hanging.insert(told("card"));
    });
    assert_eq!(doer.calls(), ["call card", "call card"]);
    assert_eq!(doer.outer().happened.len(), 1, "the other side saw one key");
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn a_step_whose_end_is_unknown_is_asked_about_before_it_is_called_again() {
    let (_, doer) = crash_in_the_call(&[Do::Ask(told("card"))], |outer| {
        outer.hanging.insert(told("card"));
    });
    assert_eq!(doer.calls(), ["call card", "ask card"]);
    let (bed, doer) = crash_in_the_call(&[Do::Ask(told("card"))], |outer| {
        outer.lost.insert(told("card"));
    });
    assert_eq!(doer.calls(), ["call card", "ask card", "call card"]);
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn a_step_that_nobody_can_tell_of_yet_is_asked_again_and_never_called() {
    let (mut bed, doer) = bed();
    *doer.outer() = Outer { hanging: [told("card")].into(), is_unknown: true, ..Outer::default() };
    bed.publish(work("1", "a", &[Do::Ask(told("card"))]));
    bed.start();
    bed.wait(Duration::from_secs(5));
    bed.restart();
    bed.wait(Duration::from_secs(5));
    doer.outer().is_unknown = false;
    bed.settle();
    bed.drain();
    let calls = doer.calls();
    assert_eq!(calls.iter().filter(|call| *call == "call card").count(), 1, "{calls:?}");
    assert!(calls.iter().filter(|call| *call == "ask card").count() > 2, "{calls:?}");
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn a_step_whose_end_is_unknown_is_undone_and_called_again() {
    let (bed, doer) = crash_in_the_call(&[Do::Compensate(told("card"))], |outer| {
        outer.hanging.insert(told("card"));
    });
    assert_eq!(doer.calls(), ["call card", "undo card", "call card"]);
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn a_step_whose_end_only_an_operator_can_find_out_is_dead_in_doubt() {
    let tasks = [Do::Add(1), Do::Park(told("card")), Do::Send(told("out"), 1)];
    let (bed, doer) = crash_in_the_call(&tasks, |outer| {
        outer.hanging.insert(told("card"));
    });
    assert_eq!(doer.calls(), ["call card"]);
    bed.assert_outcomes("work", &[("1", "dead: in-doubt")]);
    bed.assert_state::<i64>("work", "a", None);
    bed.assert_published::<i64>("out", &[]);
    let key = doer.outer().happened.first().expect("it happened").clone();
    let error = error_in(&bed, "work.dead");
    assert!(error.contains(r#"step "card""#) && error.contains(&key), "{error}");
}

#[test]
fn a_step_that_ends_in_time_needs_no_policy() {
    let (mut bed, doer) = bed();
    let steps = [Do::Ask(told("a")), Do::Compensate(told("b")), Do::Park(told("c")), Do::Fail(2)];
    bed.publish(work("1", "a", &steps));
    bed.run();
    assert_eq!(doer.calls(), ["call a", "call b", "call c"]);
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn the_timeout_in_a_call_leaves_its_end_unknown_too() {
    let (mut bed, doer) = bed();
    doer.outer().hanging.insert(told("card"));
    bed.publish(work("1", "a", &[Do::Ask(told("card"))]));
    bed.run();
    assert_eq!(doer.calls(), ["call card", "ask card"]);
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn outgoing_messages_keep_the_order_of_their_key_through_lost_connections_and_crashes() {
    let (mut bed, _) = bed();
    for number in 0..200 {
        let key = format!("k{}", number % 7);
        let out = |part: i64| Do::Send(told("out"), number * 2 + part);
        bed.publish(work(&number.to_string(), &key, &[Do::Sleep(3), out(0), out(1)]));
    }
    bed.start();
    for round in 0..12 {
        bed.wait(Duration::from_millis(9));
        if round % 3 == 2 { bed.restart() } else { bed.disconnect() }
    }
    bed.settle();
    bed.drain();
    let mut of_key: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for message in bed.published("out") {
        let number: i64 = serde_json::from_slice(&message.body).expect("a number");
        of_key.entry(number / 2 % 7).or_default().push(number);
    }
    assert_eq!(of_key.values().map(Vec::len).sum::<usize>(), 400);
    for numbers in of_key.values() {
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
}

#[test]
fn what_is_sent_again_after_a_crash_has_its_id_and_its_bytes() {
    let (mut bed, _) = bed();
    let tasks = [Do::Add(1), Do::Tell(told("out")), Do::Tell(told("later"))];
    bed.publish(work("1", "a", &tasks));
    bed.start();
    bed.wait(Duration::from_secs(10));
    bed.crash();
    bed.declare("later");
    bed.run();
    let sent = bed.broker().take_all("out");
    assert_eq!(sent.len(), 2, "the whole row is sent again");
    assert_eq!(sent[0], sent[1]);
    bed.assert_published("later", &[1]);
    bed.assert_published_by("later", &["1"]);
    bed.assert_outcomes("work", &[("1", "done")]);
}

#[test]
fn an_unroutable_message_holds_its_key_for_all_to_see_and_goes_when_it_can() {
    let (mut bed, _) = bed();
    bed.publish(work("1", "a", &[Do::Send(told("nowhere"), 1)]));
    bed.publish(work("2", "a", &[Do::Send(told("nowhere"), 2)]));
    bed.publish(work("3", "b", &[Do::Send(told("out"), 3)]));
    bed.start();
    bed.wait(Duration::from_secs(60));
    bed.assert_published("out", &[3]);
    let readiness = bed.readiness().expect("it runs");
    let [(part, reason)] = &*readiness.faults else { panic!("{readiness:?}") };
    assert_eq!(part, "outgoing messages of queue work");
    assert!(reason.contains("nowhere"), "{reason}");
    assert_eq!(bed.broker().depth("work"), (0, 2), "not acknowledged before it is confirmed");
    bed.declare("nowhere");
    bed.settle();
    assert!(bed.readiness().expect("it runs").is_ready());
    bed.drain();
    bed.assert_published("nowhere", &[1, 2]);
}

#[test]
fn an_unroutable_message_can_go_to_the_dead_letter_queue_by_choice() {
    let mut options = options();
    options.on_unroutable = OnUnroutable::DeadLetter;
    let (mut bed, _) = bed_with(options);
    let tasks = [Do::Add(1), Do::Send(told("nowhere"), 1), Do::Send(told("out"), 2)];
    bed.publish(work("1", "a", &tasks));
    bed.run();
    bed.assert_outcomes("work", &[("1", "done")]);
    bed.assert_published("out", &[2]);
    bed.assert_published("work.dead", &[1]);
    let letter = &bed.published("work.dead")[0];
    assert_eq!(letter.properties.headers["x-onceward-reason"].as_str(), Some("unroutable"));
    assert_eq!(letter.properties.headers["x-onceward-routing-key"].as_str(), Some("nowhere"));
}

#[test]
fn a_duplicate_is_not_acknowledged_before_what_the_first_one_sends_is_confirmed() {
    let (mut bed, _) = bed();
    let tasks = [Do::Send(told("nowhere"), 1)];
    bed.publish(work("1", "a", &tasks));
    bed.start();
    bed.wait(Duration::from_secs(1));
    bed.publish(work("1", "a", &tasks));
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.broker().depth("work"), (0, 2));
    bed.restart();
    bed.publish(work("1", "a", &tasks));
    bed.wait(Duration::from_secs(60));
    assert_eq!(bed.broker().depth("work"), (0, 3));
    bed.declare("nowhere");
    bed.settle();
    bed.drain();
    assert_eq!(bed.broker().take_all("nowhere").len(), 1);
}

#[test]
fn a_caller_who_asks_again_gets_the_first_answer_with_its_correlation() {
    let mut options = options();
    options.on_duplicate = OnDuplicate::Replay;
    let (mut bed, _) = bed_with(options);
    bed.declare("replies");
    let request = work("1", "a", &[Do::Once(told("card"))]).reply_to("replies", "c-1");
    bed.publish(request.clone());
    bed.run();
    bed.publish(request.clone());
    bed.start();
    bed.settle();
    bed.crash();
    bed.publish(request);
    bed.run();
    let replies = bed.broker().take_all("replies");
    assert_eq!(replies.len(), 3);
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:#?}");
    assert_eq!(replies[0].properties.correlation_id.as_deref(), Some("c-1"));
    let answer: String = serde_json::from_slice(&replies[0].body).expect("a text");
    assert_eq!(answer.len(), 32, "the key of the step: {answer}");
    bed.assert_published("replies", &[answer]);
}

#[test]
fn a_caller_that_is_gone_holds_nobody_up() {
    let mut options = options();
    options.on_duplicate = OnDuplicate::Replay;
    let (mut bed, _) = bed_with(options);
    bed.publish(work("1", "a", &[Do::Add(1)]).reply_to("amq.gen-gone", "c-1"));
    bed.publish(work("2", "a", &[Do::Add(1)]));
    bed.run();
    bed.assert_outcomes("work", &[("1", "done"), ("2", "done")]);
    bed.assert_state("work", "a", Some(&2i64));
}

/// Sums what it gets, and notes how many came together.
async fn on_numbers(batch: &mut Batch<i64>) -> onceward::Result {
    let mut sum = batch.state::<i64>()?.unwrap_or(0);
    let together = batch.len();
    for item in batch.iter_mut() {
        match item.value {
            -1 => item.fail(reject("below zero")),
            -2 if item.cx.attempt() < 3 || together > 1 => {
                item.fail(std::io::Error::other("not now"));
            }
            -3 => panic!("three below zero"),
            value => {
                sum += value;
                item.cx.send("out", &value)?;
                item.cx.send("together", &together)?;
            }
        }
    }
    batch.set_state(&sum)?;
    Ok(())
}

fn batch_bed(numbers: &[i64]) -> Testbed {
    let mut bed = Testbed::new();
    let mut options = options();
    options.batch = NonZeroUsize::new(4).expect("not zero");
    options.retry.max_attempts = NonZeroU32::new(4).expect("not zero");
    bed.batch_queue_with(options, on_numbers);
    bed.declare("out");
    bed.declare("together");
    for (index, number) in numbers.iter().enumerate() {
        bed.publish(message("work", &index.to_string(), number).header("key", "a"));
    }
    bed.run();
    bed
}

#[test]
fn waiting_messages_of_a_key_run_together_and_commit_together() {
    let bed = batch_bed(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    bed.assert_published("out", &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    bed.assert_state("work", "a", Some(&45i64));
    let together: Vec<usize> = bed
        .published("together")
        .iter()
        .map(|message| serde_json::from_slice(&message.body).expect("a number"))
        .collect();
    assert!(together.contains(&4), "{together:?}");
}

#[test]
fn one_bad_message_of_a_batch_fails_alone_and_the_order_stays() {
    let bed = batch_bed(&[1, 2, -1, 4, 5]);
    bed.assert_published("out", &[1, 2, 4, 5]);
    bed.assert_state("work", "a", Some(&12i64));
    let done = "done";
    let outcomes = [("0", done), ("1", done), ("2", "dead: rejected"), ("3", done), ("4", done)];
    bed.assert_outcomes("work", &outcomes);
}

#[test]
fn a_batch_that_fails_runs_one_by_one_in_order() {
    let bed = batch_bed(&[1, 2, -2, 4]);
    bed.assert_published("out", &[1, 2, -2, 4]);
    bed.assert_state("work", "a", Some(&5i64));
    let bed = batch_bed(&[1, -3, 4]);
    bed.assert_published("out", &[1, 4]);
    bed.assert_outcomes("work", &[("0", "done"), ("1", "dead: exhausted"), ("2", "done")]);
}

#[test]
fn a_body_that_does_not_decode_leaves_its_batch() {
    let mut bed = Testbed::new();
    bed.batch_queue_with(options(), on_numbers);
    bed.declare("out");
    bed.declare("together");
    bed.publish(message("work", "1", &1).header("key", "a"));
    bed.publish(message("work", "2", "two").header("key", "a"));
    bed.publish(message("work", "3", &3).header("key", "a"));
    bed.run();
    bed.assert_published("out", &[1, 3]);
    bed.assert_outcomes("work", &[("1", "done"), ("2", "dead: decode"), ("3", "done")]);
}

/// Each message sends one of its own length and has steps; the state is as large as a row allows.
async fn on_everything(batch: &mut Batch<usize>) -> onceward::Result {
    if batch.len() == BATCH_MAX {
        batch.iter_mut().next().expect("it has messages").cx.send("full", &true)?;
    }
    for item in batch.iter_mut() {
        item.cx.send("out", &"x".repeat(item.value))?;
        for step in ["one", "two"] {
            item.cx.once(step, async |_| Ok::<_, HandleError>(step.to_owned())).await?;
        }
    }
    batch.set_state(&"s".repeat(2_500))?;
    Ok(())
}

#[test]
fn the_largest_batch_with_every_kind_of_effect_is_one_commit() {
    for bytes in [0, 20, 200, 2_500, 3_000] {
        let mut bed = Testbed::new();
        let mut options = options();
        options.identity.id = vec![Source::Sequence {
            producer: Box::new(Source::Header("producer".to_owned())),
            sequence: Box::new(Source::Header("number".to_owned())),
        }];
        bed.batch_queue_with(options, on_everything);
        bed.declare("out");
        bed.declare("full");
        for number in 0..300 {
            // More producers than one batch may have would make small batches.
            let producer = format!("p{}", number / 50);
            let work = message("work", &number.to_string(), &bytes).header("key", "a");
            bed.publish(work.header("producer", &*producer).header("number", (number * 9) as u32));
        }
        bed.run();
        assert_eq!(bed.published("out").len(), 300, "{bytes} bytes each");
        assert!(!bed.published("full").is_empty(), "no batch was full");
    }
}

#[test]
fn a_message_that_no_broker_takes_kills_its_sender_and_holds_nobody_up() {
    async fn on_text(cx: &mut Context, text: String) -> onceward::Result {
        cx.send("out", &text)?.correlation_id = Some(text.clone());
        Ok(())
    }
    let mut bed = Testbed::new();
    bed.queue_with(options(), on_text);
    bed.declare("out");
    bed.publish(message("work", "1", &"x".repeat(256)).header("key", "a"));
    bed.publish(message("work", "2", "fits").header("key", "a"));
    bed.run();
    bed.assert_outcomes("work", &[("1", "dead: rejected"), ("2", "done")]);
    assert!(error_in(&bed, "work.dead").contains("correlation-id has 256 bytes"));
    bed.assert_published("out", &["fits".to_owned()]);
}

#[test]
fn a_batch_whose_messages_are_exchanged_runs_one_by_one() {
    async fn on_numbers(batch: &mut Batch<i64>) -> onceward::Result {
        let mut items: Vec<_> = batch.iter_mut().collect();
        if let [first, second, ..] = &mut *items {
            std::mem::swap(*first, *second);
        }
        for item in items {
            item.cx.send("out", &item.value)?;
        }
        Ok(())
    }
    let mut bed = Testbed::new();
    bed.batch_queue_with(options(), on_numbers);
    bed.declare("out");
    for number in 0..3 {
        bed.publish(message("work", &number.to_string(), &number).header("key", "a"));
    }
    bed.run();
    bed.assert_published("out", &[0, 1, 2]);
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Lets the worker run over this time, so that it collects what has expired.
fn pass(bed: &mut Testbed, time: Duration) {
    bed.start();
    bed.leap(time);
    bed.wait(Duration::from_secs(10));
    bed.drain();
}

#[test]
fn records_are_kept_as_long_as_the_class_of_their_message_says() {
    let mut options = options();
    options.retention = 7 * DAY;
    let values = BTreeMap::from([(told("short"), DAY), (told("long"), 30 * DAY)]);
    options.retention_by = Some(RetentionBy { header: told("class"), values });
    let (mut bed, _) = bed_with(options);
    let publish = |bed: &mut Testbed| {
        for class in ["short", "usual", "long"] {
            bed.publish(work(class, class, &[Do::Add(1)]).header("class", class));
        }
    };
    let sums = |bed: &Testbed| {
        ["short", "usual", "long"].map(|class| bed.state::<i64>("work", class).expect("a state"))
    };
    publish(&mut bed);
    bed.run();
    pass(&mut bed, 2 * DAY);
    publish(&mut bed);
    bed.run();
    assert_eq!(sums(&bed), [2, 1, 1]);
    pass(&mut bed, 6 * DAY);
    publish(&mut bed);
    bed.run();
    assert_eq!(sums(&bed), [3, 2, 1]);
    bed.crash();
    publish(&mut bed);
    bed.run();
    assert_eq!(sums(&bed), [3, 2, 1], "classes are known again after a restart");
    pass(&mut bed, 23 * DAY);
    publish(&mut bed);
    bed.run();
    assert_eq!(sums(&bed), [4, 3, 2]);
}

#[test]
fn what_arrives_after_its_record_expired_is_noticed_for_one_more_retention() {
    for (policy, sum, outcome) in
        [(OnExpired::Process, 2i64, "done"), (OnExpired::DeadLetter, 1, "dead: expired")]
    {
        let mut options = options();
        options.on_expired = policy;
        options.retention = DAY;
        let (mut bed, _) = bed_with(options);
        let tasks = [Do::Add(1)];
        bed.publish(work("1", "a", &tasks));
        bed.run();
        pass(&mut bed, DAY + DAY / 2);
        bed.assert_outcomes("work", &[("1", "unknown")]);
        bed.crash();
        bed.publish(work("1", "a", &tasks));
        bed.run();
        bed.assert_state("work", "a", Some(&sum));
        bed.assert_outcomes("work", &[("1", outcome)]);
    }
}

#[test]
fn what_arrives_two_retentions_later_is_new() {
    let mut options = options();
    options.on_expired = OnExpired::DeadLetter;
    options.retention = DAY;
    let (mut bed, _) = bed_with(options);
    bed.publish(work("1", "a", &[Do::Add(1)]));
    bed.run();
    pass(&mut bed, DAY + DAY / 2);
    pass(&mut bed, 2 * DAY);
    bed.publish(work("1", "a", &[Do::Add(1)]));
    bed.run();
    bed.assert_state("work", "a", Some(&2i64));
}

fn numbered() -> QueueOptions {
    let mut options = options();
    let header = |name: &str| Box::new(Source::Header(name.to_owned()));
    let sequence = Source::Sequence { producer: header("producer"), sequence: header("number") };
    options.identity.id = vec![sequence];
    options
}

fn nth(producer: &str, number: u32, tasks: &[Do]) -> TestMessage {
    let message = message("work", "", tasks).header("key", producer);
    message.header("producer", producer).header("number", number)
}

#[test]
fn numbered_messages_are_done_once_in_any_order_and_for_ever() {
    let (mut bed, _) = bed_with(numbered());
    for number in [1, 2, 5, 2, 4, 3, 5, 1] {
        bed.publish(nth("p", number, &[Do::Add(1), Do::Send(told("out"), i64::from(number))]));
    }
    bed.publish(nth("q", 1, &[Do::Add(10)]));
    bed.run();
    bed.assert_state("work", "p", Some(&5i64));
    bed.assert_published("out", &[1, 2, 5, 4, 3]);
    pass(&mut bed, 400 * DAY);
    bed.crash();
    for number in 1..=6 {
        bed.publish(nth("p", number, &[Do::Add(1), Do::Send(told("out"), i64::from(number))]));
    }
    bed.run();
    bed.assert_state("work", "p", Some(&6i64));
    bed.assert_state("work", "q", Some(&10i64));
    let done = "done";
    let outcomes = [
        ("p/1", done),
        ("p/2", done),
        ("p/5", done),
        ("p/4", done),
        ("p/3", done),
        ("q/1", done),
        ("p/6", done),
    ];
    bed.assert_outcomes("work", &outcomes);
}

#[test]
fn numbered_messages_survive_every_crash() {
    assert_idempotent(|bed| {
        bed.queue_with(numbered(), Doer::default());
        bed.declare("out");
        for (producer, number) in [("p", 1), ("p", 3), ("q", 1), ("p", 2)] {
            let tasks = [Do::Add(1), Do::Once(told("card")), Do::Tell(told("out"))];
            bed.publish(nth(producer, number, &tasks));
        }
        bed.publish(nth("p", 4, &[Do::Reject]));
        bed.publish(nth("p", 5, &[Do::Fail(1), Do::Add(1)]));
    });
}

#[test]
fn everything_at_once_survives_every_crash() {
    assert_idempotent(|bed| {
        let doer = Doer::default();
        let mut options = options();
        options.on_duplicate = OnDuplicate::Replay;
        bed.queue_with(options, doer.clone());
        bed.declare("out");
        bed.declare("replies");
        let steps = [Do::Ask(told("a")), Do::Compensate(told("b")), Do::Once(told("c"))];
        let effects = [Do::Add(1), Do::Tell(told("out")), Do::Send(told("out"), 9)];
        let tasks = [&steps[..], &effects[..]].concat();
        for (id, key) in [("1", "a"), ("2", "a"), ("3", "b")] {
            bed.publish(work(id, key, &tasks).reply_to("replies", id));
        }
        bed.publish(work("4", "a", &[Do::Fail(2), Do::Add(1), Do::Tell(told("out"))]));
        bed.publish(work("5", "a", &[Do::Add(1), Do::Once(told("d")), Do::Reject]));
        bed.publish(work("6", "a", &[Do::AddIfNew(2, 5), Do::Tell(told("out"))]));
        bed.publish(work("7", "a", &[Do::AddIfNew(1, 5), Do::Clear]));
        bed.observe("happened", move || format!("{:?}", doer.outer().happened));
    });
}

#[test]
fn random_batches_survive_every_crash() {
    async fn on_values(batch: &mut Batch<i64>) -> onceward::Result {
        let mut sum = batch.state::<i64>()?.unwrap_or(0);
        let together = batch.len();
        for item in batch.iter_mut() {
            match item.value {
                0..10 => item.fail(reject("too small")),
                10..15 if together > 1 || item.cx.attempt() < 3 => {
                    item.fail(std::io::Error::other("not now"));
                }
                value => {
                    sum += value;
                    let step = async |key| Ok::<_, HandleError>(key);
                    let key: String = item.cx.once("card", step).await?;
                    item.cx.send("out", &(value, sum, key))?;
                }
            }
        }
        batch.set_state(&sum)?;
        Ok(())
    }
    for seed in seeds() {
        let mut random = fastrand::Rng::with_seed(seed);
        let values: Vec<(u32, i64)> =
            (0..random.usize(1..15)).map(|_| (random.u32(..3), random.i64(0..100))).collect();
        let is_numbered = random.bool();
        assert_idempotent(|bed| {
            let mut options = if is_numbered { numbered() } else { options() };
            options.batch = NonZeroUsize::new(4).expect("not zero");
            bed.batch_queue_with(options, on_values);
            bed.declare("out");
            for (number, (key, value)) in (0..).zip(&values) {
                let message = message("work", &format!("m{number}"), value);
                let message = message.header("key", *key).header("number", number);
                bed.publish(message.header("producer", "p"));
            }
        });
    }
}

/// Seeds of random tests, each said before it is used; `SEED` and `ROUNDS` choose them.
fn seeds() -> impl Iterator<Item = u64> {
    let of = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = of("SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let rounds = of("ROUNDS").unwrap_or(3);
    (first..first + rounds).inspect(|seed| {
        println!("again: SEED={seed} ROUNDS=1 cargo test --features testkit --test effects random");
    })
}

/// What a random message does; nothing that ends otherwise after a crash.
fn random_tasks(random: &mut fastrand::Rng) -> Vec<Do> {
    let step = |random: &mut fastrand::Rng| format!("step {}", random.u8(..3));
    let task = |random: &mut fastrand::Rng| match random.u8(..14) {
        0..3 => Do::Add(random.i64(1..100)),
        3 => Do::Clear,
        4 => Do::Tell(told("out")),
        5 => Do::Send(told("out"), random.i64(..)),
        6 => Do::Send(told("more"), random.i64(..)),
        7 => Do::AddIfNew(random.u64(..5), random.i64(1..100)),
        8 => Do::Once(step(random)),
        9 => Do::Ask(step(random)),
        10 => Do::Compensate(step(random)),
        11 => Do::Fail(random.u32(..3)),
        12 => Do::Sleep(random.u64(..20)),
        _ if random.u8(..4) == 0 => Do::Reject,
        _ => Do::SendBytes(told("out"), random.usize(..9000)),
    };
    (0..random.usize(..7)).map(|_| task(random)).collect()
}

#[test]
fn random_messages_survive_every_crash() {
    for seed in seeds() {
        let mut random = fastrand::Rng::with_seed(seed);
        let is_numbered = random.bool();
        let messages: Vec<TestMessage> = (0..random.u32(1..8))
            .map(|number| {
                let (tasks, key) = (random_tasks(&mut random), format!("k{}", random.u8(..3)));
                if is_numbered {
                    nth(&key, number, &tasks)
                } else {
                    work(&number.to_string(), &key, &tasks).reply_to("replies", &key)
                }
            })
            .collect();
        assert_idempotent(|bed| {
            let doer = Doer::default();
            let mut options = if is_numbered { numbered() } else { options() };
            if !is_numbered {
                options.on_duplicate = OnDuplicate::Replay;
            }
            bed.queue_with(options, doer.clone());
            for queue in ["out", "more", "replies"] {
                bed.declare(queue);
            }
            for message in &messages {
                bed.publish(message.clone());
            }
            bed.observe("happened", move || format!("{:?}", doer.outer().happened));
        });
    }
}
