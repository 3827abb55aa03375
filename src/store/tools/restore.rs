//! From the lines of an export to rows: blocks are packed anew, values cut into pieces anew.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::super::backend::{StoreError, VALUE_BYTES_MAX};
use super::super::ghosts::{GhostRow, ghost_key};
use super::super::journal::Journal;
use super::super::outgoing::outgoing_key;
use super::super::record::{
    self, BLOCK_OVERHEAD_BYTES, BlockBuilder, FORMAT, Location, Meta, QueueId, QueueRow,
    SEQUENCE_MAX,
};
use super::super::rows::{KeyId, Spilled};
use super::super::spill::Owner;
use super::super::state::{StateRow, state_key};
use super::super::steps::step_key;
use super::super::watermark::{Marks, MarksRow, watermark_key};
use super::chunks::OpenValue;
use super::import::ImportError;
use super::line::{Header, Line, OutgoingLine, StepLine, placer};
use super::rebuild::Rebuild;
use super::record_line::RecordLine;
use crate::identity::{HashKey, Identity};

/// An epoch that no store reaches; its number and a counter make the id of a spilled value.
const EPOCH_MAX: u64 = 1 << 31;

/// Why a line cannot be restored.
pub(super) enum RestoreError {
    Store(StoreError),
    Line(String),
}

impl RestoreError {
    pub(super) fn at(self, line: u64) -> ImportError {
        match self {
            Self::Store(error) => ImportError::Store(error),
            Self::Line(problem) => ImportError::Refused { line, problem },
        }
    }
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<String> for RestoreError {
    fn from(problem: String) -> Self {
        Self::Line(problem)
    }
}

type Restored = Result<(), RestoreError>;

/// A store that grows line by line.
pub(super) struct Restore {
    rebuild: Rebuild,
    queues: BTreeMap<QueueId, u64>,
    journal: Journal,
    records: u64,
    counts: Option<(u64, u64)>,
    block: Option<OpenBlock>,
    outgoing: Option<OpenBlock>,
    next_outgoing: u64,
    value: Option<OpenValue>,
    next_value: u64,
}

/// A block that is being filled, with where and when it was in the store before.
struct OpenBlock {
    queue: QueueId,
    block: u64,
    at_ms: u64,
    builder: BlockBuilder,
}

impl Restore {
    pub(super) async fn begin(mut rebuild: Rebuild, header: Header) -> Result<Self, ImportError> {
        let epoch = header.epoch;
        if epoch >= EPOCH_MAX {
            let problem = format!("the epoch {epoch} is none that a store has");
            return Err(ImportError::Refused { line: 1, problem });
        }
        let meta = Meta { format: FORMAT, hash_key: header.hash_key.0, epoch };
        rebuild.put(record::META_KEY.to_vec(), record::seal(&meta)).await?;
        Ok(Self {
            rebuild,
            queues: BTreeMap::new(),
            journal: Journal::of(HashKey::new(meta.hash_key).mark()),
            records: 0,
            counts: None,
            block: None,
            outgoing: None,
            next_outgoing: 0,
            value: None,
            // The next opening has the next epoch, and so other ids.
            next_value: epoch << 32,
        })
    }

    pub(super) async fn line(&mut self, line: Line) -> Restored {
        if let Line::Chunk(chunk) = line {
            return self.chunk(&chunk.0).await;
        }
        if self.value.is_some() {
            return Err("the value before it is not whole".to_owned().into());
        }
        match line {
            Line::Queue { queue, name, class, retention_ms } => {
                self.queues.insert(QueueId(queue), retention_ms);
                let row = QueueRow { name, class, retention_ms };
                self.put(record::queue_key(QueueId(queue)), &row).await
            }
            Line::Record(line) => self.record(line).await,
            Line::NextBlock { queue, block } => {
                self.end_block().await?;
                self.known(queue, block)?;
                // Behind blocks there must be no gap.
                if self.journal.oldest().all(|(id, _)| id != QueueId(queue)) {
                    self.journal.skip_to(QueueId(queue), block);
                }
                Ok(())
            }
            Line::Ghosts { queue, block, at_ms, hashes } => {
                self.known(queue, block)?;
                let row = GhostRow { committed_at_ms: at_ms, hashes: hashes.0 };
                if row.hashes().is_none() {
                    return Err("it ends in half a hash".to_owned().into());
                }
                self.put(ghost_key(Location::new(QueueId(queue), block)), &row).await
            }
            Line::Attempts(line) => {
                let (identity, attempts) = line.attempts();
                self.put(record::attempts_key(identity), &attempts).await
            }
            Line::Pending { identity } => {
                self.put(record::pending_key(Identity::from_bytes(identity.0)), &()).await
            }
            Line::State { queue, key, latest, value } => {
                let key = KeyId { queue: QueueId(queue), hash: key.0 };
                let mut placed = None;
                let value =
                    value.map(|value| value.value(&mut placer(self.next_value, &mut placed)));
                let row = StateRow { latest, value };
                self.put(state_key(key), &row).await?;
                self.journal.grow_states(record::seal(&row).len() as i64);
                self.announced(placed, Owner::State(key)).await
            }
            Line::Step(line) => self.step(line).await,
            Line::Outgoing(line) => self.outgoing(line).await,
            Line::Watermark { producer, low, unsure_below, runs } => {
                let row = MarksRow { low, unsure_below, runs };
                let marks =
                    Marks::from_row(row).ok_or_else(|| "its runs are not in order".to_owned())?;
                self.put(watermark_key(Identity::from_bytes(producer.0)), &marks.to_row()).await
            }
            Line::Counts { records, left_out } => {
                self.counts = Some((records, left_out));
                Ok(())
            }
            Line::Chunk(_) | Line::End(_) => Err("it comes at the wrong place".to_owned().into()),
        }
    }

