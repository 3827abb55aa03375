//! The queues that a store keeps records of, and their classes: each has a number, a journal and a retention.
//!
//! A number is given once and kept, also when the queue is no longer configured. Does not know what makes a class.

use std::time::Duration;

use super::record::{QueueId, QueueRow};
use crate::clock::duration_ms;

/// A queue that the store keeps records of.
#[derive(Clone, Debug)]
pub(crate) struct QueueRetention {
    pub(crate) name: String,
    pub(crate) retention: Duration,
    /// Retentions of their own, by the value of a header.
    pub(crate) classes: Vec<(String, Duration)>,
}

/// The numbers of one queue in the store: its own, and one for each class of its [`QueueRetention`], in their order.
#[derive(Clone, Debug)]
pub(crate) struct QueueIds {
    pub(crate) own: QueueId,
    pub(crate) classes: Vec<QueueId>,
}

impl QueueRetention {
    /// Its own row, and one for each class.
    pub(super) fn rows(&self) -> impl Iterator<Item = QueueRow> {
        let row = |class, retention| QueueRow {
            name: self.name.clone(),
            class,
            retention_ms: duration_ms(retention),
        };
        let classes = self.classes.iter();
        let classes = classes.map(move |(class, retention)| row(Some(class.clone()), *retention));
        std::iter::once(row(None, self.retention)).chain(classes)
    }
}
