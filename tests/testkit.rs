//! Goal: the test kit finds what a crash or a second delivery loses or doubles, and finds nothing where nothing is.
//!
//! Method: handlers of every kind, sound ones and ones with a planted fault, as a user would test them.

use std::num::{NonZeroU32, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onceward::testkit::{Testbed, assert_idempotent, message};
use onceward::{
    Asked, Batch, Context, HandleError, Handler, OnDuplicate, QueueOptions, Retry, Source, State,
    reject, stateful,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Account {
    cents: i64,
    transfers: u32,
}

impl State for Account {
    const NAME: &'static str = "account";
}

/// Another system: what it was asked to do, once per key if it dedupes.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<(String, i64)>>>);

impl Ledger {
    fn book(&self, key: impl Into<String>, cents: i64) {
        self.0.lock().expect("not poisoned").push((key.into(), cents));
    }

    fn book_once(&self, key: impl Into<String>, cents: i64) {
        let key = key.into();
        if !self.has(&key) {
            self.book(key, cents);
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.lock().expect("not poisoned").iter().any(|(known, _)| known == key)
    }

    fn total(&self) -> i64 {
        self.0.lock().expect("not poisoned").iter().map(|(_, cents)| cents).sum()
    }
}

fn accounts() -> QueueOptions {
    let mut options = QueueOptions::new("accounts");
    options.identity.key = vec![Source::Header("x-account".to_owned())];
    options
}

fn transfer(id: &str, account: &str, cents: i64) -> onceward::Message {
    message("accounts", id, &cents).header("x-account", account).into()
}

async fn on_transfer(account: &mut Account, cx: &mut Context, cents: i64) -> onceward::Result<i64> {
    if cents == 0 {
        return Err(reject("nothing to transfer"));
    }
    account.cents += cents;
    account.transfers += 1;
    cx.publish("events", "transferred", &cents)?;
    cx.send("audit", &account.cents)?;
    Ok(account.cents)
}

/// Books at the ledger, in a step or beside it.
struct Charging {
    ledger: Ledger,
    in_step: bool,
}

impl Handler<i64> for Charging {
    async fn handle(&self, cx: &mut Context, cents: i64) -> onceward::Result {
        let balance = cx.state::<i64>()?.unwrap_or(0) + cents;
        if self.in_step {
            let booked = async |key| {
                self.ledger.book_once(key, cents);
                Ok::<_, HandleError>(())
            };
            cx.once("card", booked).await?;
        } else {
            let said: String = cx.once("card", async |key| Ok::<_, HandleError>(key)).await?;
            self.ledger.book(said, cents);
        }
        cx.set_state(&balance)?;
        cx.send("receipts", &balance)?;
        Ok(())
    }
}

/// What the assertion says of a scenario that is not idempotent.
fn complaint(scenario: impl Fn(&mut Testbed)) -> String {
    let failed = catch_unwind(AssertUnwindSafe(|| assert_idempotent(scenario)));
    let panic = failed.expect_err("the scenario has a fault");
    panic.downcast_ref::<String>().expect("a text").clone()
}

fn charging(bed: &mut Testbed, in_step: bool) {
    let ledger = Ledger::default();
    bed.queue_with(accounts(), Charging { ledger: ledger.clone(), in_step });
    bed.declare("receipts");
    bed.publish(transfer("t1", "alice", 250));
    bed.publish(transfer("t2", "alice", 5));
    bed.publish(transfer("t3", "bob", 70));
    bed.observe("ledger", move || ledger.total().to_string());
}

#[test]
fn what_a_scenario_leaves_behind_is_asserted_from_outside() {
    let mut bed = Testbed::new();
    bed.queue_with(accounts(), stateful(on_transfer));
    bed.bind("events", "transferred", "billing");
    bed.declare("audit");
    for (id, account, cents) in
        [("t1", "alice", 250), ("t2", "alice", 0), ("t3", "alice", -50), ("t4", "bob", 70)]
    {
        bed.publish(transfer(id, account, cents));
    }
    bed.run();
    bed.assert_state("accounts", "alice", Some(&Account { cents: 200, transfers: 2 }));
    bed.assert_state::<Account>("accounts", "carol", None);
    bed.assert_published_by("billing", &["t1", "t3", "t4"]);
    bed.assert_published("billing", &[250, -50, 70]);
    bed.assert_published("audit", &[250, 200, 70]);
    bed.assert_published("accounts.dead", &[0]);
    bed.assert_published_by("accounts.dead", &["t2"]);
    let outcomes = [("t1", "done"), ("t2", "dead: rejected"), ("t3", "done"), ("t4", "done")];
    bed.assert_outcomes("accounts", &outcomes);
}

#[test]
fn a_bed_goes_on_where_it_was_after_crashes_and_drains() {
    let mut bed = Testbed::new();
    bed.queue_with(accounts(), stateful(on_transfer));
    bed.bind("events", "transferred", "billing");
    bed.declare("audit");
    bed.publish(transfer("t1", "alice", 250));
    bed.start();
    bed.settle();
    bed.crash();
    bed.publish(transfer("t1", "alice", 250));
    bed.publish(transfer("t2", "alice", 1));
    bed.run();
    bed.restart();
    bed.publish(transfer("t3", "alice", 1));
    bed.disconnect();
    bed.settle();
    bed.drain();
    bed.assert_state("accounts", "alice", Some(&Account { cents: 252, transfers: 3 }));
    bed.assert_published("audit", &[250, 251, 252]);
}

#[test]
fn a_crash_takes_what_was_not_synced() {
    let mut bed = Testbed::new();
    bed.queue_with(accounts(), stateful(on_transfer));
    bed.bind("events", "transferred", "billing");
    bed.declare("audit");
    bed.start();
    bed.wait(Duration::from_secs(1));
    bed.disk().set_sync_delay(Duration::from_secs(5));
    bed.publish(transfer("t1", "alice", 250));
    bed.wait(Duration::from_secs(1));
    bed.crash();
    bed.assert_outcomes("accounts", &[("t1", "unknown")]);
    bed.assert_state::<Account>("accounts", "alice", None);
    bed.assert_published::<i64>("billing", &[]);
    bed.run();
    bed.assert_outcomes("accounts", &[("t1", "done")]);
    bed.assert_published("billing", &[250]);
}

#[test]
fn a_sound_handler_with_state_messages_and_a_result_is_idempotent() {
    assert_idempotent(|bed| {
        bed.queue_with(accounts(), stateful(on_transfer));
        bed.bind("events", "transferred", "billing");
        bed.declare("audit");
        for (id, account, cents) in
            [("t1", "alice", 250), ("t2", "bob", 70), ("t3", "alice", 0), ("t4", "alice", -50)]
        {
            bed.publish(transfer(id, account, cents));
        }
    });
}

#[test]
fn a_step_with_a_ledger_that_dedupes_is_idempotent() {
    assert_idempotent(|bed| charging(bed, true));
}

#[test]
fn an_effect_beside_the_steps_is_found_and_the_commit_is_named() {
    let text = complaint(|bed| charging(bed, false));
    println!("{text}");
    assert!(text.starts_with("after a crash before commit "), "{text}");
    assert!(text.contains(r#" of message "t"#), "{text}");
    assert!(text.contains(" was durable: observation \"ledger\" is \""), "{text}");
    assert!(text.contains("in the clean run \"325\""), "{text}");
}

#[test]
fn an_effect_before_a_step_is_found_at_that_step() {
    struct Early(Ledger);
    impl Handler<i64> for Early {
        async fn handle(&self, cx: &mut Context, cents: i64) -> onceward::Result {
            self.0.book("early", cents);
            cx.once("card", async |_| Ok::<_, HandleError>(())).await
        }
    }
    let text = complaint(|bed| {
        let ledger = Ledger::default();
        bed.queue_with(accounts(), Early(ledger.clone()));
        bed.publish(transfer("t1", "alice", 250));
        bed.observe("ledger", move || ledger.total().to_string());
    });
    assert!(
        text.contains(r#"(step "card" of message "t1") was durable: observation "ledger" is "500", in the clean run "250""#),
        "{text}"
    );
}

#[test]
fn a_message_that_a_handler_makes_anew_in_each_attempt_is_found() {
    struct Counts(Ledger);
    impl Handler<i64> for Counts {
        async fn handle(&self, cx: &mut Context, cents: i64) -> onceward::Result {
            self.0.book("run", 1);
            cx.send("receipts", &(cents, self.0.total()))?;
            Ok(())
        }
    }
    let text = complaint(|bed| {
        bed.queue_with(accounts(), Counts(Ledger::default()));
        bed.declare("receipts");
        bed.publish(transfer("t1", "alice", 250));
    });
    let expected = r#"outgoing message 1 of message "t1" of queue "accounts" is "[250,2] to queue "receipts"", in the clean run "[250,1] to queue "receipts"""#;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn chance_in_a_scenario_is_said_to_be_chance() {
    let runs = std::cell::Cell::new(0);
    let text = complaint(|bed| {
        runs.set(runs.get() + 1);
        bed.queue_with(accounts(), async |_: &mut Context, _: i64| Ok(()));
        bed.publish(transfer("t1", "alice", 250));
        let run = runs.get();
        bed.observe("run", move || run.to_string());
    });
    assert!(text.starts_with("two clean runs differ"), "{text}");
}

#[test]
fn steps_that_ask_or_compensate_are_idempotent_with_a_ledger_that_does_not_dedupe() {
    struct Asks(Ledger);
    impl Handler<i64> for Asks {
        async fn handle(&self, cx: &mut Context, cents: i64) -> onceward::Result {
            let ledger = &self.0;
            cx.once_or_ask(
                "asked",
                async |key| {
                    let asked = if ledger.has(&key) { Asked::Happened(()) } else { Asked::DidNot };
                    Ok::<_, HandleError>(asked)
                },
                async |key| {
                    ledger.book(key, cents);
                    Ok::<_, HandleError>(())
                },
            )
            .await?;
            cx.once_or_compensate(
                "compensated",
                async |key| {
                    ledger.0.lock().expect("not poisoned").retain(|(known, _)| *known != key);
                    Ok::<_, HandleError>(())
                },
                async |key| {
                    ledger.book(key, cents);
                    Ok::<_, HandleError>(())
                },
            )
            .await
        }
    }
    assert_idempotent(|bed| {
        let ledger = Ledger::default();
        bed.queue_with(accounts(), Asks(ledger.clone()));
        bed.publish(transfer("t1", "alice", 250));
        bed.publish(transfer("t2", "alice", 1));
        bed.observe("ledger", move || ledger.total().to_string());
    });
}

#[test]
fn a_batch_with_a_bad_message_is_idempotent() {
    async fn on_readings(batch: &mut Batch<i64>) -> onceward::Result {
        let mut sum = batch.state::<i64>()?.unwrap_or(0);
        for item in batch.iter_mut() {
            if item.value < 0 {
                item.fail(reject("below zero"));
            } else {
                sum += item.value;
                item.cx.send("clean", &item.value)?;
            }
        }
        batch.set_state(&sum)?;
        Ok(())
    }
    assert_idempotent(|bed| {
        let mut options = accounts();
        options.batch = NonZeroUsize::new(10).expect("not zero");
        bed.batch_queue_with(options, on_readings);
        bed.declare("clean");
        for (number, cents) in [3, 4, -1, 5, 6].into_iter().enumerate() {
            bed.publish(transfer(&format!("r{number}"), "alice", cents));
        }
    });
}

#[test]
fn a_saga_over_two_queues_with_retries_and_replies_is_idempotent() {
    async fn on_order(cx: &mut Context, cents: i64) -> onceward::Result<String> {
        if cx.attempt() == 1 && cents > 100 {
            return Err(std::io::Error::other("not yet").into());
        }
        cx.send("accounts", &cents)?.headers.insert("x-account".to_owned(), "alice".into());
        Ok(format!("accepted {cents}"))
    }
    assert_idempotent(|bed| {
        let mut orders = QueueOptions::new("orders");
        orders.on_duplicate = OnDuplicate::Replay;
        orders.retry =
            Retry { max_attempts: NonZeroU32::new(5).expect("not zero"), ..Retry::default() };
        bed.queue_with(orders, on_order);
        bed.queue_with(accounts(), stateful(on_transfer));
        bed.bind("events", "transferred", "billing");
        bed.declare("audit");
        bed.declare("replies");
        bed.publish(message("orders", "o1", &250).reply_to("replies", "c1"));
        bed.run();
        bed.publish(message("orders", "o2", &25).reply_to("replies", "c2"));
    });
}

#[test]
fn what_hangs_is_told() {
    let mut bed = Testbed::new();
    bed.queue_with(accounts(), Charging { ledger: Ledger::default(), in_step: true });
    bed.publish(transfer("t1", "alice", 250));
    let failed = catch_unwind(AssertUnwindSafe(|| bed.run())).expect_err("no queue takes it");
    let text = failed.downcast_ref::<String>().expect("a text");
    assert!(text.contains(r#"queue "accounts" has 0 waiting and 1 unacknowledged"#), "{text}");
    assert!(text.contains("outgoing messages of queue accounts"), "{text}");
}

#[tokio::test]
#[should_panic(expected = "use it in a plain #[test] function")]
async fn a_bed_inside_a_runtime_says_where_it_belongs() {
    let _ = Testbed::new();
}
