//! Which tags of a channel may be acknowledged, and how with the fewest frames.
//!
//! Pure. Tags of a channel are dense and rise from 1. The longest finished prefix takes one `multiple` ack. A finished
//! tag behind an unfinished one waits a little for the gap to close, then is acked alone. A `multiple` ack never covers
//! an unfinished tag and always names one that is still outstanding: anything else closes the channel with 406.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::planted::{self, Bug};

/// How long a finished tag waits for the gap before it to close: about one group of commits.
///
/// Longer saves frames, shorter frees the prefetch window sooner.
const STRAGGLER_WAIT: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(crate) struct AckWindow {
    /// The highest tag that has finished.
    highest: u64,
    /// Unfinished tags below the highest: at most as many as the prefetch.
    gaps: BTreeSet<u64>,
    /// The highest tag, if it has finished without a gap below and is not acked; of those just before it only their
    /// number is known. Most tags finish so, and cost no place in a map.
    leading: Option<u64>,
    led: usize,
    /// Other finished tags that are not acked, and since when.
    finished: BTreeMap<u64, Instant>,
}

impl AckWindow {
    /// Tags that are finished and wait to be acked.
    pub(crate) fn unacked(&self) -> usize {
        self.led + self.finished.len()
    }

    /// The tag's outcome is persisted. Once a tag.
    pub(crate) fn finish(&mut self, tag: u64, now: Instant) {
        if self.gaps.is_empty() && tag == self.highest + 1 {
            self.highest = tag;
            self.leading = Some(tag);
            self.led += 1;
            return;
        }
        if tag > self.highest {
            self.gaps.extend(self.highest + 1..tag);
            self.highest = tag;
        } else {
            assert!(self.gaps.remove(&tag), "tag {tag} was settled before");
        }
        self.finished.insert(tag, now);
    }

    /// The tag to name in one `multiple` ack, if anything leads the window.
    pub(crate) fn take_prefix(&mut self) -> Option<u64> {
        let behind = match self.gaps.first() {
            Some(gap) => self.finished.split_off(gap),
            None => BTreeMap::new(),
        };
        let prefix = std::mem::replace(&mut self.finished, behind);
        // What leads did so before there was a gap, or when the last one had closed.
        let leading = self.leading.take();
        self.led = 0;
        let last = prefix.last_key_value().map(|(tag, _)| *tag).max(leading);
        last.map(|tag| if planted::is(Bug::AckWindowOffByOne) { tag + 1 } else { tag })
    }

    /// Finished tags behind an unfinished one that have waited long enough, to be acked one by one.
    pub(crate) fn take_stragglers(&mut self, now: Instant) -> Vec<u64> {
        self.take_finished(|finished_at| now.duration_since(finished_at) >= STRAGGLER_WAIT)
    }

    /// All finished tags behind an unfinished one: the channel is about to close.
    pub(crate) fn take_rest(&mut self) -> Vec<u64> {
        self.take_finished(|_| true)
    }

    /// When the next straggler has waited long enough.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.finished.values().min().map(|finished_at| *finished_at + STRAGGLER_WAIT)
    }

    fn take_finished(&mut self, is_due: impl Fn(Instant) -> bool) -> Vec<u64> {
        let due = self.finished.iter().filter(|(_, finished_at)| is_due(**finished_at));
        let taken: Vec<u64> = due.map(|(tag, _)| *tag).collect();
        for tag in &taken {
            self.finished.remove(tag);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What a broker holds of a channel, and what it says to an ack.
    struct Broker {
        outstanding: BTreeSet<u64>,
    }

    impl Broker {
        fn ack(&mut self, tag: u64, multiple: bool) -> Vec<u64> {
            assert!(self.outstanding.contains(&tag), "406: {tag} is not outstanding");
            let acked: Vec<u64> = if multiple {
                self.outstanding.range(..=tag).copied().collect()
            } else {
                vec![tag]
            };
            acked.iter().for_each(|tag| assert!(self.outstanding.remove(tag)));
            acked
        }
    }

    /// Tags in the order in which they finish: as they came, about so, or in any order.
    fn order() -> impl Strategy<Value = Vec<u64>> {
        let delays = proptest::collection::vec(0u64..60, 60);
        (prop_oneof![Just(1u64), Just(4), Just(60)], delays).prop_map(|(most, delays)| {
            let mut tags: Vec<(u64, u64)> =
                (1..=60).zip(delays).map(|(tag, delay)| (tag + delay % most, tag)).collect();
            tags.sort_unstable();
            tags.into_iter().map(|(_, tag)| tag).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn every_finished_tag_is_acked_once_and_no_other(
            order in order(),
            steps in proptest::collection::vec((0usize..8, 0u64..8), 1..80),
            finish_all: bool,
        ) {
            let mut now = Instant::now();
            let mut window = AckWindow::default();
            let mut broker = Broker { outstanding: (1..=60).collect() };
            let mut finished = BTreeSet::new();
            let mut acked = BTreeSet::new();
            let mut order = order.into_iter();
            let mut settle = |window: &mut AckWindow, rest: bool, now: Instant,
                              finished: &BTreeSet<u64>| {
                let prefix = window.take_prefix().map(|tag| (tag, true));
                let alone = if rest { window.take_rest() } else { window.take_stragglers(now) };
                let alone = alone.into_iter().map(|tag| (tag, false));
                for (tag, multiple) in prefix.into_iter().chain(alone) {
                    for tag in broker.ack(tag, multiple) {
                        assert!(finished.contains(&tag), "{tag} is acked and not finished");
                        assert!(acked.insert(tag));
                    }
                }
                acked.len()
            };
            for (finish, wait_ms) in steps {
                now += Duration::from_millis(wait_ms);
                for tag in order.by_ref().take(finish) {
                    window.finish(tag, now);
                    finished.insert(tag);
                }
                settle(&mut window, false, now, &finished);
            }
            if finish_all {
                for tag in order {
                    window.finish(tag, now);
                    finished.insert(tag);
                }
            }
            prop_assert_eq!(settle(&mut window, true, now, &finished), finished.len());
            prop_assert!(window.next_due().is_none());
        }
    }

    #[test]
    fn a_tag_that_never_finishes_holds_back_no_memory() {
        let mut now = Instant::now();
        let mut window = AckWindow::default();
        for tag in 2..100_000u64 {
            now += Duration::from_micros(100);
            window.finish(tag, now);
            assert_eq!(window.take_prefix(), None);
            let _ = window.take_stragglers(now);
            assert!(window.finished.len() <= 50 && window.gaps.len() == 1);
        }
    }

    #[test]
    fn a_prefix_takes_one_frame_and_a_straggler_waits_for_its_gap() {
        let now = Instant::now();
        let mut window = AckWindow::default();
        for tag in [1, 2, 4] {
            window.finish(tag, now);
        }
        assert_eq!(window.take_prefix(), Some(2));
        assert!(window.take_stragglers(now).is_empty());
        assert_eq!(window.next_due(), Some(now + STRAGGLER_WAIT));
        window.finish(3, now);
        assert_eq!(window.take_prefix(), Some(4));
        window.finish(6, now);
        assert_eq!(window.take_stragglers(now + STRAGGLER_WAIT), [6]);
        window.finish(5, now);
        assert_eq!(window.take_prefix(), Some(5));
    }
}
