//! A test kit for your own handlers: a broker in the process, a simulated disk, a paused clock.
//!
//! Feature `testkit`, for `[dev-dependencies]`. A [`Testbed`] runs a real worker on them, kills it where you say, and
//! shows what is durable and downstream. [`assert_idempotent`] does that for you at every commit of a scenario, and
//! names the fault after which something was lost or doubled. Nothing here takes real time, and a test is a plain
//! `#[test]`.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use onceward::testkit::{Testbed, assert_idempotent, message};
//! use onceward::{Context, Handler, QueueOptions, Source, State};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Transfer { cents: i64 }
//!
//! #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
//! struct Account { cents: i64 }
//!
//! impl State for Account {
//!     const NAME: &'static str = "account";
//! }
//!
//! /// Stands in for a payment service that dedupes by the key of a charge.
//! #[derive(Clone, Default)]
//! struct Payments(Arc<Mutex<Vec<(String, i64)>>>);
//!
//! impl Payments {
//!     fn charge(&self, key: String, cents: i64) {
//!         let mut charges = self.0.lock().unwrap();
//!         if !charges.iter().any(|(known, _)| *known == key) {
//!             charges.push((key, cents));
//!         }
//!     }
//!
//!     fn total(&self) -> i64 {
//!         self.0.lock().unwrap().iter().map(|(_, cents)| cents).sum()
//!     }
//! }
//!
//! struct OnTransfer { payments: Payments }
//!
//! impl Handler<Transfer> for OnTransfer {
//!     async fn handle(&self, cx: &mut Context, transfer: Transfer) -> onceward::Result {
//!         if transfer.cents <= 0 {
//!             return Err(onceward::reject("nothing to transfer"));
//!         }
//!         let mut account: Account = cx.state()?.unwrap_or_default();
//!         account.cents += transfer.cents;
//!         let payments = &self.payments;
//!         cx.once("card", async |key| {
//!             payments.charge(key, transfer.cents);
//!             Ok::<_, onceward::HandleError>(())
//!         })
//!         .await?;
//!         cx.set_state(&account)?;
//!         cx.publish("events", "transferred", &account)?;
//!         Ok(())
//!     }
//! }
//!
//! fn accounts() -> QueueOptions {
//!     let mut options = QueueOptions::new("accounts");
//!     options.identity.key = vec![Source::Header("x-account".to_owned())];
//!     options
//! }
//!
//! fn transfer(id: &str, account: &str, cents: i64) -> onceward::Message {
//!     message("accounts", id, &Transfer { cents }).header("x-account", account).into()
//! }
//!
//! // What it does:
//! let mut bed = Testbed::new();
//! bed.queue_with(accounts(), OnTransfer { payments: Payments::default() });
//! bed.bind("events", "transferred", "billing");
//! bed.publish(transfer("t1", "alice", 250));
//! bed.publish(transfer("t2", "alice", 50));
//! bed.publish(transfer("t3", "alice", 0));
//! bed.run();
//! bed.assert_state("accounts", "alice", Some(&Account { cents: 300 }));
//! bed.assert_published("billing", &[Account { cents: 250 }, Account { cents: 300 }]);
//! bed.assert_outcomes("accounts", &[("t1", "done"), ("t2", "done"), ("t3", "dead: rejected")]);
//!
//! // That it does so once, whatever happens in between:
//! assert_idempotent(|bed| {
//!     let payments = Payments::default();
//!     bed.queue_with(accounts(), OnTransfer { payments: payments.clone() });
//!     bed.bind("events", "transferred", "billing");
//!     bed.publish(transfer("t1", "alice", 250));
//!     bed.publish(transfer("t2", "bob", 50));
//!     bed.observe("charged", move || payments.total().to_string());
//! });
//! ```
//!
//! A handler that changes something else without a [step](crate::Context::once) is found:
//!
//! ```should_panic
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use onceward::testkit::{assert_idempotent, message};
//! use onceward::{Context, Handler, QueueOptions};
//!
//! struct SendsMail { sent: Arc<AtomicU64> }
//!
//! impl Handler<String> for SendsMail {
//!     async fn handle(&self, cx: &mut Context, address: String) -> onceward::Result {
//!         self.sent.fetch_add(1, Ordering::Relaxed); // A crash behind this line sends it again.
//!         cx.send("sent", &address)?;
//!         Ok(())
//!     }
//! }
//!
//! // Panics: after a crash before commit 2 of 3 (the end of message "m1": done) was durable:
//! // observation "mails" is "2", in the clean run "1"
//! assert_idempotent(|bed| {
//!     let sent = Arc::new(AtomicU64::new(0));
//!     bed.queue_with(QueueOptions::new("mails"), SendsMail { sent: Arc::clone(&sent) });
//!     bed.declare("sent");
//!     bed.publish(message("mails", "m1", "ada@example.org"));
//!     bed.observe("mails", move || sent.load(Ordering::Relaxed).to_string());
//! });
//! ```

mod assert;
mod bed;
mod books;
mod fault;
mod idempotent;
mod message;
mod origin;
mod snapshot;
mod wire;
mod world;

pub use self::bed::Testbed;
pub use self::idempotent::assert_idempotent;
pub use self::message::{TestMessage, message, raw_message};
