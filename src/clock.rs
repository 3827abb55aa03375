//! The wall clock, read in this one place.
//!
//! Only retention and what people read use it. Order, timeouts and backoff never do: those run on tokio's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, from the system or set by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual_ms: Option<Arc<AtomicU64>>,
    /// Set if time passes on it by itself: as tokio's does, which is paused in simulations.
    #[cfg(feature = "simulation")]
    started: Option<tokio::time::Instant>,
}

impl Clock {
    /// A clock that stands at `now_ms` until it is advanced, for tests.
    #[must_use]
    pub fn manual(now_ms: u64) -> Self {
        Self {
            manual_ms: Some(Arc::new(AtomicU64::new(now_ms))),
            #[cfg(feature = "simulation")]
            started: None,
        }
    }

    /// A clock that shows `now_ms` and goes on with tokio's from here; it can be set.
    #[cfg(feature = "simulation")]
    pub(crate) fn with_tokio(now_ms: u64) -> Self {
        Self { started: Some(tokio::time::Instant::now()), ..Self::manual(now_ms) }
    }

    /// Sets a manual clock back; all its clones see it.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn set_back(&self, by: Duration) {
        if let Some(manual_ms) = &self.manual_ms {
            manual_ms.fetch_sub(duration_ms(by), Ordering::Relaxed);
        }
    }

    /// Moves a manual clock on; all its clones see it. The system's clock does not listen.
    pub fn advance(&self, by: Duration) {
        if let Some(manual_ms) = &self.manual_ms {
            manual_ms.fetch_add(duration_ms(by), Ordering::Relaxed);
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now_ms(&self) -> u64 {
        match &self.manual_ms {
            Some(manual_ms) => manual_ms.load(Ordering::Relaxed) + self.passed_ms(),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, duration_ms),
        }
    }
}

impl Clock {
    /// What has passed by itself on a manual clock.
    fn passed_ms(&self) -> u64 {
        #[cfg(feature = "simulation")]
        return self.started.map_or(0, |started| duration_ms(started.elapsed()));
        #[cfg(not(feature = "simulation"))]
        0
    }
}

/// Whole milliseconds, saturating.
pub(crate) fn duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
