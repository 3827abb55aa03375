//! One run of the handler, as the ledger sees it: from its start to whatever ended it.
//!
//! What ends without a word was cut off: silence is no success.

use super::{Ledger, RunEnd};

/// A run of the handler; dropped without a word it counts as cut off.
#[derive(Debug)]
#[must_use = "the run ends when this is dropped"]
pub(in super::super) struct Run<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) number: usize,
    pub(super) end: RunEnd,
}

impl Run<'_> {
    /// The effect was made, under this key.
    pub(in super::super) fn complete(mut self, effect_key: String) {
        self.end = RunEnd::Completed;
        self.ledger.complete(self.number, effect_key);
    }

    /// The handler found the order invalid.
    pub(in super::super) fn reject(mut self) {
        self.end = RunEnd::Completed;
        self.ledger.reject(self.number);
    }

    /// The handler failed and will be run again.
    pub(in super::super) fn fail(mut self) {
        self.end = RunEnd::Failed;
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.ledger.end(self);
    }
}
