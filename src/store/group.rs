//! Commits on their way into one batch, within what sled can take at once.
//!
//! A commit is taken in whole or left for the next group; room is kept for what collection removes.

use std::collections::BTreeMap;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::backend::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Batch, VALUE_BYTES_MAX};
use super::outgoing::{Entry, OpenOutgoing};
use super::record::{self, BlockBuilder, QueueId, Record};
use super::watermark::{
    self, ADVANCE_BYTES_MAX, MARKS_BYTES_MAX, MARKS_KEY_BYTES, Marks, Watermarks,
};
use super::{Change, Commit, OnPersisted};
use crate::identity::{Identity, SequenceId};

/// Most expired blocks that one group removes beside commits: more than one can add of one queue.
pub(super) const COLLECT_BLOCKS_MAX: usize = 16;

/// Most expired blocks that a group without commits removes.
const COLLECT_BLOCKS_ALONE_MAX: usize = 64;

/// Operations of a batch that are kept for collection: a block and its ghosts each, and a few for other rows.
const COLLECT_OPS: usize = 2 * COLLECT_BLOCKS_MAX + 8;

/// Bytes of a batch that are kept for collection: for the removal of as many blocks as the rest can hold, and ghosts.
const COLLECT_BYTES: usize = 15 * 1024;

/// What a commit that is alone in its group leaves to collection: the room of a few blocks, many times what the records
/// of one commit take.
const ALONE_OPS: usize = 16;
const ALONE_BYTES: usize = 4 * 1024;

/// Bytes that the marks of all producers of one commit may take.
const COMMIT_MARKS_BYTES_MAX: usize = 5 * 1024;

/// What a row of its own takes at most beside its contents: key, format, times, checksum.
const ROW_BYTES: usize = 48;

/// Commits on their way into one batch.
#[derive(Default)]
pub(super) struct Group {
    pub(super) batch: Batch,
    pub(super) blocks: BTreeMap<QueueId, Vec<OpenBlock>>,
    pub(super) outgoing: Vec<OpenOutgoing>,
    pub(super) marks: BTreeMap<Identity, Marks>,
    /// Numbers of producers that were given up.
    pub(super) given_up: u64,
    /// By how many bytes states and spilled values have grown.
    pub(super) grown_states: i64,
    pub(super) grown_values: i64,
    /// Rows that are still to be made from those above, and their bytes.
    open_rows: usize,
    open_bytes: usize,
    pub(super) told: Vec<(Instant, OnPersisted)>,
    pub(super) changes: Vec<Change>,
    encoded: Vec<u8>,
}

#[derive(Default)]
pub(super) struct OpenBlock {
    pub(super) builder: BlockBuilder,
    pub(super) identities: Vec<Identity>,
}

/// What a commit needs of a batch, at most.
#[derive(Default)]
struct Need {
    ops: usize,
    bytes: usize,
}

impl Need {
    /// Adds contents that are packed into blocks: in the worst case each new one is filled by half.
    const fn add_packed(&mut self, contents: usize, bytes: usize) {
        let blocks = match contents {
            0 | 1 => contents,
            _ => 1 + bytes / (VALUE_BYTES_MAX / 2),
        };
        self.ops += blocks;
        self.bytes += bytes + blocks * ROW_BYTES;
    }
}

