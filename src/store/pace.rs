//! Whether collection keeps up with what is written, and whose turn it is if not.
//!
//! A group has room for the removal of so many rows, and may bring more if it is of many queues. What it owes then, and
//! all that has expired when nobody waits, goes with groups of nothing but collection. Removes nothing itself.

use super::record::QueueId;

/// Of the two kinds of rows that expire.
#[derive(Debug, Default)]
pub(super) struct Paces {
    pub(super) blocks: Pace,
    pub(super) ghosts: Pace,
}

impl Paces {
    /// Whether there is more that may go, and so nothing to wait for.
    pub(super) const fn is_behind(&self) -> bool {
        self.blocks.is_behind || self.ghosts.is_behind
    }

    /// Whether a group of nothing but collection is to be written before commits that wait.
    pub(super) const fn owes(&self) -> bool {
        self.blocks.owes() || self.ghosts.owes()
    }

    /// Nothing could be removed: it is tried again with the next group.
    pub(super) const fn pause(&mut self) {
        self.blocks.is_behind = false;
        self.ghosts.is_behind = false;
    }
}

/// Whether the removal of one kind of rows keeps up with what is written.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The queue that is next: of those that the last group had no room for the first.
    next: Option<QueueId>,
    /// The last group had no room for all that may go.
    is_behind: bool,
    /// Rows that were written and not made up for by others that were removed, since it is behind.
    owed: usize,
}

impl Pace {
    /// So many rows are added.
    pub(super) const fn wrote(&mut self, rows: usize) {
        self.owed = if self.is_behind { self.owed.saturating_add(rows) } else { 0 };
    }

    const fn owes(&self) -> bool {
        self.is_behind && self.owed > 0
    }

    /// The queues in turn, so that none is always the last.
    pub(super) fn in_turn<T>(&mut self, mut queues: Vec<(QueueId, T)>) -> Vec<(QueueId, T)> {
        self.is_behind = false;
        if let Some(next) = self.next.take() {
            let first = queues.partition_point(|(queue, _)| *queue < next);
            queues.rotate_left(first);
        }
        queues
    }

    /// There was no room for this queue's next row, after so many of it.
    pub(super) const fn stop_at(&mut self, queue: QueueId, removed: usize) {
        if !self.is_behind {
            // One that had its turn comes after all others.
            let next = if removed > 0 { queue.0.wrapping_add(1) } else { queue.0 };
            self.next = Some(QueueId(next));
        }
        self.is_behind = true;
    }

    pub(super) const fn removed(&mut self, rows: usize) {
        self.owed = self.owed.saturating_sub(rows);
    }
}
