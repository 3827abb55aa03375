//! A stretch of the committer's work that must not end in silence.
//!
//! Without its end nothing becomes durable any more, and the store says so before a commit is let go of.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;

/// Says that the store has failed unless it is told that all went well.
///
/// Whoever lets go of a message because its commit was lost must find this said already: so it is declared after the
/// commits that it covers, and dropped before them, on an error, a panic or the end of the whole worker.
pub(super) struct Unfinished(Option<Arc<Shared>>);

impl Unfinished {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Some(Arc::clone(shared)))
    }

    pub(super) fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.failed.store(true, Ordering::Release);
        }
    }
}
