//! Removal of what is past its retention: blocks as a whole, and rows of messages that never came back.
//!
//! Rides in the committer's groups, and in groups of its own if those have no room for as much as they add. Nothing is
//! removed before its time. The record of a message is carried forward as long as the broker has not confirmed what it
//! sends, and that of a dead letter for a month at most: a redelivery in between must find the decision.

use std::time::Duration;

use tokio::time::Instant;

use super::backend::{Batch, StoreError};
use super::committer::Committer;
use super::ghosts::{self, GhostHash, GhostRow, OpenGhosts};
use super::group::{COLLECT_BLOCKS_MAX, Group};
use super::mirror::Mirror;
use super::outcome::{DeadNote, Outcome};
use super::record::{self, Block, Location, QueueId, Record};
use super::rows::Spilled;
use super::spill;
use super::{Change, Shared};
use crate::clock::duration_ms;
use crate::failpoint::{self, Point};
use crate::identity::Identity;
use crate::planted::{self, Bug};

/// How often attempts of messages that never came back are looked through.
const ORPHANS_INTERVAL: Duration = Duration::from_secs(60);

/// How long rows of unfinished messages are kept past their queue's retention: a message may wait in its queue for
/// long while its worker is stopped, and its attempts must not fall.
const UNFINISHED_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What becomes of a block in which everything is past its retention.
enum Fate {
    Leaves,
    /// A record of it is still needed, and is carried into a later block by this group.
    Stays,
    NoRoom,
}

impl Committer {
    /// Removes blocks in which everything is past its queue's retention, and leaves ghosts in their place.
    pub(super) async fn collect(
        &mut self,
        group: &mut Group,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let mut room = group.collect_blocks_max();
        let queues = self.expired_queues(now_ms);
        for (queue, retention_ms) in self.pace.blocks.in_turn(queues) {
            let prefix = record::block_prefix(queue);
            let rows = self.shared.backend.scan(&prefix, None, room + 1).await?;
            self.journal.set_oldest(queue, None);
            let mut ghosts = OpenGhosts::default();
            let mut removed = 0;
            for (key, value) in rows {
                let location =
                    Location::from_key(&key).ok_or_else(|| self.shared.damaged("a block's key"))?;
                let block: Block = record::unseal(&value).map_err(|error| {
                    self.shared.damaged(format!("block {}: {error}", location.sequence()))
                })?;
                let retention_ms =
                    if planted::is(Bug::CollectedEarly) { retention_ms / 2 } else { retention_ms };
                let expired = block.committed_at_ms.saturating_add(retention_ms) <= now_ms;
                let bytes = ghosts.bytes() + Batch::bytes_removed(key.len());
                let bytes = bytes + ghosts::ROW_BYTES + block.records.len() * ghosts::GHOST_BYTES;
                let fate = match expired {
                    false => Fate::Stays,
                    true if room == 0 => Fate::NoRoom,
                    true => self.fate(group, location, &block, (bytes, now_ms)),
                };
                if !matches!(fate, Fate::Leaves) {
                    self.journal.set_oldest(queue, Some((location, block.committed_at_ms)));
                    if matches!(fate, Fate::NoRoom) {
                        self.pace.blocks.stop_at(queue, removed);
                    }
                    break;
                }
                failpoint::reached(Point::Collecting);
                room -= 1;
                removed += 1;
                group.batch.remove_large(key);
                self.journal.grow(-(value.len() as i64));
                self.metrics.collected.increment(block.records.len() as u64);
                let expired = self.expire(location, &block).await?;
                self.oldest_ghosts.entry(queue).or_insert(block.committed_at_ms);
                let written = ghosts.add(group, (location, block.committed_at_ms), &expired);
                self.journal.grow(written as i64);
            }
            let written = ghosts.finish(group);
            self.journal.grow(written as i64);
            self.pace.blocks.removed(removed);
            self.pace.ghosts.wrote(removed);
        }
        Ok(())
    }

