//! Whether the drain has begun: asked several times a message, waited for by whoever waits for something else.
//!
//! The flag stands beside the token because asking that takes a lock, which all actors would share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, Default)]
pub(crate) struct Draining {
    has_begun: Arc<AtomicBool>,
    told: CancellationToken,
}

impl Draining {
    pub(crate) fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.told.cancel();
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Waits until it begins; whoever is told finds that it has begun.
    pub(crate) async fn begun(&self) {
        self.told.cancelled().await;
    }

    /// For those outside the runtime, who only wait for it.
    pub(crate) fn token(&self) -> CancellationToken {
        self.told.clone()
    }
}
