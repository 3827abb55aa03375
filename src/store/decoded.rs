//! What a commit says, as data, for the checker of histories.
//!
//! Reads the rows as they would lie on the disk, and what lay there before: a record that is only carried into a later
//! block is no new one, and the marks of a producer say which of its numbers are new. Changes nothing and is in no
//! release without `simulation`.

use super::outcome::Outcome;
use super::outgoing::{OUTGOING_PREFIX, OutgoingBlock};
use super::record::{self, Attempts, Block, Meta, QueueId, QueueRow, Record};
use super::rows::{KeyId, StepRow, Stored};
use super::simulated::{Op, Rows};
use super::spill::{self, PieceRow};
use super::state::{STATE_PREFIX, StateRow};
use super::steps::{self, STEP_PREFIX};
use super::watermark::{Mark, Marks, MarksRow, WATERMARK_PREFIX};
use crate::identity::Identity;
use crate::message::Message;

/// One thing that a commit says.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// The store is opened, in this epoch.
    Epoch(u64),
    /// A queue has this number.
    Queue(QueueId, String),
    /// A message ends.
    Record(Record),
    /// A number of a producer is done.
    Number(Identity, u64),
    /// Begun attempts, and whether the last one may be running.
    Attempts(Identity, u32, bool),
    /// The encoded state of a key; `None` is removed.
    State(KeyId, Option<Vec<u8>>),
    /// A step has begun, or has a result.
    Step(Identity, String, bool),
    /// What a message sends.
    Outgoing(Identity, Vec<Message>),
    /// A record leaves.
    Collected(Identity),
}

/// What the rows mean, over those that are there.
///
/// # Panics
///
/// If a row cannot be read: whoever wrote it is broken.
pub(crate) fn decode(rows: &Rows, ops: &[Op]) -> Vec<Decoded> {
    let reader = Reader { rows, ops };
    ops.iter().flat_map(|(key, value)| reader.row(key, value.as_deref())).collect()
}

struct Reader<'a> {
    rows: &'a Rows,
    ops: &'a [Op],
}

#[expect(
    clippy::expect_used,
    reason = "for tests: a row that cannot be read is what they look for"
)]
fn read<T: serde::de::DeserializeOwned>(value: &[u8]) -> T {
    record::unseal(value).expect("the store writes rows that it can read")
}

