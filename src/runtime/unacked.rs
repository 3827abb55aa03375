//! How many deliveries of the connection the broker waits for: with as many as the prefetch it sends no more.
//!
//! Told by consumer and settler, asked by whoever would wait for more deliveries; the committer of the store hears of
//! each change, as its groups wait for them, too.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::store::Store;

/// Deliveries that are not acknowledged.
#[derive(Debug)]
pub(crate) struct Unacked {
    store: Store,
    deliveries: AtomicUsize,
    prefetch: AtomicUsize,
}

impl Unacked {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, deliveries: AtomicUsize::new(0), prefetch: AtomicUsize::new(usize::MAX) }
    }

    /// A connection begins; those of the one before are the broker's again.
    pub(crate) fn begin(&self, prefetch: u16) {
        self.acked(self.deliveries.load(Ordering::Relaxed));
        self.prefetch.store(prefetch.into(), Ordering::Relaxed);
    }

    pub(crate) fn received(&self) {
        let before = self.deliveries.fetch_add(1, Ordering::Relaxed);
        if before + 1 == self.prefetch.load(Ordering::Relaxed) {
            self.store.company().window_filled();
        }
    }

    pub(crate) fn acked(&self, deliveries: usize) {
        let less = |unacked: usize| Some(unacked.saturating_sub(deliveries));
        let acked = self.deliveries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let before = acked.unwrap_or_else(|unacked| unacked);
        let prefetch = self.prefetch.load(Ordering::Relaxed);
        if before >= prefetch && before.saturating_sub(deliveries) < prefetch {
            self.store.company().window_opened();
        }
    }

    /// Whether the broker sends nothing more before an ack.
    pub(crate) fn is_full(&self) -> bool {
        self.deliveries.load(Ordering::Relaxed) >= self.prefetch.load(Ordering::Relaxed)
    }
}