impl Group {
    /// Takes the whole commit in, or gives it back for the next group.
    pub(super) fn add(
        &mut self,
        commit: Commit,
        watermarks: &Watermarks,
    ) -> Result<(), Box<Commit>> {
        let mut need = Need::default();
        self.encoded.clear();
        let mut ends: SmallVec<[usize; 1]> = SmallVec::new();
        for record in &commit.records {
            record::encode_record(record, &mut self.encoded);
            ends.push(self.encoded.len());
        }
        need.add_packed(commit.records.len(), self.encoded.len());
        let mut rows = Batch::default();
        let mut outgoing: SmallVec<[(Entry, Vec<u8>); 1]> = SmallVec::new();
        let mut advanced: Vec<SequenceId> = Vec::new();
        let (mut grown_states, mut grown_values) = (0, 0);
        for change in &commit.rows {
            match change {
                Change::PutOutgoing(row) => {
                    outgoing.push((Entry::new(row), record::encode(row)));
                }
                Change::Advance(sequence) => advanced.push(*sequence),
                other => other.encode(&mut rows),
            }
            match change {
                Change::PutState(state) => grown_states += state.grown_bytes,
                Change::PutPiece(_, _, _, bytes) => grown_values += bytes.len() as i64,
                _ => {}
            }
        }
        need.ops += rows.len();
        need.bytes += rows.bytes();
        need.add_packed(outgoing.len(), outgoing.iter().map(|(_, row)| row.len()).sum());
        let marks_bytes_max = self.need_of_marks(&advanced, watermarks, &mut need);
        if !self.has_room(&need) {
            assert!(!self.told.is_empty(), "a commit that no batch can hold");
            return Err(Box::new(commit));
        }
        let mut begin = 0;
        for (record, end) in commit.records.iter().zip(ends) {
            self.add_record(commit.queue, record.identity, begin..end);
            begin = end;
        }
        self.batch.append(rows);
        for (entry, row) in outgoing {
            self.add_outgoing(entry, &row);
        }
        for sequence in advanced {
            self.advance(sequence, watermarks, marks_bytes_max);
        }
        self.grown_states += grown_states;
        self.grown_values += grown_values;
        self.changes.extend(commit.rows);
        self.told.push((commit.submitted, commit.on_persisted));
        Ok(())
    }

    /// Most expired blocks that this group removes.
    pub(super) const fn collect_blocks_max(&self) -> usize {
        if self.told.is_empty() { COLLECT_BLOCKS_ALONE_MAX } else { COLLECT_BLOCKS_MAX }
    }

    /// Writes a record once more, in the queue's last block; `false` if there is no room.
    pub(super) fn carry(&mut self, queue: QueueId, record: &Record) -> bool {
        self.encoded.clear();
        record::encode_record(record, &mut self.encoded);
        let mut need = Need::default();
        need.add_packed(1, self.encoded.len());
        let has_room = self.has_room_beside(need.ops, need.bytes);
        if has_room {
            self.add_record(queue, record.identity, 0..self.encoded.len());
        }
        has_room
    }

    /// Whether a commit fits beside what collection may add; the largest ones fit alone.
    const fn has_room(&self, need: &Need) -> bool {
        let (ops, bytes) = if self.told.is_empty() {
            (ALONE_OPS, ALONE_BYTES)
        } else {
            (COLLECT_OPS, COLLECT_BYTES)
        };
        self.has_room_beside(need.ops + ops, need.bytes + bytes)
    }

    /// Whether collection may add this.
    pub(super) const fn has_room_beside(&self, ops: usize, bytes: usize) -> bool {
        self.batch.len() + self.open_rows + ops <= BATCH_OPS_MAX
            && self.batch.bytes() + self.open_bytes + bytes <= BATCH_BYTES_MAX
    }

    fn add_record(&mut self, queue: QueueId, identity: Identity, encoded: std::ops::Range<usize>) {
        let record = self.encoded.get(encoded).unwrap_or_default();
        let blocks = self.blocks.entry(queue).or_default();
        if let Some(block) = blocks.last_mut()
            && block.builder.push(record)
        {
            block.identities.push(identity);
            self.open_bytes += record.len();
            return;
        }
        let mut block = OpenBlock::default();
        block.builder.push(record);
        block.identities.push(identity);
        self.open_bytes += record.len() + ROW_BYTES;
        self.open_rows += 1;
        blocks.push(block);
    }

