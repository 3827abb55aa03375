//! Whether what a queue's handler calls seems to be dead, and when it is tried again.
//!
//! Pure: time is an argument. Opens after failures of different messages in a row, lets one probe at a time through
//! while it is open, each later than the one before, and closes with the first success. Does not wait, and does not
//! know what is said of it in log and metrics.

use std::time::Duration;

use tokio::time::Instant;

use crate::identity::Identity;
use crate::options::BreakerOptions;

/// Longest delay of the next probe that a handler can ask for.
const AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest delay that an option can name: one that the clock can add.
const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[derive(Debug)]
pub(crate) struct Breaker {
    options: BreakerOptions,
    /// Not before this a probe: the latest that a handler has asked for since the last success.
    not_before: Option<Instant>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With the messages that failed since the last success or rejection, each once.
    Closed(Vec<Identity>),
    Open(Open),
}

#[derive(Debug)]
struct Open {
    since: Instant,
    probe_at: Instant,
    /// From a probe that fails to the next one.
    delay: Duration,
    probing: bool,
}

/// Whether an attempt may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Run,
    /// As the one probe: the caller says how it ended.
    Probe,
    /// Ask again then; or, while a probe runs, when it has ended.
    Wait(Option<Instant>),
}

/// What a failed attempt means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It is one of the message's attempts.
    Counts,
    /// It opened the breaker, and is no attempt of the message's.
    Opens,
    /// The breaker is open, and it is no attempt of the message's.
    IsOpen,
}

impl Breaker {
    pub(crate) fn new(options: BreakerOptions) -> Self {
        let [probe, max] = [options.probe, options.max].map(|time| time.min(DELAY_MAX));
        let options = BreakerOptions { probe, max, ..options };
        Self { options, not_before: None, state: State::Closed(Vec::new()) }
    }

    /// Since when it is open.
    pub(crate) const fn open_since(&self) -> Option<Instant> {
        match &self.state {
            State::Open(open) => Some(open.since),
            State::Closed(_) => None,
        }
    }

    /// Whether it is closed and nothing has failed since the last success.
    pub(crate) const fn is_calm(&self) -> bool {
        matches!(&self.state, State::Closed(failed) if failed.is_empty())
    }

    pub(crate) fn start(&mut self, now: Instant) -> Start {
        let State::Open(open) = &mut self.state else { return Start::Run };
        if open.probing {
            return Start::Wait(None);
        }
        let at = self.not_before.map_or(open.probe_at, |not_before| open.probe_at.max(not_before));
        if now < at {
            return Start::Wait(Some(at));
        }
        open.probing = true;
        Start::Probe
    }

    /// An attempt succeeded, whenever it began: what it called is alive.
    ///
    /// Gives since when it was open, if it was.
    pub(crate) fn succeeded(&mut self) -> Option<Instant> {
        let was_open = self.open_since();
        self.not_before = None;
        self.state = State::Closed(Vec::new());
        was_open
    }

    /// A handler rejected its message: what failed before is no outage, but nobody knows whether anything was called.
    pub(crate) fn rejected(&mut self) {
        if let State::Closed(failed) = &mut self.state {
            failed.clear();
            self.not_before = None;
        }
    }

    /// An attempt failed or timed out; `after` is the delay that its handler asks for.
    pub(crate) fn failed(
        &mut self,
        identity: Identity,
        is_probe: bool,
        after: Option<Duration>,
        now: Instant,
    ) -> Failure {
        let asked = after.map(|after| now + after.min(AFTER_MAX));
        self.not_before = self.not_before.max(asked);
        match &mut self.state {
            State::Closed(failed) => {
                if !failed.contains(&identity) {
                    failed.push(identity);
                }
                if failed.len() < self.options.failures.get() as usize {
                    return Failure::Counts;
                }
                let delay = self.options.probe;
                let probe_at = now + delay;
                self.state = State::Open(Open { since: now, probe_at, delay, probing: false });
                Failure::Opens
            }
            State::Open(open) => {
                if is_probe {
                    open.probing = false;
                    open.delay = open.delay.saturating_mul(2).min(self.options.max);
                    open.probe_at = now + open.delay;
                }
                Failure::IsOpen
            }
        }
    }

