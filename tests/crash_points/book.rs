//! What is seen from outside, in one order: a history for the checker, and what has arrived downstream.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};

use lapin::message::Delivery;
use lapin::types::AMQPValue;
use onceward::simulation::history::{Call, Ended, Entry, Event, History, Letter, RunEnd, Seen};
use tokio::time::Instant;

use crate::traffic::{CLASS_HEADER, Change, KEY_HEADER, Order};
use crate::worker::{self, Report};

/// A message that has arrived in the downstream queue.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// Its outgoing id.
    pub(crate) id: String,
    pub(crate) body: Vec<u8>,
    pub(crate) change: Change,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    pub(crate) outgoing_id: String,
    /// Of the order that is dead.
    pub(crate) number: u64,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    /// Whether body, id and headers are those of the order.
    pub(crate) is_whole: bool,
}

/// A run of a handler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) attempt: u32,
    /// Whether its change was downstream before this life began.
    pub(crate) is_late: bool,
}

#[derive(Default)]
pub(crate) struct Pages {
    pub(crate) history: History,
    /// All that was or will be published, by number.
    pub(crate) orders: HashMap<u64, Order>,
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) deaths: Vec<Death>,
    pub(crate) runs: Vec<Run>,
    /// What the ledger was asked to charge: key and order.
    pub(crate) calls: Vec<(String, u64)>,
    /// What cannot be.
    pub(crate) wrong: Vec<String>,
    pub(crate) life: u32,
    pub(crate) copies: u64,
    /// Numbers of orders of which something is downstream, or a dead letter.
    pub(crate) ended: HashSet<u64>,
    /// Of those, what was so when the current life began.
    ended_before: HashSet<u64>,
}

/// Clones are the same book.
#[derive(Clone)]
pub(crate) struct Book {
    queue: Arc<str>,
    started: Instant,
    pages: Arc<Mutex<Pages>>,
}

impl Book {
    pub(crate) fn new(queue: &str) -> Self {
        Self { queue: queue.into(), started: Instant::now(), pages: Arc::default() }
    }

