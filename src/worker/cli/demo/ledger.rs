//! The ledger: what happened to each order, written down outside the runtime, and the judgement at the end.
//!
//! The handler tells of each run's start and end, the observer at the broker of each ack, the publisher of each
//! confirmation. It decides nothing while the demo runs and believes nothing that the runtime says about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::orders::{Kind, Order, Plan};

mod run;

pub(super) use self::run::Run;

/// How many ids a verdict names of each fault.
const NAMED_MAX: usize = 10;

/// What is known of every order.
#[derive(Debug)]
pub(super) struct Ledger {
    plan: Arc<Plan>,
    book: Mutex<Book>,
    /// Orders that ended: completed or rejected.
    ended: watch::Sender<usize>,
}

/// What the ledger says at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Messages that the broker confirmed, twins included.
    pub(super) published: u64,
    /// Orders that had their effect.
    pub(super) effects: usize,
    /// Runs that a teardown made necessary again, under the same effect key.
    pub(super) repeated_runs: u64,
    /// Orders whose effect another system would have made twice.
    pub(super) doubled: Vec<usize>,
    /// Orders that were published and neither had their effect nor are in the dead-letter queue.
    pub(super) lost: Vec<usize>,
    /// Orders that took effect before an earlier one of their key.
    pub(super) out_of_order: Vec<usize>,
    /// Good orders in the dead-letter queue.
    pub(super) wrongly_dead: Vec<usize>,
}

#[derive(Debug, Default)]
struct Book {
    published: u64,
    repeated_runs: u64,
    orders: Vec<Entry>,
    keys: Vec<KeyEntry>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    confirmed: bool,
    runs_open: u32,
    /// How the last run ended, if one did.
    last: Option<RunEnd>,
    /// Under which effect keys it was completed.
    effect_keys: BTreeSet<String>,
    rejected: bool,
    acked: bool,
    doubled: bool,
    out_of_order: bool,
}

#[derive(Clone, Debug, Default)]
struct KeyEntry {
    /// Numbers of its orders by place.
    numbers: Vec<usize>,
    /// How many of them, from the first, are completed or invalid.
    ended_before: usize,
    /// Highest place with an ack.
    acked_place: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunEnd {
    Completed,
    Failed,
    /// The runtime was torn down under it.
    Cut,
}

impl Ledger {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        let mut keys: Vec<KeyEntry> = Vec::new();
        for (number, order) in plan.orders().iter().enumerate() {
            if keys.len() <= order.key {
                keys.resize(order.key + 1, KeyEntry::default());
            }
            if let Some(key) = keys.get_mut(order.key) {
                key.numbers.push(number);
            }
        }
        let book =
            Book { orders: vec![Entry::default(); plan.orders().len()], keys, ..Book::default() };
        Self { plan, book: Mutex::new(book), ended: watch::Sender::new(0) }
    }

    /// The broker has confirmed a publish of this order.
    pub(super) fn confirmed(&self, number: usize) {
        let mut book = self.lock();
        book.published += 1;
        if let Some(entry) = book.orders.get_mut(number) {
            entry.confirmed = true;
        }
    }

