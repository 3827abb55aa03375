//! The messages: persistent, with an id and a key, and some of them are twins of an earlier one.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

pub(crate) const BODY_BYTES: usize = 256;
pub(crate) const KEYS: u64 = 10_000;
pub(crate) const TWINS_PERCENT: u64 = 10;

/// Header with the nanosecond of [`monotonic_ns`](crate::clock::monotonic_ns) at which a message was due.
///
/// A header, as the body of a twin must be that of its first.
pub(crate) const DUE_HEADER: &str = "x-due-ns";

/// How far back the first of a twin may be: memory of the bench stays bounded when it goes on for hours.
const FIRSTS_MAX: usize = 1_000_000;

/// The same sequence of messages each time.
pub(crate) struct Mix {
    random: fastrand::Rng,
    firsts: Vec<u64>,
    distinct: u64,
}

pub(crate) struct Made {
    pub(crate) properties: BasicProperties,
    pub(crate) body: [u8; BODY_BYTES],
}

impl Mix {
    pub(crate) fn new() -> Self {
        Self { random: fastrand::Rng::with_seed(17), firsts: Vec::new(), distinct: 0 }
    }

    /// How many of those made so far are no twins.
    pub(crate) const fn distinct(&self) -> u64 {
        self.distinct
    }

    /// The next message, which says when it was due if it should.
    pub(crate) fn make(&mut self, due_ns: Option<u64>) -> Made {
        // All else of a message follows from its seed: a twin is the same message.
        let mut content = fastrand::Rng::with_seed(self.seed());
        let mut headers = FieldTable::default();
        let key = format!("key-{}", content.u64(..KEYS));
        headers.insert("x-key".into(), AMQPValue::LongString(key.into()));
        if let Some(due_ns) = due_ns {
            headers.insert(DUE_HEADER.into(), AMQPValue::LongLongInt(due_ns as i64));
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(format!("{:032x}", content.u128(..)).into())
            .with_headers(headers);
        let mut body = [0; BODY_BYTES];
        content.fill(&mut body);
        Made { properties, body }
    }

    fn seed(&mut self) -> u64 {
        let twin = self.random.u64(..100) < TWINS_PERCENT;
        if let (true, Some(&seed)) = (twin, self.random.choice(&self.firsts)) {
            return seed;
        }
        let seed = self.random.u64(..);
        let place = self.distinct as usize % FIRSTS_MAX;
        match self.firsts.get_mut(place) {
            Some(oldest) => *oldest = seed,
            None => self.firsts.push(seed),
        }
        self.distinct += 1;
        seed
    }
}
