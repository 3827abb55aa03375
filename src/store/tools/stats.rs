//! Counts what a store holds. Damage is an error here: `verify` tells all of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::StoreOptions;
use super::super::backend::StoreError;
use super::super::outcome::Outcome;
use super::super::record::{Block, QueueId, QueueRow};
use super::super::swap;
use super::reader::Reader;
use super::rebuild::unusable;
use super::row::{Row, decode};
use super::{Damage, Watch};

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// Each queue, and each of its classes, that has ever been configured.
    pub queues: Vec<QueueStats>,
    /// Ordering keys that have a state.
    pub states: u64,
    /// Steps of unfinished and dead messages.
    pub steps: u64,
    /// Messages that wait for the broker to confirm what they send.
    pub outgoing: u64,
    /// Records that have expired, and are known as such for one more retention.
    pub ghosts: u64,
    /// Producers whose numbers are known.
    pub watermarks: u64,
    /// Values that are too large for a row.
    pub spilled: u64,
    /// Their bytes, with what comes along in their rows.
    pub spilled_bytes: u64,
    /// Messages that were tried and have no outcome.
    pub attempts: u64,
    /// Dead letters that the broker has not confirmed.
    pub pending: u64,
    /// Bytes of all rows.
    pub rows_bytes: u64,
    /// Bytes of all files.
    pub files_bytes: u64,
    /// Number of the format.
    pub format: u16,
    /// How often it was opened.
    pub epoch: u64,
}

/// What a store holds of one queue, or of one class of its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueStats {
    /// Its name at the broker.
    pub queue: String,
    /// The value of the header that gives these messages a retention of their own.
    pub class: Option<String>,
    /// How long records are kept, in milliseconds.
    pub retention_ms: u64,
    /// Records of all outcomes.
    pub records: u64,
    /// Of messages that are done.
    pub done: u64,
    /// Of dead messages.
    pub dead: u64,
    /// Of messages that an operator had forgotten.
    pub forgotten: u64,
    /// Bytes of the blocks that they are in.
    pub bytes: u64,
    /// When the oldest was committed, in milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// When the newest was committed, in milliseconds since 1970.
    pub newest_ms: Option<u64>,
}

impl QueueStats {
    fn add(&mut self, block: &Block, bytes: u64) {
        self.bytes += bytes;
        self.records += block.records.len() as u64;
        for record in &block.records {
            match record.outcome {
                Outcome::Done => self.done += 1,
                Outcome::Dead(_) => self.dead += 1,
                Outcome::Forgotten(_) => self.forgotten += 1,
            }
        }
        let at_ms = block.committed_at_ms;
        self.oldest_ms = Some(self.oldest_ms.map_or(at_ms, |oldest| oldest.min(at_ms)));
        self.newest_ms = Some(self.newest_ms.map_or(at_ms, |newest| newest.max(at_ms)));
    }

    fn name(&mut self, row: QueueRow) {
        let QueueRow { name, class, retention_ms } = row;
        (self.queue, self.class, self.retention_ms) = (name, class, retention_ms);
    }
}

/// Counts what the store of a stopped worker holds, in one reading.
///
/// # Errors
///
/// [`StoreError::InUse`] if a worker runs on it; [`StoreError::Unusable`] if there is none; [`StoreError::Damaged`] at
/// the first damage.
pub async fn stats(
    options: &StoreOptions,
    watch: &mut dyn Watch,
) -> Result<StoreStats, StoreError> {
    let reader = Reader::open(options).await?;
    let meta = reader.meta().await?;
    let mut stats = StoreStats { format: meta.format, epoch: meta.epoch, ..StoreStats::default() };
    let mut queues: BTreeMap<QueueId, QueueStats> = BTreeMap::new();
    let mut read = 0;
    let mut rows = reader.rows(b"");
    while let Some((key, value)) = rows.next().await? {
        let bytes = (key.len() + value.len()) as u64;
        stats.rows_bytes += bytes;
        read += 1;
        watch.progress(read);
        match decode(&key, &value) {
            Err(problem) => return Err(reader.damaged(&Damage::new(&key, problem))),
            Ok(Row::Meta) => {}
            Ok(Row::Queue(id, row)) => queues.entry(id).or_default().name(row),
            Ok(Row::Block(at, block)) => queues.entry(at.queue()).or_default().add(&block, bytes),
            Ok(Row::Ghosts(_, row)) => {
                stats.ghosts += row.hashes().map_or(0, Iterator::count) as u64;
            }
            Ok(Row::Attempts(..)) => stats.attempts += 1,
            Ok(Row::Pending(_)) => stats.pending += 1,
            Ok(Row::State(..)) => stats.states += 1,
            Ok(Row::Step(..)) => stats.steps += 1,
            Ok(Row::Outgoing(_, block)) => stats.outgoing += block.rows.len() as u64,
            Ok(Row::Watermark(..)) => stats.watermarks += 1,
            Ok(Row::Piece(_, piece)) => {
                stats.spilled += u64::from(piece.head.is_some());
                stats.spilled_bytes += bytes;
            }
        }
    }
    drop(rows);
    stats.queues = queues.into_values().collect();
    if options.path.is_dir() {
        let path = &options.path;
        stats.files_bytes =
            swap::files_bytes(path).map_err(|error| unusable(path, "reading its size", &error))?;
    }
    Ok(stats)
}
