//! Delays between tries: of a message's attempts, and of connections to the broker.
//!
//! Pure: randomness is an argument where it decides about messages. Full jitter, so that what failed together
//! does not come back together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

use std::num::NonZeroU32;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// When a failed message is run again, and when it is given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Attempts in all, the first among them; default 10.
    pub max_attempts: NonZeroU32,
    /// Ceiling of the first delay; default 500 ms.
    pub initial: Duration,
    /// Ceiling of every delay; default 1 minute.
    pub max: Duration,
    /// How the ceiling grows from one delay to the next; default 2, at least 1.
    pub factor: f64,
    /// Whether the delay is drawn between zero and the ceiling (default), or is the ceiling.
    pub jitter: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: NonZeroU32::MIN.saturating_add(9),
            initial: Duration::from_millis(500),
            max: Duration::from_secs(60),
            factor: 2.0,
            jitter: true,
        }
    }
}

impl Retry {
    /// The delay after `attempt` (from 1) failed; `random` is drawn evenly from `0.0..1.0`.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        if self.initial.is_zero() {
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let ceiling_s = self.initial.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let ceiling_s = ceiling_s.min(self.max.as_secs_f64());
        let delay_s = if self.jitter { ceiling_s * random.clamp(0.0, 1.0) } else { ceiling_s };
        Duration::try_from_secs_f64(delay_s).unwrap_or(self.max)
    }

    /// The longest time that all attempts of one message can wait, runs not counted.
    #[must_use]
    pub fn span(&self) -> Duration {
        let fixed = Self { jitter: false, ..self.clone() };
        let mut span = Duration::ZERO;
        for attempt in 1..self.max_attempts.get() {
            let delay = fixed.delay(attempt, 1.0);
            if delay == fixed.delay(attempt + 1, 1.0) {
                let rest = self.max_attempts.get() - attempt;
                return span.saturating_add(delay.saturating_mul(rest));
            }
            span = span.saturating_add(delay);
        }
        span
    }
}

/// Delays of a connection that is opened again for ever: from half a second to half a minute, with jitter.
#[derive(Debug)]
pub(crate) struct Reconnect {
    delays: backon::ExponentialBackoff,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { delays: Self::fresh() }
    }
}

impl Reconnect {
    fn fresh() -> backon::ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(15))
            .with_factor(2.0)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// The connection has proved useful: the next loss starts from the shortest delay.
    pub(crate) fn connected(&mut self) {
        self.delays = Self::fresh();
    }

    pub(crate) fn delay_after_loss(&mut self) -> Duration {
        self.delays.next().unwrap_or(Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_span_is_the_sum_of_all_ceilings() {
        let retry = Retry::default();
        let sum: Duration = (1..10).map(|attempt| retry.delay(attempt, 1.0)).sum();
        assert_eq!(retry.span(), sum);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn delays_never_pass_the_ceiling_and_never_shrink_without_jitter(
            initial_ms in 0u64..10_000, max_ms in 0u64..100_000, factor in 0.0f64..10.0,
            attempt in 1u32..1_000_000, random in 0.0f64..1.0,
        ) {
            let jittered = Retry {
                initial: Duration::from_millis(initial_ms),
                max: Duration::from_millis(max_ms),
                factor,
                ..Retry::default()
            };
            let fixed = Retry { jitter: false, ..jittered.clone() };
            prop_assert!(jittered.delay(attempt, random) <= fixed.delay(attempt, random));
            prop_assert!(fixed.delay(attempt, random) <= fixed.max);
            prop_assert!(fixed.delay(attempt, random) <= fixed.delay(attempt + 1, random));
        }
    }
}
