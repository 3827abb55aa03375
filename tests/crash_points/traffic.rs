//! What is published, and what must come of it: pure, and the same again from the same random numbers.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

/// Header with the ordering key.
pub(crate) const KEY_HEADER: &str = "x-key";

/// Header that gives ticks their short retention.
pub(crate) const CLASS_HEADER: &str = "x-class";

/// The key of all messages whose records expire while the test runs.
const TICKS: &str = "ticks";

/// What the handler does with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Changes the state and sends the change.
    Plain,
    /// Sends a large message too.
    Large,
    /// Has the ledger charge it, in a step.
    Charge,
    /// Fails so often before.
    Flaky {
        fails: u32,
    },
    /// Takes so long.
    Slow {
        ms: u64,
    },
    /// Sends a message and changes no state; its record expires soon.
    Tick,
    /// Is the last of its key.
    Fence,
    Reject,
    /// Fails at every attempt.
    Exhaust,
    /// Is no order.
    Undecodable,
    NoId,
    /// Has the id of this order, and a body of its own.
    Conflict {
        with: u64,
    },
}

/// A message of a producer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) key: String,
    pub(crate) value: i64,
    pub(crate) kind: Kind,
}

impl Order {
    pub(crate) fn id(&self) -> Option<String> {
        match self.kind {
            Kind::NoId => None,
            Kind::Conflict { with } => Some(format!("m{with}")),
            _ => Some(format!("m{}", self.number)),
        }
    }

    /// What a history calls it.
    pub(crate) fn name(&self) -> String {
        self.id().unwrap_or_else(|| format!("#{}", self.number))
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        match self.kind {
            Kind::Undecodable => format!("no order: {}", self.number).into_bytes(),
            _ => serde_json::to_vec(self).expect("an order is JSON"),
        }
    }

    /// Why it dies, if it does.
    pub(crate) const fn reason(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Reject => Some("rejected"),
            Kind::Exhaust => Some("exhausted"),
            Kind::Undecodable => Some("decode"),
            Kind::NoId => Some("missing-id"),
            Kind::Conflict { .. } => Some("conflict"),
            _ => None,
        }
    }

    pub(crate) fn is_tick(&self) -> bool {
        self.kind == Kind::Tick
    }
}

/// What the handler sends of an order that is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) number: u64,
    pub(crate) key: String,
    /// All values of the key so far, and how many they are.
    pub(crate) sum: i64,
    pub(crate) count: u64,
    pub(crate) receipt: Option<String>,
    /// What makes it large.
    pub(crate) padding: String,
}

/// How often each kind is published.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    pub(crate) keys: usize,
    /// How many times the numbers of the smallest traffic in which each point is reached ten times.
    pub(crate) scale: usize,
    /// How long the slow ones take, which have keys of their own.
    pub(crate) slow_ms: u64,
    /// How many of them.
    pub(crate) slow_each: usize,
}

/// Keys of the slow ones: as many actors are at work when a drain begins.
pub(crate) const SLOW_KEYS: usize = 12;

/// What is published in waves, each confirmed before the next one; no key is twice in a wave.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) waves: Vec<Vec<Order>>,
    /// Behind all others, and behind all twins.
    pub(crate) slow: Vec<Order>,
    pub(crate) fences: Vec<Order>,
}

