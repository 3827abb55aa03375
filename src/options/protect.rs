//! How a queue protects what is downstream of it: when it stops starting attempts, and how many it starts in a time.
//!
//! Plain data. The decisions are the runtime's (`runtime/breaker.rs`, `runtime/rate.rs`).

use std::num::NonZeroU32;
use std::time::Duration;

/// When a queue stops starting attempts because what its handler calls seems to be dead.
///
/// While the breaker is open one attempt runs at a time, the *probe*, and attempts that fail are not counted: an outage
/// costs no message its attempts. The first success closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOptions {
    /// It opens when this many different messages have failed, without one that succeeded or was rejected in between;
    /// default 10, at most [`BREAKER_FAILURES_MAX`].
    ///
    /// Errors that are tried again and timeouts count; panics, rejections and bodies that do not decode say nothing of
    /// what is downstream. A queue that never has so many messages in work cannot tell an outage from bad messages: 1
    /// there keeps all messages, and lets a bad one stop the queue until the handler or the message is mended. Failures
    /// before it opens are attempts: with few [`Retry::max_attempts`](crate::Retry::max_attempts) they can be the last.
    pub failures: NonZeroU32,
    /// Time from its opening to the first probe; default 1 second. It doubles with each probe that fails.
    pub probe: Duration,
    /// Longest time between two probes; default 30 seconds.
    ///
    /// A handler's [`retry_after`](crate::retry_after) may make it longer, up to an hour.
    pub max: Duration,
}

/// Most different messages that a breaker can be told to wait for.
pub const BREAKER_FAILURES_MAX: u32 = 1_000;

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures: NonZeroU32::MIN.saturating_add(9),
            probe: Duration::from_secs(1),
            max: Duration::from_secs(30),
        }
    }
}

/// How many attempts may start in a time: a bucket of tokens.
///
/// Each attempt takes a token, and a batch one for each of its messages. Whoever finds none waits and holds nothing
/// that others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens that come back in each `per`; at most [`RATE_MAX`] a second.
    pub tokens: NonZeroU32,
    /// In which time.
    pub per: Duration,
    /// Most tokens that are kept: so many attempts may start at once after a pause.
    pub burst: NonZeroU32,
}

/// Most attempts a second that a rate can name: with more the limit costs more than it spares.
pub const RATE_MAX: u32 = 1_000_000;

impl RateLimit {
    /// So many attempts each second, and as many at once.
    #[must_use]
    pub const fn per_second(tokens: NonZeroU32) -> Self {
        Self { tokens, per: Duration::from_secs(1), burst: tokens }
    }

    /// Time in which one token comes back.
    pub(crate) fn interval(&self) -> Duration {
        self.per / self.tokens.get()
    }
}