    fn add_outgoing(&mut self, entry: Entry, row: &[u8]) {
        self.open_bytes += row.len();
        if let Some(block) = self.outgoing.last_mut()
            && block.builder.push(row)
        {
            block.entries.push(entry);
            return;
        }
        let mut block = OpenOutgoing::default();
        block.builder.push(row);
        block.entries.push(entry);
        self.open_bytes += ROW_BYTES;
        self.open_rows += 1;
        self.outgoing.push(block);
    }

    /// Adds what these numbers need; gives how long the marks of one producer may be.
    ///
    /// Marks of many producers in one commit must be shorter, or no batch could hold it.
    fn need_of_marks(
        &self,
        advanced: &[SequenceId],
        watermarks: &Watermarks,
        need: &mut Need,
    ) -> usize {
        let mut numbers: BTreeMap<Identity, usize> = BTreeMap::new();
        for number in advanced {
            *numbers.entry(number.producer).or_default() += 1;
        }
        let bytes_max = COMMIT_MARKS_BYTES_MAX / numbers.len().max(1);
        let bytes_max = bytes_max.min(MARKS_BYTES_MAX);
        for (producer, numbers) in numbers {
            let open = self.marks.get(&producer).map(Marks::row_bytes);
            let row_bytes = open.unwrap_or_else(|| watermarks.get(producer).row_bytes());
            // However many numbers there are, what is longer is squeezed.
            let row_bytes = (row_bytes + numbers * ADVANCE_BYTES_MAX).min(bytes_max);
            let bytes = Batch::bytes_anywhere(row_bytes);
            match open {
                Some(open) => need.bytes += bytes.saturating_sub(Batch::bytes_anywhere(open)),
                None => {
                    need.ops += 1;
                    need.bytes += MARKS_KEY_BYTES + bytes;
                }
            }
        }
        bytes_max
    }

    fn advance(&mut self, sequence: SequenceId, watermarks: &Watermarks, bytes_max: usize) {
        let SequenceId { producer, number } = sequence;
        let marks = self.marks.entry(producer).or_insert_with(|| {
            let marks = watermarks.get(producer);
            self.open_rows += 1;
            self.open_bytes += MARKS_KEY_BYTES + Batch::bytes_anywhere(marks.row_bytes());
            marks
        });
        self.open_bytes -= Batch::bytes_anywhere(marks.row_bytes());
        marks.advance(number);
        self.given_up = self.given_up.saturating_add(marks.squeeze(bytes_max));
        self.open_bytes += Batch::bytes_anywhere(marks.row_bytes());
    }

