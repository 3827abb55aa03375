//! Which numbers of a producer are done: a low mark below which all are, and the ranges above it.
//!
//! A row is bounded: when gaps make it too long, the lowest is given up, and of what is below it nobody can say any
//! more whether it was done. The marks themselves are pure; [`Watermarks`] has those that are durable.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Persisted, Store};
use crate::identity::{Identity, SequenceId};

pub(super) const WATERMARK_PREFIX: &[u8] = b"w";

/// Longest row of one producer, in bytes.
pub(super) const MARKS_BYTES_MAX: usize = 3500;

/// By how many bytes one number lengthens a row at most.
pub(super) const ADVANCE_BYTES_MAX: usize = 24;

/// Bytes of a row's key.
pub(super) const MARKS_KEY_BYTES: usize = 17;

pub(super) fn watermark_key(producer: Identity) -> Vec<u8> {
    [WATERMARK_PREFIX, producer.as_bytes()].concat()
}

/// What the watermark of its producer says of a numbered message.
#[derive(Debug)]
pub(crate) enum Watermark {
    New,
    Done(Persisted),
    /// Below a gap that had to be given up: it may have been done.
    Unsure,
}

impl Watermark {
    pub(crate) const fn is_new(&self) -> bool {
        matches!(self, Self::New)
    }
}

/// The numbers of one producer that are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// All below are done or given up.
    low: u64,
    /// Below this, what is done and what was given up cannot be told apart; not above `low`.
    unsure_below: u64,
    /// First and last number of each run above `low`: in order, with gaps between.
    runs: Vec<(u64, u64)>,
}

/// As it lies in its row: each run as its distance from what is before it, and its length.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MarksRow {
    pub(super) low: u64,
    pub(super) unsure_below: u64,
    pub(super) runs: Vec<(u64, u64)>,
}

/// What marks say of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    New,
    Done,
    Unsure,
}

impl Marks {
    pub(super) fn look(&self, number: u64) -> Mark {
        if number < self.unsure_below {
            return Mark::Unsure;
        }
        let at = self.runs.partition_point(|(_, last)| *last < number);
        let in_run = self.runs.get(at).is_some_and(|(first, _)| *first <= number);
        if number < self.low || in_run { Mark::Done } else { Mark::New }
    }

    /// The number is done.
    pub(super) fn advance(&mut self, number: u64) {
        if self.look(number) != Mark::New {
            return;
        }
        let at = self.runs.partition_point(|(_, last)| *last < number);
        // No overflow: there are numbers between the runs, and this is one of them.
        let before = at.checked_sub(1).filter(|at| {
            self.runs.get(*at).is_some_and(|(_, last)| last.checked_add(1) == Some(number))
        });
        let joins_next =
            self.runs.get(at).is_some_and(|(first, _)| number.checked_add(1) == Some(*first));
        let last = match self.runs.get(at) {
            Some((_, last)) if joins_next => *last,
            _ => number,
        };
        match (before.and_then(|before| self.runs.get_mut(before)), joins_next) {
            (Some(before), _) => {
                before.1 = last;
                if joins_next {
                    self.runs.remove(at);
                }
            }
            (None, true) => {
                if let Some(next) = self.runs.get_mut(at) {
                    next.0 = number;
                }
            }
            (None, false) => self.runs.insert(at, (number, number)),
        }
        self.raise_low();
    }

    /// The run that begins at the low mark, if there is one, is below it from now on.
    fn raise_low(&mut self) {
        if let Some((first, last)) = self.runs.first().copied()
            && first == self.low
            && let Some(low) = last.checked_add(1)
        {
            self.low = low;
            self.runs.remove(0);
        }
    }

    /// Gives up the lowest gaps until the row is no longer than this; how many numbers were given up.
    pub(super) fn squeeze(&mut self, bytes_max: usize) -> u64 {
        let mut given_up: u64 = 0;
        while self.row_bytes() > bytes_max
            && let Some((first, last)) = self.runs.first().copied()
            && let Some(low) = last.checked_add(1)
        {
            given_up = given_up.saturating_add(first - self.low);
            // What is done in the run itself stays known.
            self.unsure_below = first;
            self.low = low;
            self.runs.remove(0);
        }
        given_up
    }

    pub(super) fn to_row(&self) -> MarksRow {
        let mut from = self.low;
        let runs = self.runs.iter().map(|(first, last)| {
            let run = (first - from, last - first);
            from = *last;
            run
        });
        MarksRow { runs: runs.collect(), low: self.low, unsure_below: self.unsure_below }
    }

    /// What the row says; `None` if no marks are encoded like that.
    pub(super) fn from_row(row: MarksRow) -> Option<Self> {
        let MarksRow { low, unsure_below, runs } = row;
        let mut from = low;
        let mut decoded = Vec::with_capacity(runs.len());
        for (distance, length) in runs {
            let first = from.checked_add(distance).filter(|_| distance > 0)?;
            let last = first.checked_add(length)?;
            decoded.push((first, last));
            from = last;
        }
        (unsure_below <= low).then_some(Self { low, unsure_below, runs: decoded })
    }