    pub(crate) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("nothing panics under it")
    }

    fn name(&self, of: impl std::fmt::Display) -> Arc<str> {
        format!("{}/{of}", self.queue).into()
    }

    fn seen(&self, order: &Order, copy: u64) -> Seen {
        Seen {
            // Records of ticks expire at any time: the checker is asked about the others.
            queue: if order.is_tick() { "ticks".into() } else { Arc::clone(&self.queue) },
            name: self.name(order.name()),
            key: Some(self.name(&order.key)),
            class: None,
            fingerprint: fingerprint(&order.body()),
            has_id: order.id().is_some(),
            copy,
        }
    }

    fn write(&self, pages: &mut Pages, event: Event) {
        let at_ms = self.started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        pages.history.entries.push(Entry { at_ms, event });
    }

    /// Forgets all but how many there were.
    pub(crate) fn turn(&self) {
        let mut pages = self.pages();
        let Pages { life, copies, .. } = *pages;
        *pages = Pages { life, copies, ..Pages::default() };
    }

    pub(crate) fn event(&self, event: Event) {
        self.write(&mut self.pages(), event);
    }

    /// An order is about to be published, and will be until it is confirmed.
    pub(crate) fn accepted(&self, order: &Order) {
        let mut pages = self.pages();
        pages.copies += 1;
        pages.orders.insert(order.number, order.clone());
        let seen = self.seen(order, pages.copies);
        self.write(&mut pages, Event::Accepted(seen));
    }

    /// The next life begins; gives its number.
    pub(crate) fn begin_life(&self) -> u32 {
        let mut pages = self.pages();
        pages.life += 1;
        pages.ended_before = pages.ended.clone();
        pages.life
    }

    /// A line of a worker; others than reports are of the test's harness.
    pub(crate) fn reported(&self, life: u32, line: &str) {
        let Ok(report) = serde_json::from_str::<Report>(line) else { return };
        let mut pages = self.pages();
        let (Report::Run { number, .. } | Report::End { number, .. }) = report;
        let Some(order) = pages.orders.get(&number).cloned() else {
            return pages.wrong.push(format!("{report:?} of what was never published"));
        };
        let seen = self.seen(&order, 0);
        match report {
            Report::Run { attempt, .. } => {
                let is_late = !order.is_tick() && pages.ended_before.contains(&number);
                pages.runs.push(Run { number, attempt, is_late });
                self.write(&mut pages, Event::Run { life, seen, attempt, batch: None });
            }
            Report::End { attempt, ended, .. } => {
                let ended = match ended {
                    worker::Ended::Ok => RunEnd::Ok,
                    worker::Ended::Failed => RunEnd::Failed,
                    worker::Ended::Rejected => RunEnd::Rejected,
                };
                self.write(&mut pages, Event::End { life, seen, attempt, batch: None, ended });
            }
        }
    }

    /// The ledger is called.
    pub(crate) fn called(&self, effect_key: &str, number: u64) {
        let mut pages = self.pages();
        pages.calls.push((effect_key.to_owned(), number));
        let (life, name) = (pages.life, self.name(format!("m{number}")));
        let (step, effect_key, call) = ("fee".into(), effect_key.into(), Call::Repeatable);
        let event = Event::Called { life, name, step, effect_key, call };
        self.write(&mut pages, event);
    }

    /// A message has arrived downstream.
    pub(crate) fn arrived(&self, to: &str, delivery: &Delivery) {
        let mut pages = self.pages();
        let id = delivery.properties.message_id().clone().map(|id| id.to_string());
        let change = serde_json::from_slice::<Change>(&delivery.data);
        let (Some(id), Ok(change)) = (id, change) else {
            return pages.wrong.push(format!("downstream: {:?}", delivery.properties));
        };
        let (life, body) = (pages.life, delivery.data.clone());
        pages.ended.insert(change.number);
        let event = Event::Published {
            life,
            id: id.as_str().into(),
            body: fingerprint(&body),
            to: vec![to.into()],
            letter: None,
            answers: None,
        };
        pages.arrivals.push(Arrival { id, body, change });
        self.write(&mut pages, event);
    }

    /// A message has arrived in the dead-letter queue.
    pub(crate) fn died(&self, to: &str, delivery: &Delivery) {
        let mut pages = self.pages();
        let text = |name| header(delivery, name);
        let number = number_of(&delivery.data);
        let order = number.and_then(|number| pages.orders.get(&number)).cloned();
        let (Some(order), Some(outgoing_id), Some(reason)) =
            (order, text("x-onceward-outgoing-id"), text("x-onceward-reason"))
        else {
            return pages.wrong.push(format!("a dead letter: {:?}", delivery.properties));
        };
        let attempts = text("x-onceward-attempts").and_then(|text| text.parse().ok());
        let class = order.is_tick().then(|| "tick".to_owned());
        let id = delivery.properties.message_id().clone().map(|id| id.to_string());
        let is_whole = delivery.data == order.body()
            && id == order.id()
            && text(KEY_HEADER).as_ref() == Some(&order.key)
            && text(CLASS_HEADER) == class;
        let death = Death {
            outgoing_id,
            number: order.number,
            reason,
            attempts: attempts.unwrap_or(u32::MAX),
            is_whole,
        };
        let event = Event::Published {
            life: pages.life,
            id: death.outgoing_id.as_str().into(),
            body: fingerprint(&delivery.data),
            to: vec![to.into()],
            letter: Some(Letter {
                name: self.name(order.name()),
                fingerprint: fingerprint(&order.body()),
                reason: death.reason.as_str().into(),
                attempts: death.attempts,
                is_whole,
            }),
            answers: None,
        };
        pages.ended.insert(order.number);
        pages.deaths.push(death);
        self.write(&mut pages, event);
    }
}

/// Of an order's body, also if it is none.
fn number_of(body: &[u8]) -> Option<u64> {
    let order = serde_json::from_slice::<Order>(body).map(|order| order.number);
    let text = || std::str::from_utf8(body).ok()?.strip_prefix("no order: ")?.parse().ok();
    order.ok().or_else(text)
}

/// A header's value as text.
fn header(delivery: &Delivery, name: &str) -> Option<String> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::LongUInt(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

pub(crate) fn fingerprint(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// How the checker calls an end.
pub(crate) fn ended(reason: Option<&str>) -> Ended {
    reason.map_or(Ended::Done, |reason| Ended::Dead(reason.into()))
}