    /// Makes ghosts of the block's records, and only then lets the index forget them; gives the ghosts.
    ///
    /// The index forgets before the disk does: a look-up never meets an entry without its block.
    async fn expire(
        &mut self,
        location: Location,
        block: &Block,
    ) -> Result<Vec<GhostHash>, StoreError> {
        let mut expired = Vec::with_capacity(block.records.len());
        // The last record of an identity counts, and takes the earlier ones of this block with it.
        for record in block.records.iter().rev() {
            let counts = self.shared.index.candidate(record.identity) == Some(location);
            // One that was forgotten runs again, as if it had never been done.
            if counts && !matches!(record.outcome, Outcome::Forgotten(_)) {
                let ghost = GhostHash::new(record.identity);
                self.shared.ghosts.insert(ghost);
                expired.push(ghost);
            }
            self.shared.index.remove(record.identity, location);
            if let Some(spilled) = record.result.as_ref().and_then(|result| result.body.spilled())
                && (counts || self.shared.is_left_over(record.identity, spilled).await?)
            {
                self.garbage.add_later(spilled, Instant::now());
            }
        }
        Ok(expired)
    }

    /// Removes ghosts that have been kept for one more retention.
    pub(super) async fn collect_ghosts(
        &mut self,
        group: &mut Group,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let is_past = |retention_ms: u64, committed_at_ms: u64| {
            committed_at_ms.saturating_add(retention_ms.saturating_mul(2)) <= now_ms
        };
        let past: Vec<(QueueId, u64)> = {
            let rows = self.shared.rows();
            let past = self.oldest_ghosts.iter().filter_map(|(queue, committed_at_ms)| {
                let retention_ms = rows.queues.get(queue)?.retention_ms;
                is_past(retention_ms, *committed_at_ms).then_some((*queue, retention_ms))
            });
            past.collect()
        };
        let mut room = COLLECT_BLOCKS_MAX;
        for (queue, retention_ms) in self.pace.ghosts.in_turn(past) {
            let prefix = ghosts::ghost_prefix(queue);
            let rows = self.shared.backend.scan(&prefix, None, room + 1).await?;
            self.oldest_ghosts.remove(&queue);
            let mut removed = 0;
            for (key, value) in rows {
                let row: GhostRow = record::unseal(&value)
                    .map_err(|error| self.shared.damaged(format!("expired records: {error}")))?;
                let is_past = is_past(retention_ms, row.committed_at_ms);
                let has_room =
                    room > 0 && group.has_room_beside(1, Batch::bytes_removed(key.len()));
                if !has_room || !is_past {
                    self.oldest_ghosts.insert(queue, row.committed_at_ms);
                    if is_past {
                        self.pace.ghosts.stop_at(queue, removed);
                    }
                    break;
                }
                room -= 1;
                removed += 1;
                row.hashes().into_iter().flatten().for_each(|hash| self.shared.ghosts.remove(hash));
                self.journal.grow(-(value.len() as i64));
                group.batch.remove_large(key);
            }
            self.pace.ghosts.removed(removed);
        }
        Ok(())
    }

    /// Queues whose oldest block may leave, with their retention.
    fn expired_queues(&self, now_ms: u64) -> Vec<(QueueId, u64)> {
        let rows = self.shared.rows();
        let expired = self.journal.oldest().filter_map(|(queue, committed_at_ms)| {
            let retention_ms = rows.queues.get(&queue)?.retention_ms;
            let expired = committed_at_ms.saturating_add(retention_ms) <= now_ms;
            expired.then_some((queue, retention_ms))
        });
        expired.collect()
    }

