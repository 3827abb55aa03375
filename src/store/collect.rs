//! Removal of what is past its retention: blocks as a whole, and rows of messages that never came back.
//!
//! Rides in the committer's groups. Nothing is removed before its time. The record of a dead letter that the broker
//! has not confirmed is carried forward, for a month at most: a redelivery in between must find the decision.

use std::time::Duration;

use tokio::time::Instant;

use super::backend::StoreError;
use super::committer::Committer;
use super::group::{COLLECT_BLOCKS_MAX, Group};
use super::record::{self, Block, Location, Outcome, QueueId, Record};
use super::{Change, Rows};
use crate::clock::duration_ms;

/// How often attempts of messages that never came back are looked through.
const ORPHANS_INTERVAL: Duration = Duration::from_secs(60);

/// How long rows of unfinished messages are kept past their queue's retention: a message may wait in its queue for
/// long while its worker is stopped, and its attempts must not fall.
const UNFINISHED_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Committer {
    /// Removes blocks in which everything is past its queue's retention.
    pub(super) async fn collect(
        &mut self,
        group: &mut Group,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let mut room = COLLECT_BLOCKS_MAX;
        for (queue, retention_ms) in self.expired_queues(now_ms) {
            let prefix = record::block_prefix(queue);
            let rows = self.shared.backend.scan(&prefix, None, room + 1).await?;
            self.journal.set_oldest(queue, None);
            for (key, value) in rows {
                let location =
                    Location::from_key(&key).ok_or_else(|| self.shared.damaged("a block's key"))?;
                let block: Block = record::unseal(&value).map_err(|error| {
                    self.shared.damaged(format!("block {}: {error}", location.sequence()))
                })?;
                let expired = block.committed_at_ms.saturating_add(retention_ms) <= now_ms;
                let forgotten = expired && room > 0 && self.forget(group, location, &block, now_ms);
                if !forgotten {
                    self.journal.set_oldest(queue, Some((location, block.committed_at_ms)));
                    break;
                }
                room -= 1;
                group.batch.remove(key);
                self.journal.remove(value.len());
                self.metrics.collected.increment(block.records.len() as u64);
            }
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

    /// Forgets the block's records, or says that one of them is still needed and goes into a later block first.
    ///
    /// The index forgets before the disk does: a look-up never meets an entry without its block. For the same reason a
    /// record that is carried forward leaves its old block only when it is found in the new one.
    fn forget(&self, group: &mut Group, location: Location, block: &Block, now_ms: u64) -> bool {
        let mut rows = self.shared.rows();
        let Rows { pending, .. } = &mut *rows;
        let is_here = |record: &&Record| {
            pending.contains_key(&record.identity)
                && self.shared.index.candidate(record.identity) == Some(location)
        };
        let (needed, given_up): (Vec<_>, Vec<_>) =
            block.records.iter().filter(is_here).partition(|record| is_needed(record, now_ms));
        if !needed.is_empty() {
            // Without room now there is room in the next group.
            let _ = needed.into_iter().all(|record| group.carry(location.queue(), record));
            return false;
        }
        if !group.has_room_for_rows(given_up.len()) {
            return false;
        }
        for record in given_up {
            pending.remove(&record.identity);
            group.batch.remove(record::pending_key(record.identity));
        }
        drop(rows);
        for record in &block.records {
            self.shared.index.remove(record.identity, location);
        }
        true
    }

    /// Attempts of messages that the broker never delivered again: purged, expired or moved away.
    pub(super) fn collect_orphans(&mut self, group: &mut Group, now_ms: u64) {
        let now = Instant::now();
        if now.duration_since(self.looked_for_orphans) < ORPHANS_INTERVAL {
            return;
        }
        self.looked_for_orphans = now;
        let rows = self.shared.rows();
        let orphans = rows.attempts.iter().filter(|(_, attempts)| {
            let retention_ms = rows.queues.get(&attempts.queue).map_or(0, |row| row.retention_ms);
            let kept_ms = retention_ms.saturating_add(duration_ms(UNFINISHED_GRACE));
            // Nothing came back while the worker was stopped: that time does not count, but not for ever.
            let since_ms = attempts.updated_at_ms.max(self.opened_at_ms);
            let forgotten_ms = attempts.updated_at_ms.saturating_add(kept_ms.saturating_mul(4));
            since_ms.saturating_add(kept_ms).min(forgotten_ms) <= now_ms
        });
        for (identity, _) in orphans {
            if !group.has_room_for_rows(1) {
                break;
            }
            group.batch.remove(record::attempts_key(*identity));
            group.changes.push(Change::RemoveAttempts(*identity));
        }
    }
}

/// Whether a redelivery may still ask for the decision on a dead letter that the broker has not confirmed.
fn is_needed(record: &Record, now_ms: u64) -> bool {
    match &record.outcome {
        Outcome::Done => false,
        Outcome::Dead(note) => {
            note.first_seen_ms.saturating_add(duration_ms(UNFINISHED_GRACE)) > now_ms
        }
    }
}