    /// Makes all durable; gives the number of records, and of what the export has left out.
    pub(super) async fn end(mut self) -> Result<(u64, u64), RestoreError> {
        if self.value.is_some() {
            return Err("the value before it is not whole".to_owned().into());
        }
        let Some((_, left_out)) = self.counts.filter(|(records, _)| *records == self.records)
        else {
            return Err("it has other records than it counts".to_owned().into());
        };
        self.end_block().await?;
        self.end_outgoing().await?;
        let note = self.journal.note(|queue| self.queues.get(&queue).copied().unwrap_or(0));
        self.rebuild.end(Some(record::seal(&note))).await?;
        Ok((self.records, left_out))
    }

    async fn record(&mut self, line: RecordLine) -> Restored {
        let (queue, block, at_ms) = (QueueId(line.queue), line.block, line.at_ms);
        self.known(line.queue, block)?;
        let mut placed = None;
        let record = line.record(&mut placer(self.next_value, &mut placed))?;
        let mut encoded = Vec::new();
        record::encode_record(&record, &mut encoded);
        check_fits(encoded.len() + BLOCK_OVERHEAD_BYTES)?;
        let is_same =
            |open: &OpenBlock| (open.queue, open.block, open.at_ms) == (queue, block, at_ms);
        let pushed =
            self.block.as_mut().is_some_and(|open| is_same(open) && open.builder.push(&encoded));
        if !pushed {
            self.end_block().await?;
            let mut builder = BlockBuilder::default();
            builder.push(&encoded);
            self.block = Some(OpenBlock { queue, block, at_ms, builder });
        }
        self.records += 1;
        self.announced(placed, Owner::Record(record.identity)).await
    }

    async fn end_block(&mut self) -> Restored {
        let Some(OpenBlock { queue, block, at_ms, builder }) = self.block.take() else {
            return Ok(());
        };
        // The first one keeps its number; those after it follow without a gap.
        if self.journal.oldest().all(|(id, _)| id != queue) {
            self.journal.skip_to(queue, block);
        }
        let (at, value) = (self.journal.next(queue), builder.finish(at_ms));
        self.journal.add(queue, at_ms, value.len());
        Ok(self.rebuild.put(at.key(), value).await?)
    }

    async fn step(&mut self, line: StepLine) -> Restored {
        let identity = line.identity();
        let mut placed = None;
        let step = line.step(&mut placer(self.next_value, &mut placed));
        self.put(step_key(identity, &step.name), &step).await?;
        self.announced(placed, Owner::Step(identity)).await
    }

    async fn outgoing(&mut self, line: OutgoingLine) -> Restored {
        let (block, at_ms) = (line.block, line.at_ms);
        let mut placed = None;
        let row = line.row(&mut placer(self.next_value, &mut placed));
        let encoded = record::encode(&row);
        check_fits(encoded.len() + BLOCK_OVERHEAD_BYTES)?;
        let is_same = |open: &OpenBlock| (open.block, open.at_ms) == (block, at_ms);
        let open = self.outgoing.as_mut();
        if !open.is_some_and(|open| is_same(open) && open.builder.push(&encoded)) {
            self.end_outgoing().await?;
            let mut builder = BlockBuilder::default();
            builder.push(&encoded);
            self.outgoing = Some(OpenBlock { queue: row.key.queue, block, at_ms, builder });
        }
        self.announced(placed, Owner::Outgoing(row.identity)).await
    }

    async fn end_outgoing(&mut self) -> Restored {
        let Some(open) = self.outgoing.take() else { return Ok(()) };
        let key = outgoing_key(self.next_outgoing);
        self.next_outgoing += 1;
        Ok(self.rebuild.put(key, open.builder.finish(open.at_ms)).await?)
    }

    /// The line was one whose value comes in chunks.
    async fn announced(&mut self, placed: Option<Spilled>, owner: Owner) -> Restored {
        let Some(spilled) = placed else { return Ok(()) };
        self.next_value += 1;
        self.value = Some(OpenValue::new(spilled, owner));
        // A value of no bytes has one piece, and no chunks.
        if spilled.bytes == 0 { self.chunk(&Bytes::new()).await } else { Ok(()) }
    }

    async fn chunk(&mut self, chunk: &Bytes) -> Restored {
        let Some(value) = &mut self.value else {
            return Err("no value was announced".to_owned().into());
        };
        for (key, row) in value.read(chunk)? {
            self.rebuild.put(key, row).await?;
        }
        if value.is_whole() {
            self.value = None;
        }
        Ok(())
    }

    async fn put(&mut self, key: Vec<u8>, row: &impl Serialize) -> Restored {
        let value = record::seal(row);
        check_fits(value.len())?;
        Ok(self.rebuild.put(key, value).await?)
    }

    fn known(&self, queue: u16, block: u64) -> Restored {
        if !self.queues.contains_key(&QueueId(queue)) {
            return Err(format!("there is no queue {queue}").into());
        }
        if block > SEQUENCE_MAX / 2 {
            return Err(format!("no block has the number {block}").into());
        }
        Ok(())
    }
}

fn check_fits(bytes: usize) -> Restored {
    if bytes > VALUE_BYTES_MAX {
        return Err(format!("{bytes} bytes do not fit a row of {VALUE_BYTES_MAX}").into());
    }
    Ok(())
}
