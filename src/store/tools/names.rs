//! Queues whose rows are lost while there are rows of theirs: named anew, so that what is theirs can be read.
//!
//! The new name is one that nobody configures, and their records are kept as long as those of any other queue: an
//! identity has no queue in it, so a message whose record is saved stays a duplicate.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::record::{QueueId, QueueRow};
use super::row::Row;
use crate::clock::duration_ms;

/// How long records are kept if no row of any queue is left.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The queues that have names.
#[derive(Debug, Default)]
pub(super) struct Names {
    named: BTreeSet<QueueId>,
    retention_ms: Option<u64>,
}

impl Names {
    /// Takes a queue's row into account.
    pub(super) fn add(&mut self, id: QueueId, row: &QueueRow) {
        self.named.insert(id);
        self.retention_ms = self.retention_ms.max(Some(row.retention_ms));
    }

    /// A row for this queue, if there is none; once.
    pub(super) fn instead(&mut self, id: QueueId) -> Option<QueueRow> {
        self.named.insert(id).then(|| QueueRow {
            name: format!("lost-{}", id.0),
            class: None,
            retention_ms: self.retention_ms.unwrap_or_else(|| duration_ms(RETENTION)),
        })
    }
}

/// The queues that a row is of.
pub(super) fn queues_of(row: &Row) -> BTreeSet<QueueId> {
    match row {
        Row::Block(at, _) | Row::Ghosts(at, _) => [at.queue()].into(),
        Row::Attempts(_, attempts) => [attempts.queue].into(),
        Row::State(id, _) => [id.queue].into(),
        Row::Step(_, step) => [step.queue].into(),
        Row::Outgoing(_, block) => block.rows.iter().map(|row| row.key.queue).collect(),
        Row::Meta | Row::Queue(..) | Row::Pending(_) | Row::Watermark(..) | Row::Piece(..) => {
            BTreeSet::new()
        }
    }
}
