//! Whether the worker is ready, and if not, why: one line a reason, for `/readyz` and for embedders.
//!
//! Written by the parts that know (consumers, publisher, committer), each under its own name; read by anybody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The health of a worker; clones show the same one.
#[derive(Clone, Debug, Default)]
pub struct Health {
    faults: Arc<Mutex<BTreeMap<String, String>>>,
}

/// The answer to "is it ready", at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// What stands in the way, as (part, reason); empty if the worker is ready.
    pub faults: Vec<(String, String)>,
}

impl Readiness {
    /// Whether nothing stands in the way.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.faults.is_empty()
    }
}

impl Health {
    /// What stands in the way right now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let faults = self.lock().clone();
        Readiness { faults: faults.into_iter().collect() }
    }

    /// Sets or replaces the fault of one part.
    pub(crate) fn fault(&self, part: &str, reason: impl Into<String>) {
        self.lock().insert(part.to_owned(), reason.into());
    }

    /// The part works.
    pub(crate) fn clear(&self, part: &str) {
        self.lock().remove(part);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_no_part_has_a_fault() {
        let health = Health::default();
        health.fault("store", "opening");
        health.fault("queue orders", "connecting");
        health.clear("store");
        assert!(!health.readiness().is_ready());
        health.clear("queue orders");
        assert!(health.readiness().is_ready());
    }
}
