//! Writes all that a store holds as lines of text, for another machine or another release.
//!
//! Identities, order and times stay as they are. The last line has a checksum, so that a file that was cut off is
//! known. What is damaged is an error, or is left out and told, as the caller wants; it is never made up.

use std::io::{self, Write};

use bytes::BytesMut;
use serde::Serialize;

use super::super::backend::StoreError;
use super::super::record::{self, BLOCK_PREFIX, Block, FORMAT, Location, Meta, QueueId};
use super::super::rows::Spilled;
use super::super::spill::PIECE_BYTES_MAX;
use super::super::{StoreOptions, ghosts, outgoing, state, steps, watermark};
use super::journal::Blocks;
use super::latest::Latest;
use super::line::{CHUNK_BYTES, End, FORMAT_NAME, Header, Line, VERSION};
use super::names::{Names, queues_of};
use super::reader::Reader;
use super::record_line::RecordLine;
use super::row::{Row, decode};
use super::text::Hex;
use super::{Damage, Watch};

/// What an export holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Lines, the first and last included.
    pub lines: u64,
    /// Records of messages.
    pub records: u64,
    /// Damages that made something be left out.
    pub left_out: u64,
}

/// Why there is no whole export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The export cannot be written; what was written of it is worthless.
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Writes the store of a stopped worker to `out`; blocks on it.
///
/// With `skip_damaged` what cannot be read is left out, told to `watch` and counted; without, it is an error. The
/// export has the store's secret key and all states: keep it as the store itself.
///
/// # Errors
///
/// [`ExportError::Store`] if a worker runs on the store, if it cannot be opened or if it is damaged;
/// [`ExportError::Write`] if `out` fails.
pub async fn export(
    options: &StoreOptions,
    skip_damaged: bool,
    out: &mut (dyn Write + Send),
    watch: &mut dyn Watch,
) -> Result<Exported, ExportError> {
    let reader = Reader::open(options).await?;
    let Meta { hash_key, epoch, .. } = reader.meta().await?;
    let out = Hashing { out, hasher: blake3::Hasher::new() };
    let exported = Exported::default();
    let (names, latest) = (Names::default(), None);
    let mut export = Export { reader, skip_damaged, out, watch, exported, names, latest };
    export.line(&Header {
        format: FORMAT_NAME.to_owned(),
        version: VERSION,
        store_format: FORMAT,
        created_at_ms: options.clock.now_ms(),
        onceward: env!("CARGO_PKG_VERSION").to_owned(),
        epoch,
        hash_key: Hex(hash_key),
    })?;
    export.rows(record::QUEUE_PREFIX).await?;
    export.blocks().await?;
    for prefix in [
        ghosts::GHOST_PREFIX,
        record::ATTEMPTS_PREFIX,
        record::PENDING_PREFIX,
        state::STATE_PREFIX,
        steps::STEP_PREFIX,
        outgoing::OUTGOING_PREFIX,
        watermark::WATERMARK_PREFIX,
    ] {
        export.rows(prefix).await?;
    }
    export.end()
}

struct Export<'a> {
    reader: Reader,
    skip_damaged: bool,
    out: Hashing<'a>,
    watch: &'a mut dyn Watch,
    exported: Exported,
    names: Names,
    /// Read when it is needed, which is nearly never.
    latest: Option<Latest>,
}