    /// A run of the handler starts.
    pub(super) fn start(&self, number: usize) -> Run<'_> {
        let mut book = self.lock();
        let place = self.order(number).map_or(0, |order| order.place);
        // A later one of the key was acked, so it was durable: this one must have been durable before it.
        let overtaken = self
            .order(number)
            .and_then(|order| book.keys.get(order.key))
            .is_some_and(|key| key.acked_place > place);
        if let Some(entry) = book.orders.get_mut(number) {
            entry.doubled |= entry.acked || entry.runs_open > 0;
            entry.out_of_order |= overtaken;
            entry.runs_open += 1;
            if matches!(entry.last, Some(RunEnd::Completed | RunEnd::Cut)) {
                book.repeated_runs += 1;
            }
        }
        drop(book);
        Run { ledger: self, number, end: RunEnd::Cut }
    }

    /// The broker got an ack for a delivery of this order.
    pub(super) fn acked(&self, number: usize) {
        let mut book = self.lock();
        if let Some(entry) = book.orders.get_mut(number) {
            entry.acked = true;
        }
        let Some(order) = self.order(number) else {
            return;
        };
        if let Some(key) = book.keys.get_mut(order.key) {
            key.acked_place = key.acked_place.max(order.place);
        }
    }

    /// How many orders have ended; changes whenever one does.
    pub(super) fn ended(&self) -> watch::Receiver<usize> {
        self.ended.subscribe()
    }

    /// The judgement, given the outgoing ids in the dead-letter queue by order.
    pub(super) fn judge(&self, dead: &BTreeMap<usize, BTreeSet<String>>) -> Verdict {
        let book = self.lock();
        let mut verdict = Verdict {
            published: book.published,
            repeated_runs: book.repeated_runs,
            ..Verdict::default()
        };
        let none = BTreeSet::new();
        for (number, (entry, order)) in book.orders.iter().zip(self.plan.orders()).enumerate() {
            let letters = dead.get(&number).unwrap_or(&none);
            let outcomes = entry.effect_keys.len() + letters.len();
            if !entry.effect_keys.is_empty() {
                verdict.effects += 1;
            }
            if entry.doubled || outcomes > 1 {
                verdict.doubled.push(number);
            }
            if entry.confirmed && outcomes == 0 {
                verdict.lost.push(number);
            }
            if entry.out_of_order {
                verdict.out_of_order.push(number);
            }
            if order.kind != Kind::Invalid && !letters.is_empty() {
                verdict.wrongly_dead.push(number);
            }
        }
        verdict
    }

    /// Ids of the first orders that have not ended, for a demo that is stuck.
    pub(super) fn missing(&self) -> Vec<String> {
        let book = self.lock();
        let missing = book.orders.iter().enumerate();
        let missing = missing.filter(|(_, entry)| !entry.has_ended());
        let ids = missing.map(|(number, _)| self.plan.id(number));
        ids.take(NAMED_MAX).collect()
    }

    fn order(&self, number: usize) -> Option<&Order> {
        self.plan.orders().get(number)
    }

    fn end(&self, run: &Run<'_>) {
        let mut book = self.lock();
        if let Some(entry) = book.orders.get_mut(run.number) {
            entry.runs_open -= 1;
            entry.last = Some(run.end);
        }
    }

    fn complete(&self, number: usize, effect_key: String) {
        let Some(order) = self.order(number) else {
            return;
        };
        let mut book = self.lock();
        let Book { orders, keys, .. } = &mut *book;
        let first = orders.get(number).is_some_and(|entry| !entry.has_ended());
        if let Some(key) = keys.get_mut(order.key).filter(|_| first) {
            let ended = |number: usize| {
                let entry = orders.get(number);
                self.is_invalid(number) || entry.is_some_and(|entry| !entry.effect_keys.is_empty())
            };
            while let Some(&next) = key.numbers.get(key.ended_before)
                && ended(next)
            {
                key.ended_before += 1;
            }
            let overtakes = key.ended_before + 1 < order.place;
            if let Some(entry) = orders.get_mut(number) {
                entry.out_of_order |= overtakes;
            }
        }
        if let Some(entry) = orders.get_mut(number) {
            entry.effect_keys.insert(effect_key);
        }
        drop(book);
        self.count_end(first);
    }

    fn reject(&self, number: usize) {
        let mut book = self.lock();
        let mut first = false;
        if let Some(entry) = book.orders.get_mut(number) {
            first = !entry.has_ended();
            entry.rejected = true;
        }
        drop(book);
        self.count_end(first);
    }

    fn count_end(&self, first: bool) {
        if first {
            self.ended.send_modify(|ended| *ended += 1);
        }
    }

    fn is_invalid(&self, number: usize) -> bool {
        self.order(number).is_some_and(|order| order.kind == Kind::Invalid)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn has_ended(&self) -> bool {
        self.rejected || !self.effect_keys.is_empty()
    }
}

#[cfg(test)]
mod tests;
