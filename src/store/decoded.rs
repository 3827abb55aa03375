//! What a commit says, as data, for the checker of histories.
//!
//! Reads the rows as they would lie on the disk, and what lay there before: the marks of a producer say which of its
//! numbers are new. A record that is carried into a later block is there once more. Changes nothing and is in no
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
    /// A record leaves, or an older copy of it.
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
            (record::BLOCK_PREFIX, Some(value)) => {
                let block: Block = read(value);
                let is_outcome = |r: &Record| !matches!(r.outcome, Outcome::Forgotten(_));
                block.records.into_iter().filter(is_outcome).map(Decoded::Record).collect()
            }
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

    fn removed_block(&self, key: &[u8]) -> Vec<Decoded> {
        let Some(value) = self.rows.get(key) else { return Vec::new() };
        let block: Block = read(value);
        block.records.iter().map(|record| Decoded::Collected(record.identity)).collect()
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