    /// Adds the rows of producers to the batch; gives what their marks are when it is durable.
    pub(super) fn finish_marks(&mut self) -> BTreeMap<Identity, Marks> {
        let marks = std::mem::take(&mut self.marks);
        for (producer, marks) in &marks {
            let key = watermark::watermark_key(*producer);
            self.batch.put_anywhere(key, record::seal(&marks.to_row()));
        }
        marks
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::record::Location;
    use super::super::rows::{INLINE_BYTES_MAX, KeyId, OutgoingRow, Spilled, StepRow, Stored};
    use super::super::spill::Owner;
    use super::super::tests::{dead_record, record};
    use super::super::{Attempts, ResultRow, StateChange};
    use super::*;

    const KEY: KeyId = KeyId { queue: QueueId(u16::MAX), hash: [255; 16] };

    fn commit(queue: QueueId, records: impl Iterator<Item = Record>, rows: Vec<Change>) -> Commit {
        let records = records.collect();
        Commit { queue, records, rows, submitted: Instant::now(), on_persisted: Box::new(drop) }
    }

    fn attempts() -> Attempts {
        Attempts {
            queue: QueueId(u16::MAX),
            started: u32::MAX,
            unfinished: true,
            alone: true,
            first_seen_ms: u64::MAX,
            updated_at_ms: u64::MAX,
        }
    }

    fn stored(rng: &mut fastrand::Rng) -> Stored {
        let bytes = rng.usize(0..=INLINE_BYTES_MAX);
        match rng.u8(0..3) {
            0 => Stored::Spilled(Spilled { id: u64::MAX, bytes: u64::MAX }),
            1 => Stored::Inline(vec![7; INLINE_BYTES_MAX].into()),
            _ => Stored::Inline(vec![7; bytes].into()),
        }
    }

    /// Rows of one message, of any kind, as large as they can be.
    fn rows(rng: &mut fastrand::Rng, identity: Identity) -> Vec<Change> {
        let mut rows = Vec::new();
        match rng.u8(0..10) {
            0 => {
                rows.extend([Change::RemoveAttempts(identity), Change::PutPending(identity)]);
            }
            1 => rows.push(Change::PutAttempts(identity, attempts())),
            2 => rows.push(Change::RemovePending(identity)),
            // Pieces and steps are committed by themselves.
            3 => {
                let pieces = (0..6).map(|number| {
                    let spilled = Spilled { id: u64::MAX, bytes: u64::MAX };
                    let bytes = Bytes::from(vec![1; 4000]);
                    Change::PutPiece(spilled, number, Owner::State(KEY), bytes)
                });
                return pieces.collect();
            }
            4 => {
                let step = StepRow {
                    queue: QueueId(u16::MAX),
                    name: "s".repeat(200),
                    result: Some(stored(rng)),
                    updated_at_ms: u64::MAX,
                };
                return vec![Change::PutStep(identity, step)];
            }
            5 => rows.push(Change::RemoveOutgoing(rng.u64(..))),
            _ => {}
        }
        if rng.bool() {
            let messages = stored(rng);
            rows.push(Change::PutOutgoing(OutgoingRow { identity, key: KEY, messages }));
        }
        if rng.bool() {
            let row = rng.bool().then(|| vec![3; rng.usize(0..3100)]);
            let state = StateChange { key: KEY, state: None, row, grown_bytes: 0 };
            rows.extend([
                Change::PutState(state),
                Change::RemoveSpilled(Spilled { id: 3, bytes: 10_000 }),
            ]);
        }
        if rng.u8(0..10) == 0 {
            rows.extend((0..64).map(|step| Change::RemoveStep(identity, step.to_string())));
        }
        rows
    }

    #[test]
    fn no_batch_is_larger_than_sled_can_take_and_no_commit_is_split() {
        const COMMITS: u64 = 20_000;
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let watermarks = Watermarks::default();
        let mut group = Group::default();
        let (mut groups, mut taken) = (0, 0);
        for number in 0..COMMITS {
            let mut one = match rng.u8(0..10) {
                0..6 => Some(record(number)),
                6..9 => Some(dead_record(number)),
                _ => None,
            };
            let identity = record(number).identity;
            let mut rows = if rng.bool() { rows(&mut rng, identity) } else { Vec::new() };
            let alone = matches!(rows.first(), Some(Change::PutPiece(..) | Change::PutStep(..)));
            one = one.filter(|_| !alone);
            if let Some(record) = one.as_mut().filter(|_| rng.u8(0..10) == 0) {
                record.outcome = super::super::Outcome::Done;
                record.result = Some(Box::new(ResultRow {
                    signature: 1,
                    checksum: [255; 8],
                    content_type: Some("c".repeat(255)),
                    body: stored(&mut rng),
                }));
            }
            let mut records: Vec<Record> = one.into_iter().collect();
            if rng.u8(0..50) == 0 && !alone {
                // A batch of messages, each with what is left of its attempts.
                records = (number * 100..number * 100 + 100).map(record).collect();
                rows.retain(|row| matches!(row, Change::PutState(_)));
                rows.extend(records.iter().map(|record| Change::RemoveAttempts(record.identity)));
                let steps = rng.usize(0..=64);
                rows.extend((0..steps).map(|step| Change::RemoveStep(identity, step.to_string())));
                let sending = rng.usize(0..=100);
                rows.extend(records.iter().take(sending).map(|record| {
                    let messages = Stored::Spilled(Spilled { id: u64::MAX, bytes: u64::MAX });
                    Change::PutOutgoing(OutgoingRow {
                        identity: record.identity,
                        key: KEY,
                        messages,
                    })
                }));
                let inline = OutgoingRow {
                    identity,
                    key: KEY,
                    messages: Stored::Inline(vec![7; 2048].into()),
                };
                rows.extend([Change::PutOutgoing(inline.clone()), Change::PutOutgoing(inline)]);
            }
            // A batch is of eight producers at most.
            let producers = if records.len() > 1 { 8 } else { 130 };
            for _ in 0..records.len() {
                let producer = rng.u8(0..producers);
                let producer = Identity::from_bytes(u128::from(producer).to_le_bytes());
                let number = rng.u64(0..100_000_000);
                if rng.bool() {
                    rows.push(Change::Advance(SequenceId { producer, number }));
                }
            }
            let mut left = Some(commit(QueueId(rng.u16(0..4)), records.into_iter(), rows));
            while let Some(commit) = left.take() {
                if let Err(commit) = group.add(commit, &watermarks) {
                    taken += check_limits(std::mem::take(&mut group), &watermarks, &mut rng);
                    groups += 1;
                    left = Some(*commit);
                }
            }
        }
        taken += check_limits(group, &watermarks, &mut rng);
        assert_eq!(taken as u64, COMMITS);
        assert!(groups > 100, "{groups} groups are too few to fill any");
    }

    /// Adds what collection may, then the blocks as the committer does; gives the number of commits.
    fn check_limits(mut group: Group, watermarks: &Watermarks, rng: &mut fastrand::Rng) -> usize {
        for number in 0..COLLECT_OPS as u64 {
            let ghosts = rng.usize(0..900);
            if group.has_room_beside(2, Batch::bytes_removed(9) + 9 + ghosts) {
                group.batch.remove_large(Location::new(QueueId(9), number).key());
                group.batch.put(Location::new(QueueId(8), number).key(), vec![8; ghosts]);
            }
        }
        watermarks.set(group.finish_marks());
        let Group { mut batch, blocks, outgoing, told, .. } = group;
        for (queue, block) in blocks
            .into_iter()
            .flat_map(|(queue, blocks)| blocks.into_iter().map(move |block| (queue, block)))
        {
            let value = block.builder.finish(u64::MAX);
            batch.put(Location::new(queue, batch.len() as u64).key(), value);
        }
        for block in outgoing {
            batch.put(super::super::outgoing::outgoing_key(3), block.builder.finish(u64::MAX));
        }
        assert!(batch.len() <= BATCH_OPS_MAX, "{} operations", batch.len());
        assert!(batch.bytes() <= BATCH_BYTES_MAX, "{} bytes", batch.bytes());
        told.len()
    }

    #[test]
    fn collection_has_room_for_as_many_records_as_a_full_group_brings() {
        let watermarks = Watermarks::default();
        let mut group = Group::default();
        let mut taken = 0;
        while group
            .add(commit(QueueId(0), [record(taken)].into_iter(), Vec::new()), &watermarks)
            .is_ok()
        {
            taken += 1;
        }
        let blocks = group.blocks.values().flatten().count();
        let bytes = blocks * Batch::bytes_removed(9) + taken as usize * 6 + blocks * 48;
        assert!(blocks < COLLECT_BLOCKS_MAX);
        assert!(group.has_room_beside(2 * blocks, bytes), "{taken} records in {blocks} blocks");
    }

    #[test]
    fn a_message_without_effects_takes_nothing_but_its_record() {
        let mut group = Group::default();
        let one = commit(QueueId(0), [record(1)].into_iter(), Vec::new());
        assert!(group.add(one, &Watermarks::default()).is_ok());
        assert!(group.batch.is_empty() && group.outgoing.is_empty() && group.changes.is_empty());
        assert!(group.marks.is_empty());
    }
}