impl Reader<'_> {
    fn row(&self, key: &[u8], value: Option<&[u8]>) -> Vec<Decoded> {
        let prefix = key.get(..1).unwrap_or_default();
        match (prefix, value) {
            (record::META_KEY, Some(value)) => vec![Decoded::Epoch(read::<Meta>(value).epoch)],
            (record::QUEUE_PREFIX, Some(value)) => {
                let row: QueueRow = read(value);
                let number = key.get(1..).and_then(|number| number.try_into().ok());
                let number = number.map_or(0, u16::from_be_bytes);
                let is_own = row.class.is_none();
                is_own.then(|| Decoded::Queue(QueueId(number), row.name)).into_iter().collect()
            }
            (record::BLOCK_PREFIX, Some(value)) => self.block(key, &read(value)),
            (record::BLOCK_PREFIX, None) => self.removed_block(key),
            (record::ATTEMPTS_PREFIX, Some(value)) => {
                let row: Attempts = read(value);
                let identity = record::identity_of_key(record::ATTEMPTS_PREFIX, key);
                let attempts = |of| Decoded::Attempts(of, row.started, row.unfinished);
                identity.map(attempts).into_iter().collect()
            }
            (STATE_PREFIX, value) => self.state(key, value).into_iter().collect(),
            (STEP_PREFIX, Some(value)) => {
                let row: StepRow = read(value);
                let step = |of| Decoded::Step(of, row.name, row.result.is_some());
                steps::identity_of_key(key).map(step).into_iter().collect()
            }
            (OUTGOING_PREFIX, Some(value)) => {
                let block: OutgoingBlock = read(value);
                block.rows.iter().map(|row| self.outgoing(row.identity, &row.messages)).collect()
            }
            (WATERMARK_PREFIX, Some(value)) => self.numbers(key, value),
            _ => Vec::new(),
        }
    }

    /// The records of a block, but those that an older block has and that are past their retention: those are carried.
    fn block(&self, key: &[u8], block: &Block) -> Vec<Decoded> {
        let retention_ms = self.retention_ms(key);
        let is_carried = |new: &&Record| {
            self.blocks().any(|(_, old)| {
                old.committed_at_ms.saturating_add(retention_ms) <= block.committed_at_ms
                    && old.records.contains(new)
            })
        };
        let new = block.records.iter().filter(|record| !is_carried(record));
        let is_outcome = |record: &&Record| !matches!(record.outcome, Outcome::Forgotten(_));
        new.filter(is_outcome).cloned().map(Decoded::Record).collect()
    }

    fn removed_block(&self, key: &[u8]) -> Vec<Decoded> {
        let Some(value) = self.rows.get(key) else { return Vec::new() };
        let removed: Block = read(value);
        let is_kept = |identity: Identity| {
            let stays =
                |at: &[u8]| !self.ops.iter().any(|(key, value)| key == at && value.is_none());
            let has = |block: &Block| block.records.iter().any(|r| r.identity == identity);
            let written = self.ops.iter().filter(|(key, _)| key.starts_with(record::BLOCK_PREFIX));
            let mut written = written.filter_map(|(_, value)| value.as_deref());
            written.any(|value| has(&read(value)))
                || self.blocks().any(|(at, block)| stays(at) && has(&block))
        };
        let gone = removed.records.iter().map(|record| record.identity);
        gone.filter(|identity| !is_kept(*identity)).map(Decoded::Collected).collect()
    }

    fn blocks(&self) -> impl Iterator<Item = (&[u8], Block)> {
        let from = self.rows.range(record::BLOCK_PREFIX.to_vec()..);
        from.take_while(|(key, _)| key.starts_with(record::BLOCK_PREFIX))
            .map(|(key, value)| (key.as_slice(), read(value)))
    }

    fn retention_ms(&self, block_key: &[u8]) -> u64 {
        let queue = record::Location::from_key(block_key).map(record::Location::queue);
        let row = queue.and_then(|queue| self.rows.get(&record::queue_key(queue)));
        row.map_or(u64::MAX, |row| read::<QueueRow>(row).retention_ms)
    }

    fn state(&self, key: &[u8], value: Option<&[u8]>) -> Option<Decoded> {
        let (queue, hash) = key.strip_prefix(STATE_PREFIX)?.split_first_chunk::<2>()?;
        let key = KeyId { queue: QueueId(u16::from_be_bytes(*queue)), hash: hash.try_into().ok()? };
        let value = value.and_then(|value| read::<StateRow>(value).value);
        Some(Decoded::State(key, value.map(|value| self.whole(&value.bytes))))
    }

    fn outgoing(&self, identity: Identity, stored: &Stored) -> Decoded {
        let bytes = self.whole(stored);
        #[expect(
            clippy::expect_used,
            reason = "for tests: what cannot be read is what they look for"
        )]
        let messages = postcard::from_bytes(&bytes).expect("outgoing messages can be read");
        Decoded::Outgoing(identity, messages)
    }

    /// The value, also if it lies in pieces, which are durable before.
    fn whole(&self, stored: &Stored) -> Vec<u8> {
        let spilled = match stored {
            Stored::Inline(bytes) => return bytes.to_vec(),
            Stored::Spilled(spilled) => *spilled,
        };
        let piece = |number| {
            let key = spill::piece_key(spilled.id, number);
            let written = self.ops.iter().find(|(written, _)| *written == key);
            let value =
                written.and_then(|(_, value)| value.as_ref()).or_else(|| self.rows.get(&key));
            #[expect(clippy::expect_used, reason = "for tests: a piece that is missing is a fault")]
            let value = value.expect("pieces are written before the row that refers to them");
            read::<PieceRow>(value).bytes
        };
        (0..spilled.pieces()).flat_map(piece).collect()
    }

    fn numbers(&self, key: &[u8], value: &[u8]) -> Vec<Decoded> {
        let marks = |value: &[u8]| Marks::from_row(read::<MarksRow>(value)).unwrap_or_default();
        let before = self.rows.get(key).map(|value| marks(value)).unwrap_or_default();
        let after = marks(value);
        let producer = record::identity_of_key(WATERMARK_PREFIX, key);
        let is_new =
            |number: &u64| before.look(*number) == Mark::New && after.look(*number) == Mark::Done;
        let new = (0..after.end()).filter(is_new);
        producer.map_or_else(Vec::new, |of| new.map(|n| Decoded::Number(of, n)).collect())
    }
}
