//! Spilled values that nothing refers to: their pieces go, some with each group.
//!
//! Each value is counted once, however often it is given up. What a crash leaves of them is found again when the store
//! opens. Does not know who referred to them.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Change;
use super::backend::Batch;
use super::group::Group;
use super::rows::Spilled;
use super::spill::piece_key;

/// Pieces that one group removes at most: more than one can add.
const PIECES_REMOVED_MAX: usize = 16;

/// How long the pieces of a collected record stay: whoever has just looked it up may still read its result.
const READERS_GRACE: Duration = Duration::from_secs(60);

/// Values whose pieces may go.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    /// Each with the number of pieces that are left.
    values: VecDeque<(Spilled, u32)>,
    /// Those that may still be read, and until when.
    resting: VecDeque<(Instant, Spilled)>,
    /// The ids of both.
    ids: HashSet<u64>,
}

impl Garbage {
    pub(super) fn add(&mut self, spilled: Spilled) {
        if self.ids.insert(spilled.id) {
            self.values.push_back((spilled, spilled.pieces()));
        }
    }

    /// Takes the value of a collected record, whose pieces stay for a moment.
    pub(super) fn add_later(&mut self, spilled: Spilled, now: Instant) {
        if self.ids.insert(spilled.id) {
            self.resting.push_back((now + READERS_GRACE, spilled));
        }
    }

    /// Whether pieces may go now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        while let Some((until, spilled)) = self.resting.front().copied()
            && until <= now
        {
            self.resting.pop_front();
            self.values.push_back((spilled, spilled.pieces()));
        }
        !self.values.is_empty()
    }

    /// Removes as many pieces as the group has room for, the first piece of a value last.
    pub(super) fn collect(&mut self, group: &mut Group, now: Instant) {
        if !self.is_due(now) {
            return;
        }
        for _ in 0..PIECES_REMOVED_MAX {
            let Some((spilled, left)) = self.values.front_mut() else { return };
            let key = piece_key(spilled.id, left.saturating_sub(1));
            if !group.has_room_beside(1, Batch::bytes_removed(key.len())) {
                return;
            }
            group.batch.remove_large(key);
            *left = left.saturating_sub(1);
            if *left == 0 {
                group.grown_values -= spilled.bytes as i64;
                self.ids.remove(&spilled.id);
                self.values.pop_front();
            }
        }
    }
}

/// Values that nobody writes any further: the next commit, which comes behind their pieces, gives them up.
#[derive(Debug, Default)]
pub(super) struct CutOff(Mutex<Vec<Spilled>>);

impl CutOff {
    /// Takes a value in, as far as its pieces are handed in.
    pub(super) fn add(&self, spilled: Spilled) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(spilled);
    }

    /// Adds them to the rows of a commit that is being handed in.
    pub(super) fn leave_with(&self, rows: &mut Vec<Change>) {
        let mut cut_off = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.extend(cut_off.drain(..).map(Change::RemoveSpilled));
    }
}
