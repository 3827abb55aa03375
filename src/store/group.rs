//! Commits on their way into one batch, within what sled can take at once.
//!
//! A commit is taken in whole or left for the next group; room is kept for what collection removes.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::backend::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Batch};
use super::record::{self, BlockBuilder, QueueId, Record};
use super::{Change, Commit, OnPersisted};
use crate::identity::Identity;

/// Most expired blocks that one group removes: more than one can add, so collection keeps up.
pub(super) const COLLECT_BLOCKS_MAX: usize = 24;

/// Operations and bytes of a batch that are kept for collection.
const COLLECT_OPS: usize = COLLECT_BLOCKS_MAX + 8;
const COLLECT_BYTES: usize = COLLECT_OPS * 32;

/// Commits on their way into one batch.
#[derive(Default)]
pub(super) struct Group {
    pub(super) batch: Batch,
    pub(super) blocks: BTreeMap<QueueId, Vec<OpenBlock>>,
    blocks_bytes: usize,
    blocks_count: usize,
    pub(super) told: Vec<(Instant, OnPersisted)>,
    pub(super) changes: Vec<Change>,
    encoded: Vec<u8>,
}

#[derive(Default)]
pub(super) struct OpenBlock {
    pub(super) builder: BlockBuilder,
    pub(super) identities: Vec<Identity>,
}

/// Bytes of key and value that a row beside the records takes at most.
const ROW_BYTES_MAX: usize = 128;

impl Group {
    /// Takes the whole commit in, or gives it back for the next group.
    pub(super) fn add(&mut self, commit: Commit) -> Result<(), Box<Commit>> {
        if let Some(record) = &commit.record {
            record::encode_record(record, &mut self.encoded);
        }
        if !self.has_room(commit.rows.len()) {
            assert!(!self.told.is_empty(), "a commit that no batch can hold");
            return Err(Box::new(commit));
        }
        if let Some(record) = &commit.record {
            self.add_record(commit.queue, record.identity);
        }
        for change in commit.rows {
            self.add_change(change);
        }
        self.told.push((commit.submitted, commit.on_persisted));
        Ok(())
    }

    /// Writes a record once more, in the queue's last block; `false` if there is no room.
    pub(super) fn carry(&mut self, queue: QueueId, record: &Record) -> bool {
        record::encode_record(record, &mut self.encoded);
        let has_room = self.has_room(0);
        if has_room {
            self.add_record(queue, record.identity);
        }
        has_room
    }

    /// Whether the encoded record and this many rows fit beside what collection may remove.
    fn has_room(&self, rows: usize) -> bool {
        let ops = self.batch.len() + self.blocks_count + rows + 1;
        let bytes = self.batch.bytes()
            + self.blocks_bytes
            + rows * ROW_BYTES_MAX
            + self.encoded.len()
            + ROW_BYTES_MAX;
        ops <= BATCH_OPS_MAX - COLLECT_OPS && bytes <= BATCH_BYTES_MAX - COLLECT_BYTES
    }

    fn add_record(&mut self, queue: QueueId, identity: Identity) {
        let blocks = self.blocks.entry(queue).or_default();
        if let Some(block) = blocks.last_mut()
            && block.builder.push(&self.encoded)
        {
            block.identities.push(identity);
            self.blocks_bytes += self.encoded.len();
            return;
        }
        let mut block = OpenBlock::default();
        block.builder.push(&self.encoded);
        block.identities.push(identity);
        self.blocks_bytes += block.builder.bytes() + ROW_BYTES_MAX;
        self.blocks_count += 1;
        blocks.push(block);
    }

    fn add_change(&mut self, change: Change) {
        match &change {
            Change::PutAttempts(identity, attempts) => {
                self.batch.put(record::attempts_key(*identity), record::seal(attempts));
            }
            Change::RemoveAttempts(identity) => {
                self.batch.remove(record::attempts_key(*identity));
            }
            Change::PutPending(identity) => {
                self.batch.put(record::pending_key(*identity), record::seal(&()));
            }
            Change::RemovePending(identity) => {
                self.batch.remove(record::pending_key(*identity));
            }
        }
        self.changes.push(change);
    }

    /// Whether collection may add this many removals of rows beside those of blocks.
    pub(super) const fn has_room_for_rows(&self, rows: usize) -> bool {
        self.batch.len() + self.blocks_count + rows <= BATCH_OPS_MAX - COLLECT_BLOCKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::Attempts;
    use super::super::record::Location;
    use super::super::tests::{dead_record, record};
    use super::*;

    fn commit(queue: QueueId, record: Option<super::super::Record>, rows: Vec<Change>) -> Commit {
        Commit { queue, record, rows, submitted: Instant::now(), on_persisted: Box::new(drop) }
    }

    #[test]
    fn no_batch_is_larger_than_sled_can_take_and_no_commit_is_split() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let attempts = Attempts {
            queue: QueueId(u16::MAX),
            started: u32::MAX,
            unfinished: true,
            alone: true,
            first_seen_ms: u64::MAX,
            updated_at_ms: u64::MAX,
        };
        let mut group = Group::default();
        let (mut groups, mut taken) = (0, 0);
        for number in 0..20_000 {
            let record = match rng.u8(0..10) {
                0..6 => Some(record(number)),
                6..9 => Some(dead_record(number)),
                _ => None,
            };
            let identity = super::super::tests::record(number).identity;
            let rows = match rng.u8(0..4) {
                0 => vec![Change::RemoveAttempts(identity), Change::PutPending(identity)],
                1 => vec![Change::PutAttempts(identity, attempts)],
                2 => vec![Change::RemovePending(identity)],
                _ => Vec::new(),
            };
            let mut left = Some(commit(QueueId(rng.u16(0..4)), record, rows));
            while let Some(commit) = left.take() {
                if let Err(commit) = group.add(commit) {
                    taken += check_limits(std::mem::take(&mut group));
                    groups += 1;
                    left = Some(*commit);
                }
            }
        }
        taken += check_limits(group);
        assert_eq!(taken, 20_000);
        assert!(groups > 100, "{groups} groups are too few to fill any");
    }

    /// Adds the blocks as the committer does, and as many removals as collection may; gives the number of commits.
    fn check_limits(group: Group) -> usize {
        let mut batch = group.batch;
        for (queue, block) in group
            .blocks
            .into_iter()
            .flat_map(|(queue, blocks)| blocks.into_iter().map(move |block| (queue, block)))
        {
            let value = block.builder.finish(u64::MAX);
            batch.put(Location::new(queue, batch.len() as u64).key(), value);
        }
        for number in 0..COLLECT_OPS as u64 {
            batch.remove(Location::new(QueueId(9), number).key());
        }
        assert!(batch.len() <= BATCH_OPS_MAX, "{} operations", batch.len());
        assert!(batch.bytes() <= BATCH_BYTES_MAX, "{} bytes", batch.bytes());
        group.told.len()
    }
}