    /// The number behind the last one that is done.
    #[cfg(feature = "simulation")]
    pub(super) fn end(&self) -> u64 {
        self.runs.last().map_or(self.low, |(_, last)| last.saturating_add(1))
    }

    /// Length of the sealed row.
    pub(super) fn row_bytes(&self) -> usize {
        const SEAL_BYTES: usize = 5;
        let mut from = self.low;
        let mut bytes = SEAL_BYTES
            + varint_bytes(self.low)
            + varint_bytes(self.unsure_below)
            + varint_bytes(self.runs.len() as u64);
        for (first, last) in &self.runs {
            bytes += varint_bytes(first - from) + varint_bytes(last - first);
            from = *last;
        }
        bytes
    }
}

/// Length of postcard's variable-length integer.
const fn varint_bytes(number: u64) -> usize {
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// The durable marks of all producers; written by the committer only.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    marks: Mutex<HashMap<Identity, Marks>>,
}

impl Watermarks {
    fn marks(&self) -> MutexGuard<'_, HashMap<Identity, Marks>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, producer: Identity) -> Marks {
        self.marks().get(&producer).cloned().unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.marks().len()
    }

    /// These are durable now.
    pub(super) fn set(&self, marks: impl IntoIterator<Item = (Identity, Marks)>) {
        self.marks().extend(marks);
    }
}

impl Store {
    /// What is known of a numbered message.
    pub(crate) fn watermark(&self, sequence: SequenceId) -> Watermark {
        let marks = self.shared.watermarks.marks();
        let mark = marks.get(&sequence.producer).map_or(Mark::New, |m| m.look(sequence.number));
        match mark {
            Mark::New => Watermark::New,
            Mark::Done => Watermark::Done(Persisted(())),
            Mark::Unsure => Watermark::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::record;
    use super::*;

    /// Numbers near each other, so that runs meet, and at both ends of what a number can be.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![6 => 0..60_u64, 1 => 1000..1010_u64, 1 => u64::MAX - 3..=u64::MAX]
    }

    fn check(marks: &Marks) -> Result<(), TestCaseError> {
        let sealed = record::seal(&marks.to_row());
        prop_assert_eq!(sealed.len(), marks.row_bytes());
        let row = record::unseal(&sealed).expect("it was sealed");
        let decoded = Marks::from_row(row);
        prop_assert_eq!(decoded.as_ref(), Some(marks));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn marks_know_exactly_what_a_set_of_numbers_knows(
            numbers in proptest::collection::vec(number(), 0..200),
        ) {
            let (mut marks, mut set) = (Marks::default(), BTreeSet::new());
            for done in numbers {
                let before = marks.row_bytes();
                marks.advance(done);
                set.insert(done);
                prop_assert!(marks.row_bytes() <= before + ADVANCE_BYTES_MAX);
                check(&marks)?;
            }
            for number in (0..70).chain(995..1015).chain(u64::MAX - 5..=u64::MAX) {
                let expected = if set.contains(&number) { Mark::Done } else { Mark::New };
                prop_assert_eq!(marks.look(number), expected, "{}", number);
            }
        }

        #[test]
        fn squeezed_marks_stay_in_their_bytes_and_never_say_anything_wrong(
            numbers in proptest::collection::vec(0..3000_u64, 0..400), bytes_max in 30..300_usize,
        ) {
            let (mut marks, mut set) = (Marks::default(), BTreeSet::new());
            for done in numbers {
                if marks.look(done) == Mark::New {
                    set.insert(done);
                }
                marks.advance(done);
                marks.squeeze(bytes_max);
                prop_assert!(marks.row_bytes() <= bytes_max);
                check(&marks)?;
            }
            for number in 0..3010 {
                match marks.look(number) {
                    Mark::Done => prop_assert!(set.contains(&number), "{} is not done", number),
                    Mark::New => prop_assert!(!set.contains(&number), "{} is done", number),
                    Mark::Unsure => prop_assert!(number < marks.low),
                }
            }
        }
    }

    #[test]
    fn numbers_in_order_take_one_mark_and_no_runs() {
        let mut marks = Marks::default();
        (0..100_000).for_each(|number| marks.advance(number));
        assert_eq!(marks, Marks { low: 100_000, ..Marks::default() });
    }

    #[test]
    fn a_row_that_no_marks_encode_to_is_refused() {
        for runs in [vec![(0, 1)], vec![(1, u64::MAX)]] {
            assert_eq!(Marks::from_row(MarksRow { low: 5, unsure_below: 0, runs }), None);
        }
        assert_eq!(Marks::from_row(MarksRow { low: 5, unsure_below: 6, runs: vec![] }), None);
    }
}