    /// Whether the block may leave, or one of its records is still needed and goes into a later block first.
    ///
    /// A record that is carried forward leaves its old block only when it is found in the new one. `bytes` is what the
    /// removal takes of the batch.
    fn fate(
        &self,
        group: &mut Group,
        location: Location,
        block: &Block,
        (bytes, now_ms): (usize, u64),
    ) -> Fate {
        let mut rows = self.shared.rows();
        let Mirror { pending, .. } = &mut *rows;
        let unconfirmed = self.shared.unconfirmed();
        let is_here = |record: &&Record| {
            (pending.contains_key(&record.identity) || unconfirmed.is_of(record.identity))
                && self.shared.index.candidate(record.identity) == Some(location)
        };
        let (needed, rest): (Vec<_>, Vec<_>) =
            block.records.iter().filter(is_here).partition(|record| match &record.outcome {
                // A redelivery must not run again and send under the same ids what it sends then.
                Outcome::Done => unconfirmed.is_of(record.identity),
                Outcome::Dead(note) => is_asked_for(note, now_ms),
                Outcome::Forgotten(_) => false,
            });
        if !needed.is_empty() {
            let is_carried = needed.into_iter().all(|record| group.carry(location.queue(), record));
            return if is_carried { Fate::Stays } else { Fate::NoRoom };
        }
        let given_up = rest.into_iter().filter(|record| pending.contains_key(&record.identity));
        let given_up: Vec<Identity> = given_up.map(|record| record.identity).collect();
        // Its own removal, and two rows of ghosts: one that it fills, and one that it begins.
        if !group.has_room_beside(3 + given_up.len(), bytes + 32 * given_up.len()) {
            return Fate::NoRoom;
        }
        for identity in given_up {
            pending.remove(&identity);
            group.batch.remove(record::pending_key(identity));
        }
        Fate::Leaves
    }

    /// Attempts and steps of messages that the broker never delivered again: purged, expired or moved away.
    pub(super) fn collect_orphans(&mut self, group: &mut Group, now_ms: u64) {
        let now = Instant::now();
        if now.duration_since(self.looked_for_orphans) < ORPHANS_INTERVAL {
            return;
        }
        self.looked_for_orphans = now;
        let rows = self.shared.rows();
        let is_orphan = |queue: QueueId, updated_at_ms: u64| {
            let retention_ms = rows.queues.get(&queue).map_or(0, |row| row.retention_ms);
            let kept_ms = retention_ms.saturating_add(duration_ms(UNFINISHED_GRACE));
            // Nothing came back while the worker was stopped: that time does not count, but not for ever.
            let since_ms = updated_at_ms.max(self.opened_at_ms);
            let forgotten_ms = updated_at_ms.saturating_add(kept_ms.saturating_mul(4));
            since_ms.saturating_add(kept_ms).min(forgotten_ms) <= now_ms
        };
        let attempts = rows.attempts.iter();
        let attempts = attempts.filter(|(_, row)| is_orphan(row.queue, row.updated_at_ms));
        let attempts = attempts.map(|(identity, _)| Change::RemoveAttempts(*identity));
        let steps = rows
            .steps
            .iter()
            .flat_map(|(identity, steps)| steps.iter().map(move |step| (*identity, step)));
        let steps = steps.filter(|(_, step)| is_orphan(step.queue, step.updated_at_ms));
        let steps = steps.map(|(identity, step)| Change::RemoveStep(identity, step.name.clone()));
        for orphan in attempts.chain(steps) {
            if !group.has_room_beside(1, 64) {
                break;
            }
            orphan.encode(&mut group.batch);
            group.changes.push(orphan);
        }
    }
}

impl Shared {
    /// Whether the value of a record that counts no longer is still there and is not that of the one that counts.
    async fn is_left_over(&self, identity: Identity, spilled: Spilled) -> Result<bool, StoreError> {
        let backend = &self.backend;
        if let Some(later) = self.index.candidate(identity)
            && let Some(block) = backend.get(&later.key()).await?
        {
            let found = record::find_in_block(&block, identity)
                .map_err(|error| self.damaged(format!("block {}: {error}", later.sequence())))?;
            // It was carried forward.
            let result = found.and_then(|(_, record)| record.result);
            if result.and_then(|result| result.body.spilled()) == Some(spilled) {
                return Ok(false);
            }
        }
        // If not, it went when the store was opened.
        Ok(backend.get(&spill::piece_key(spilled.id, 0)).await?.is_some())
    }
}

/// Whether a redelivery may still ask for the decision on a dead letter that the broker has not confirmed.
fn is_asked_for(note: &DeadNote, now_ms: u64) -> bool {
    note.first_seen_ms.saturating_add(duration_ms(UNFINISHED_GRACE)) > now_ms
}
