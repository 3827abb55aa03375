//! What the demo publishes: orders, their twins, and which of them are bad.
//!
//! Pure: the same size and seed give the same orders in the same sequence, down to the byte. Each key's orders rise by
//! one; a twin comes after its original. Knows nothing of brokers and of what becomes of an order.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{HeaderValue, Message, Properties};

/// Header with the ordering key.
pub(super) const KEY_HEADER: &str = "x-customer";

/// A twin follows its original after at most this many other orders.
const TWIN_DISTANCE_MAX: usize = 200;

/// How much of what is published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) orders: usize,
    pub(super) keys: usize,
    /// Fraction of the orders that are published twice, 0 to 1.
    pub(super) duplicates: f64,
}

/// All orders of a run of the demo, and the sequence in which they are published.
#[derive(Debug)]
pub(super) struct Plan {
    orders: Vec<Order>,
    sequence: Vec<usize>,
    id_prefix: String,
}

/// One order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) key: usize,
    /// Its place among the orders of its key, from 1.
    pub(super) place: usize,
    pub(super) kind: Kind,
}

/// What the handler finds when it looks at an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Good,
    /// Its first attempt fails.
    Flaky,
    /// It is rejected.
    Invalid,
}

/// An order as JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrderBody {
    pub(super) customer: String,
    pub(super) place: usize,
    /// An order of nothing is invalid.
    pub(super) cents: u32,
    /// Whether the payment service is away when it is first asked.
    pub(super) flaky: bool,
}

impl Plan {
    /// The orders of this size and seed; `run` tells their ids from those of other runs with the same seed.
    pub(super) fn new(size: Size, seed: u64, run: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let orders = orders(size, &mut random);
        let sequence = sequence(size, &mut random);
        Self { orders, sequence, id_prefix: format!("demo-{seed}-{run:x}-") }
    }

    /// The orders by number, from 0.
    pub(super) fn orders(&self) -> &[Order] {
        &self.orders
    }

    /// Numbers of orders in the sequence of publishing, twins included.
    pub(super) fn sequence(&self) -> &[usize] {
        &self.sequence
    }

    /// The message-id of an order.
    pub(super) fn id(&self, number: usize) -> String {
        format!("{}{number}", self.id_prefix)
    }

    /// The number of an order of this run; `None` for the id of anything else.
    pub(super) fn number(&self, id: &str) -> Option<usize> {
        let number: usize = id.strip_prefix(&self.id_prefix)?.parse().ok()?;
        (number < self.orders.len()).then_some(number)
    }

    /// The message of an order for this queue, the same bytes each time.
    pub(super) fn message(&self, number: usize, queue: &str) -> Option<Message> {
        let order = self.orders.get(number)?;
        let customer = format!("customer-{}", order.key);
        let cents = match order.kind {
            Kind::Invalid => 0,
            Kind::Good | Kind::Flaky => 100 + u32::try_from(number % 9_900).unwrap_or(0),
        };
        let body = OrderBody {
            customer: customer.clone(),
            place: order.place,
            cents,
            flaky: order.kind == Kind::Flaky,
        };
        let mut properties = Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some(self.id(number)),
            ..Properties::default()
        };
        let key = HeaderValue::from(customer);
        properties.headers.insert(KEY_HEADER.to_owned(), key);
        Some(Message {
            exchange: String::new(),
            routing_key: queue.to_owned(),
            properties,
            body: Bytes::from(serde_json::to_vec(&body).ok()?),
        })
    }
}

fn orders(size: Size, random: &mut fastrand::Rng) -> Vec<Order> {
    let keys = size.keys.max(1);
    let mut places = vec![0; keys];
    let mut keys: Vec<usize> = (0..size.orders).map(|number| number % keys).collect();
    random.shuffle(&mut keys);
    let mut kinds = vec![Kind::Good; size.orders];
    let special = |per_mille: usize| (size.orders * per_mille).div_ceil(1000);
    let kinds_first = std::iter::repeat_n(Kind::Invalid, special(1))
        .chain(std::iter::repeat_n(Kind::Flaky, special(2)));
    for (kind, chosen) in kinds.iter_mut().zip(kinds_first) {
        *kind = chosen;
    }
    random.shuffle(&mut kinds);
    let mut place = |key: usize| {
        places.get_mut(key).map_or(0, |place| {
            *place += 1;
            *place
        })
    };
    let orders = keys.into_iter().zip(kinds);
    orders.map(|(key, kind)| Order { key, place: place(key), kind }).collect()
}

fn sequence(size: Size, random: &mut fastrand::Rng) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..size.orders).collect();
    random.shuffle(&mut numbers);
    let twins = (size.orders as f64 * size.duplicates.clamp(0.0, 1.0)).round() as usize;
    numbers.truncate(twins);
    // A twin sorts behind the original whose place it takes, so never before its own.
    let mut publishes: Vec<(usize, bool, usize)> = numbers
        .into_iter()
        .map(|number| (number + random.usize(1..=TWIN_DISTANCE_MAX), true, number))
        .chain((0..size.orders).map(|number| (number, false, number)))
        .collect();
    publishes.sort_unstable();
    publishes.into_iter().map(|(.., number)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { orders: 5_000, keys: 70, duplicates: 0.3 };

    #[test]
    fn a_seed_gives_the_same_messages_each_time() {
        let (a, b, other) = (Plan::new(SIZE, 7, 1), Plan::new(SIZE, 7, 1), Plan::new(SIZE, 8, 1));
        assert_eq!((&a.orders, &a.sequence), (&b.orders, &b.sequence));
        assert_ne!(a.sequence, other.sequence);
        assert_eq!(a.message(4_999, "q"), b.message(4_999, "q"));
        assert_eq!(a.message(5_000, "q"), None);
    }

    #[test]
    fn the_orders_of_a_key_are_published_in_their_places_and_twins_follow() {
        let plan = Plan::new(SIZE, 1, 1);
        let mut published = vec![0; SIZE.orders];
        let mut last = vec![0; SIZE.keys];
        for &number in plan.sequence() {
            published[number] += 1;
            let Order { key, place, .. } = plan.orders()[number];
            if published[number] == 1 {
                last[key] += 1;
                assert_eq!(place, last[key]);
            }
        }
        assert_eq!(published.iter().filter(|times| **times == 2).count(), 1_500);
        assert!(published.iter().all(|times| (1..=2).contains(times)));
    }

    #[test]
    fn a_few_orders_are_bad() {
        let plan = Plan::new(SIZE, 1, 1);
        let count = |kind| plan.orders().iter().filter(|o| o.kind == kind).count();
        assert_eq!((count(Kind::Invalid), count(Kind::Flaky)), (5, 10));
    }

    #[test]
    fn ids_of_other_runs_are_foreign() {
        let (plan, other) = (Plan::new(SIZE, 1, 1), Plan::new(SIZE, 1, 2));
        assert_eq!(plan.number(&plan.id(17)), Some(17));
        assert_eq!(plan.number(&other.id(17)), None);
        assert_eq!(plan.number(&plan.id(5_000)), None);
    }
}
