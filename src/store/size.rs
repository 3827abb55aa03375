//! The size limit: intake stops before the files pass it.
//!
//! Looked at by the committer now and then. Removes nothing: what has expired leaves by itself.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use super::backend::StoreError;
use super::committer::Committer;

/// Size of sled's files over the rows in them, at worst; measured by `cargo bench --bench store`.
const DISK_OVERHEAD: u64 = 2;

/// Whether the store is full, for those who stop their intake then.
///
/// They are woken in the order in which they began to wait; `tokio::sync::watch` wakes them in any order, and then a
/// seed of the simulation would have more than one history.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    is_full: AtomicBool,
    changed: Notify,
}

impl Fullness {
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    fn set(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until it is no longer as it was seen; gives how it is.
    ///
    /// Cancel-safe.
    pub(crate) async fn changed_from(&self, seen: bool) -> bool {
        loop {
            // Made before the look, so that no change falls in between.
            let changed = self.changed.notified();
            let is_full = self.is_full();
            if is_full != seen {
                return is_full;
            }
            changed.await;
        }
    }
}

impl Committer {
    /// Stops intake before the files pass the limit, and lets it go on when there is room.
    ///
    /// sled's files do not shrink, they are filled again; so room is counted by what lives in them.
    ///
    /// # Errors
    ///
    /// If the size cannot be read: whoever cannot ask for the size of its files has lost its disk, and would write on
    /// past the limit.
    pub(super) fn look_at_size(&mut self) -> Result<(), StoreError> {
        self.looked_at_size = Instant::now();
        let disk_bytes = self.shared.backend.disk_bytes()?;
        let limit = self.size_bytes_max;
        self.metrics.store_bytes.set(disk_bytes as f64);
        self.metrics.index_ids.set(self.shared.index.len() as f64);
        self.metrics.producers.set(self.shared.watermarks.len() as f64);
        let live_bytes = self.journal.live_bytes().saturating_mul(DISK_OVERHEAD);
        let was_full = self.shared.full.is_full();
        let percent = |percent: u64| limit / 100 * percent;
        let is_full = if was_full {
            disk_bytes >= percent(95) && live_bytes >= percent(80)
        } else {
            disk_bytes >= percent(95) && live_bytes >= percent(90)
        };
        if is_full != was_full {
            self.metrics.store_full.set(if is_full { 1.0 } else { 0.0 });
            if is_full {
                warn!(
                    store_bytes = disk_bytes,
                    max_size_bytes = limit,
                    "the store is full, intake is stopped until records expire: raise max_size or shorten retention"
                );
            } else {
                info!(store_bytes = disk_bytes, "the store has room again, intake goes on");
            }
            self.shared.full.set(is_full);
        }
        Ok(())
    }
}