    /// The probe is over. If nothing was said of it, it told nothing of what is downstream: the next may start at once.
    pub(crate) const fn probe_is_over(&mut self) {
        if let State::Open(open) = &mut self.state {
            open.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(failures: u32) -> Breaker {
        let failures = NonZeroU32::new(failures).unwrap();
        Breaker::new(BreakerOptions { failures, probe: SECOND, max: 4 * SECOND })
    }

    fn message(number: u8) -> Identity {
        Identity::from_bytes([number; 16])
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = breaker(2);
        assert_eq!(breaker.failed(message(1), false, None, now), Failure::Counts);
        assert_eq!(breaker.failed(message(2), false, None, now), Failure::Opens);
        breaker
    }

    #[test]
    fn one_message_that_fails_again_and_again_does_not_open_it() {
        let (mut breaker, now) = (breaker(2), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.failed(message(1), false, None, now), Failure::Counts);
        }
        assert_eq!(breaker.start(now), Start::Run);
    }

    #[test]
    fn a_success_or_a_rejection_in_between_begins_the_count_again() {
        let (mut breaker, now) = (breaker(2), Instant::now());
        breaker.failed(message(1), false, None, now);
        breaker.rejected();
        breaker.failed(message(2), false, None, now);
        assert_eq!(breaker.succeeded(), None);
        assert!(breaker.is_calm());
        assert_eq!(breaker.failed(message(3), false, None, now), Failure::Counts);
    }

    #[test]
    fn probes_run_one_at_a_time_and_each_later_than_the_one_before() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for delay in [1, 2, 4, 4] {
            let at = now + delay * SECOND;
            assert_eq!(breaker.start(now), Start::Wait(Some(at)));
            now = at;
            assert_eq!(breaker.start(now), Start::Probe);
            assert_eq!(breaker.start(now + 60 * SECOND), Start::Wait(None));
            assert_eq!(breaker.failed(message(9), true, None, now), Failure::IsOpen);
        }
    }

    #[test]
    fn a_probe_that_says_nothing_is_followed_by_another_at_once() {
        let start = Instant::now();
        let mut breaker = opened(start);
        let now = start + SECOND;
        assert_eq!(breaker.start(now), Start::Probe);
        breaker.rejected();
        breaker.probe_is_over();
        assert_eq!(breaker.start(now), Start::Probe);
        assert_eq!(breaker.open_since(), Some(start), "a rejection does not close it");
        assert_eq!(breaker.succeeded(), Some(start));
        assert_eq!(breaker.start(now), Start::Run);
    }