impl Export<'_> {
    async fn blocks(&mut self) -> Result<(), ExportError> {
        let mut blocks = Blocks::default();
        let reader = self.reader.clone();
        let mut rows = reader.rows(BLOCK_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            match decode(&key, &value) {
                Ok(Row::Block(at, block)) => {
                    self.name(at.queue()).await?;
                    if let Some(damage) = blocks.read(at, block.committed_at_ms, value.len()) {
                        self.leave_out(&damage)?;
                    }
                    self.block(at, block).await?;
                }
                Ok(_) => {}
                Err(problem) => self.leave_out(&Damage::new(&key, problem))?,
            }
        }
        for damage in blocks.end(&self.reader).await? {
            self.leave_out(&damage)?;
        }
        for (queue, block) in blocks.ends() {
            self.name(queue).await?;
            self.line(&Line::NextBlock { queue: queue.0, block })?;
        }
        Ok(())
    }

    async fn block(&mut self, at: Location, block: Block) -> Result<(), ExportError> {
        for mut record in block.records {
            let spilled = record.result.as_ref().and_then(|result| result.body.spilled());
            if let Some(spilled) = spilled
                && !self.reader.is_whole(spilled).await?
            {
                if self.latest.is_none() {
                    self.latest = Some(Latest::read(&self.reader).await?);
                }
                // Nobody asks for the result of a record that another has replaced, so its value may be gone.
                let superseded = self.latest.as_ref();
                if !superseded.is_some_and(|latest| latest.is_superseded(record.identity, at)) {
                    let problem = format!("the result of {:?} is not whole", record.identity);
                    self.leave_out(&Damage::new(&at.key(), problem))?;
                }
                record.result = None;
            }
            let line = RecordLine::new(at.queue(), at.sequence(), block.committed_at_ms, &record);
            self.line(&Line::Record(line))?;
            self.exported.records += 1;
            self.chunks(record.result.as_ref().and_then(|result| result.body.spilled())).await?;
        }
        Ok(())
    }

    /// Rows that are lines as they are.
    async fn rows(&mut self, prefix: &[u8]) -> Result<(), ExportError> {
        let reader = self.reader.clone();
        let mut rows = reader.rows(prefix);
        while let Some((key, value)) = rows.next().await? {
            match decode(&key, &value) {
                Ok(row) => self.row(&key, row).await?,
                Err(problem) => self.leave_out(&Damage::new(&key, problem))?,
            }
        }
        Ok(())
    }

    /// Names a queue whose row is damaged or missing.
    async fn name(&mut self, queue: QueueId) -> Result<(), ExportError> {
        let Some(row) = self.names.instead(queue) else { return Ok(()) };
        let key = record::queue_key(queue);
        // One that is damaged was told.
        if self.reader.backend.get(&key).await?.is_none() {
            self.leave_out(&Damage::new(&key, "it is missing, and there are rows of it"))?;
        }
        self.line(&Line::queue(queue, row))
    }

    async fn row(&mut self, key: &[u8], row: Row) -> Result<(), ExportError> {
        for queue in queues_of(&row) {
            self.name(queue).await?;
        }
        let (line, spilled) = match row {
            Row::Queue(id, row) => {
                self.names.add(id, &row);
                (Line::queue(id, row), None)
            }
            Row::Ghosts(at, row) => (Line::ghosts(at, row), None),
            Row::Attempts(identity, attempts) => (Line::attempts(identity, attempts), None),
            Row::Pending(identity) => (Line::pending(identity), None),
            Row::State(id, row) => {
                let spilled = row.value.as_ref().and_then(|value| value.bytes.spilled());
                (Line::state(id, row), spilled)
            }
            Row::Step(identity, row) => {
                let spilled = row.result.as_ref().and_then(|result| result.spilled());
                (Line::step(identity, row), spilled)
            }
            Row::Outgoing(sequence, block) => {
                for row in &block.rows {
                    let line = Line::outgoing(sequence, block.committed_at_ms, row);
                    self.item(key, &line, row.messages.spilled()).await?;
                }
                return Ok(());
            }
            Row::Watermark(producer, marks) => (Line::watermark(producer, marks), None),
            // Read elsewhere.
            Row::Meta | Row::Block(..) | Row::Piece(..) => return Ok(()),
        };
        self.item(key, &line, spilled).await
    }

    /// A line, and the value that it announces; both or neither.
    async fn item(
        &mut self,
        key: &[u8],
        line: &Line,
        spilled: Option<Spilled>,
    ) -> Result<(), ExportError> {
        if let Some(spilled) = spilled
            && !self.reader.is_whole(spilled).await?
        {
            let problem = format!("its value {:x} is not whole", spilled.id);
            return self.leave_out(&Damage::new(key, problem));
        }
        self.line(line)?;
        self.chunks(spilled).await
    }

    async fn chunks(&mut self, spilled: Option<Spilled>) -> Result<(), ExportError> {
        const PIECES: usize = CHUNK_BYTES / PIECE_BYTES_MAX;
        let Some(spilled) = spilled else { return Ok(()) };
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        for number in 0..spilled.pieces() {
            let piece = self.reader.piece(spilled, number).await?;
            let piece = piece.ok_or_else(|| {
                let problem = format!("it has changed while value {:x} was read", spilled.id);
                self.reader.damaged(&Damage::new(record::META_KEY, problem))
            })?;
            chunk.extend_from_slice(&piece);
            if (number as usize + 1).is_multiple_of(PIECES) {
                self.line(&Line::chunk(chunk.split().freeze()))?;
            }
        }
        if !chunk.is_empty() {
            self.line(&Line::chunk(chunk.freeze()))?;
        }
        Ok(())
    }

    fn leave_out(&mut self, damage: &Damage) -> Result<(), ExportError> {
        if !self.skip_damaged {
            return Err(self.reader.damaged(damage).into());
        }
        self.watch.damaged(damage);
        self.exported.left_out += 1;
        Ok(())
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), ExportError> {
        serde_json::to_writer(&mut self.out, line).map_err(io::Error::from)?;
        self.out.write_all(b"\n")?;
        self.exported.lines += 1;
        self.watch.progress(self.exported.lines);
        Ok(())
    }

    fn end(mut self) -> Result<Exported, ExportError> {
        let Exported { records, left_out, .. } = self.exported;
        self.line(&Line::Counts { records, left_out })?;
        let end =
            End { lines: self.exported.lines, blake3: Hex(*self.out.hasher.finalize().as_bytes()) };
        self.line(&Line::End(end))?;
        self.out.flush()?;
        Ok(self.exported)
    }
}

/// What is written, and its hash.
struct Hashing<'a> {
    out: &'a mut (dyn Write + Send),
    hasher: blake3::Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