impl Plan {
    /// The orders are numbered from `first`.
    pub(crate) fn new(mix: &Mix, first: u64, random: &mut fastrand::Rng) -> Self {
        let counts = [
            (Kind::Plain, 12),
            (Kind::Large, 2),
            (Kind::Charge, 12),
            (Kind::Flaky { fails: 2 }, 7),
            (Kind::Tick, 24),
            (Kind::Reject, 6),
            (Kind::Exhaust, 5),
            (Kind::Undecodable, 1),
            (Kind::NoId, 1),
        ];
        let mut kinds: Vec<Kind> = counts
            .into_iter()
            .flat_map(|(kind, count)| std::iter::repeat_n(kind, count * mix.scale))
            .collect();
        random.shuffle(&mut kinds);
        let mut next = first;
        let mut order = |key: String, kind: Kind, value: i64| {
            next += 1;
            Order { number: next - 1, key, value, kind }
        };
        let mut orders: Vec<Order> = Vec::new();
        for kind in kinds {
            let key = match kind {
                Kind::Tick => TICKS.to_owned(),
                _ => format!("k{}", random.usize(..mix.keys)),
            };
            orders.push(order(key, kind, random.i64(1..1000)));
        }
        for _ in 0..mix.scale {
            let plain = orders.iter().position(|order| order.kind == Kind::Plain);
            let at = plain.expect("there are plain ones");
            let (with, key) = (orders[at].number, orders[at].key.clone());
            let conflict = order(key, Kind::Conflict { with }, 0);
            orders.insert(random.usize(at + 1..=orders.len()), conflict);
        }
        for _ in 0..8 * mix.scale {
            let at = random.usize(..orders.len());
            if !matches!(orders[at].kind, Kind::NoId | Kind::Tick) {
                let twin = orders[at].clone();
                orders.insert(random.usize(at + 1..=(at + 30).min(orders.len())), twin);
            }
        }
        let slow_count = SLOW_KEYS * mix.slow_each;
        let slow_keys = (0..slow_count).map(|number| format!("slow{}", number % SLOW_KEYS));
        let slow = Kind::Slow { ms: mix.slow_ms };
        let slow: Vec<Order> = slow_keys.map(|key| order(key, slow.clone(), 1)).collect();
        let keys: HashSet<&String> = orders.iter().chain(&slow).map(|order| &order.key).collect();
        let mut keys: Vec<String> = keys.into_iter().cloned().collect();
        keys.sort_unstable();
        let fences = keys.into_iter().map(|key| order(key, Kind::Fence, 0)).collect();
        Self { waves: waves(orders), slow, fences }
    }

    /// Every message in the order of publishing, twins among them.
    pub(crate) fn orders(&self) -> impl Iterator<Item = &Order> {
        self.waves.iter().flatten().chain(&self.slow).chain(&self.fences)
    }

    /// The number of the next plan's first order.
    pub(crate) fn next(&self) -> u64 {
        self.orders().map(|order| order.number + 1).max().unwrap_or(0)
    }
}

/// In order, of at most five.
fn waves(orders: Vec<Order>) -> Vec<Vec<Order>> {
    let mut waves: Vec<Vec<Order>> = vec![Vec::new()];
    for order in orders {
        let wave = waves.last_mut().expect("there is one");
        if wave.len() == 5 || wave.iter().any(|other| other.key == order.key) {
            waves.push(vec![order]);
        } else {
            wave.push(order);
        }
    }
    waves
}

/// How an order must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this as the sum and the number of the key's values.
    Done {
        sum: i64,
        count: u64,
    },
    Dead {
        reason: &'static str,
    },
}

/// The sums of all keys, one order after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    accounts: BTreeMap<String, (i64, u64)>,
}

impl Model {
    /// How each order ends, by its number, in the order in which those of a key must.
    pub(crate) fn ends(&mut self, plan: &Plan) -> BTreeMap<u64, (Order, End)> {
        let mut ends = BTreeMap::new();
        for order in plan.orders() {
            if ends.contains_key(&order.number) {
                continue;
            }
            let end = match order.reason() {
                Some(reason) => End::Dead { reason },
                None if order.is_tick() => End::Done { sum: 0, count: 0 },
                None => {
                    let (sum, count) = self.accounts.entry(order.key.clone()).or_default();
                    (*sum, *count) = (*sum + order.value, *count + 1);
                    End::Done { sum: *sum, count: *count }
                }
            };
            ends.insert(order.number, (order.clone(), end));
        }
        ends
    }
}