    #[test]
    fn a_probe_comes_no_earlier_than_a_handler_asked_for_but_within_an_hour() {
        let now = Instant::now();
        for (asked_s, at_s) in [(0, 1), (600, 600), (1_000_000, 3600)] {
            let mut breaker = breaker(2);
            // Asked by one that failed before it opened.
            breaker.failed(message(1), false, Some(asked_s * SECOND), now);
            breaker.failed(message(2), false, None, now);
            assert_eq!(breaker.start(now), Start::Wait(Some(now + at_s * SECOND)));
            breaker.succeeded();
            assert_eq!(breaker.start(now), Start::Run);
            // Asked by one that ends while it is open.
            let mut breaker = opened(now);
            breaker.failed(message(3), false, Some(asked_s * SECOND), now);
            assert_eq!(breaker.start(now), Start::Wait(Some(now + at_s * SECOND)));
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Start,
        Succeed,
        Reject,
        Fail { message: u8, after_s: Option<u32> },
        SayNothing,
        Wait { ms: u32 },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Start),
            1 => Just(Act::Succeed),
            1 => Just(Act::Reject),
            6 => (0..6u8, prop::option::weighted(0.1, 0..10u32))
                .prop_map(|(message, after_s)| Act::Fail { message, after_s }),
            1 => Just(Act::SayNothing),
            4 => (0..5_000u32).prop_map(|ms| Act::Wait { ms }),
        ]
    }

    /// The rules as they are told, over the whole history each time.
    #[derive(Default)]
    struct Model {
        /// What has happened since the last success, with its time in milliseconds.
        history: Vec<(u64, Act, bool)>,
        probing: bool,
        now_ms: u64,
    }

    impl Model {
        /// What in the history opened it.
        fn opening(&self, failures: usize) -> Option<usize> {
            let mut distinct = std::collections::HashSet::new();
            self.history.iter().position(|(_, act, _)| {
                match act {
                    Act::Reject => distinct.clear(),
                    Act::Fail { message, .. } => {
                        distinct.insert(*message);
                    }
                    _ => {}
                }
                distinct.len() == failures
            })
        }

        /// When it opened, if it is open.
        fn open_since(&self, failures: usize) -> Option<u64> {
            self.opening(failures).map(|opening| self.history[opening].0)
        }

        fn probe_at(&self, failures: usize) -> Option<u64> {
            let opening = self.opening(failures)?;
            let probes = self.history.iter().filter(|(.., is_probe)| *is_probe);
            let delays = [1000, 2000, 4000];
            let last = probes.clone().next_back().map_or(self.history[opening].0, |(at, ..)| *at);
            let backed_off = last + delays[probes.count().min(2)];
            // A rejection before it opened wipes what was asked for before that.
            let before = &self.history[..opening];
            let wiped = before.iter().rposition(|(_, act, _)| matches!(act, Act::Reject));
            let after_wipe = wiped.map_or(0, |at| at + 1);
            let asked = self.history[after_wipe..].iter().filter_map(|(at, act, _)| match act {
                Act::Fail { after_s: Some(s), .. } => Some(at + u64::from(*s) * 1000),
                _ => None,
            });
            Some(asked.max().map_or(backed_off, |asked| asked.max(backed_off)))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn it_does_what_the_rules_say_over_any_history(
            acts in prop::collection::vec(act(), 1..120), failures in 1..5u32,
        ) {
            let start = Instant::now();
            let mut breaker = breaker(failures);
            let failures = failures as usize;
            let mut model = Model::default();
            for act in acts {
                let at = |ms: u64| start + Duration::from_millis(ms);
                let now = at(model.now_ms);
                match act {
                    Act::Start => {
                        let expected = match model.probe_at(failures) {
                            None => Start::Run,
                            Some(_) if model.probing => Start::Wait(None),
                            Some(probe_at) if model.now_ms < probe_at => {
                                Start::Wait(Some(at(probe_at)))
                            }
                            Some(_) => Start::Probe,
                        };
                        prop_assert_eq!(breaker.start(now), expected);
                        model.probing |= expected == Start::Probe;
                    }
                    Act::Succeed => {
                        let since = model.open_since(failures).map(at);
                        prop_assert_eq!(breaker.succeeded(), since);
                        model.history.clear();
                        model.probing = false;
                    }
                    Act::Reject => {
                        breaker.rejected();
                        model.history.push((model.now_ms, act, false));
                    }
                    Act::Fail { message: number, after_s } => {
                        let after = after_s.map(|s| s * SECOND);
                        let was_open = model.open_since(failures).is_some();
                        let is_probe = model.probing;
                        model.history.push((model.now_ms, act, is_probe));
                        model.probing = false;
                        let is_open = model.open_since(failures).is_some();
                        let expected = match (was_open, is_open) {
                            (true, _) => Failure::IsOpen,
                            (false, true) => Failure::Opens,
                            (false, false) => Failure::Counts,
                        };
                        prop_assert_eq!(breaker.failed(message(number), is_probe, after, now), expected);
                    }
                    Act::SayNothing => {
                        breaker.probe_is_over();
                        model.probing = false;
                    }
                    Act::Wait { ms } => model.now_ms += u64::from(ms),
                }
                let since = model.open_since(failures).map(at);
                prop_assert_eq!(breaker.open_since(), since);
            }
        }
    }
}
