//! Reads every row of a store and tells all that is not what was written; goes on after the first.
//!
//! Checks each row by its checksum, and rows against each other: blocks without gaps and up to where the note says,
//! their queues, and spilled values (`values.rs`). Mends nothing.

use std::collections::BTreeSet;

use super::super::StoreOptions;
use super::super::backend::StoreError;
use super::super::record::{META_KEY, QueueId, queue_key};
use super::super::rows::Stored;
use super::super::spill::Owner;
use super::journal::Blocks;
use super::reader::Reader;
use super::row::{Row, decode};
use super::values::{Reference, Values};
use super::{Damage, Watch};
use crate::message::Message;

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Rows of all kinds.
    pub rows: u64,
    /// Records of messages.
    pub records: u64,
    /// Damages that were told.
    pub damages: u64,
    /// Spilled values that a crash has left over: no damage, the next worker removes them.
    pub left_over: u64,
}

/// Checks the whole store of a stopped worker, and tells each damage to `watch`.
///
/// # Errors
///
/// Where the store cannot be opened at all: [`StoreError::InUse`] if a worker runs on it, [`StoreError::Unusable`] if
/// there is none, [`StoreError::Format`] if another version wrote it, [`StoreError::Damaged`] if the engine cannot
/// read it.
pub async fn verify(options: &StoreOptions, watch: &mut dyn Watch) -> Result<Verified, StoreError> {
    let reader = Reader::open(options).await?;
    let mut check = Check {
        watch,
        verified: Verified::default(),
        blocks: Blocks::default(),
        values: Values::default(),
        used: BTreeSet::new(),
        named: BTreeSet::new(),
    };
    match reader.meta().await {
        // Told with the rows.
        Ok(_) | Err(StoreError::Damaged { .. }) => {}
        Err(error) => return Err(error),
    }
    if let Err(error) = check.rows(&reader).await {
        // What was found until then is told; what is behind it nobody can read.
        check.tell(&engine_damage(error)?);
        return Ok(check.verified);
    }
    check.end(&reader).await?;
    Ok(check.verified)
}

/// What the engine cannot read in a store that it has opened is one damage of it.
fn engine_damage(error: StoreError) -> Result<Damage, StoreError> {
    let problem = match error {
        StoreError::Damaged { reason, .. } => reason,
        StoreError::Failed { reason, .. } => reason.to_string(),
        other => return Err(other),
    };
    Ok(Damage { key: Vec::new(), row: "the engine".to_owned(), problem })
}

struct Check<'a> {
    watch: &'a mut dyn Watch,
    verified: Verified,
    blocks: Blocks,
    values: Values,
    /// Queues that rows are of, and those that have a name.
    used: BTreeSet<QueueId>,
    named: BTreeSet<QueueId>,
}

impl Check<'_> {
    async fn rows(&mut self, reader: &Reader) -> Result<(), StoreError> {
        let mut has_meta = false;
        let mut rows = reader.rows(b"");
        while let Some((key, value)) = rows.next().await? {
            self.verified.rows += 1;
            self.watch.progress(self.verified.rows);
            has_meta |= key == META_KEY;
            match decode(&key, &value) {
                Ok(row) => self.row(&key, value.len(), row),
                Err(problem) => self.tell(&Damage::new(&key, problem)),
            }
        }
        if !has_meta {
            self.tell(&Damage::new(META_KEY, "it is missing"));
        }
        Ok(())
    }

    fn row(&mut self, key: &[u8], value_bytes: usize, row: Row) {
        match row {
            Row::Meta | Row::Pending(_) | Row::Watermark(..) => {}
            Row::Queue(id, _) => {
                self.named.insert(id);
            }
            Row::Block(at, block) => {
                self.used.insert(at.queue());
                if let Some(damage) = self.blocks.read(at, block.committed_at_ms, value_bytes) {
                    self.tell(&damage);
                }
                self.verified.records += block.records.len() as u64;
                for record in &block.records {
                    self.values.record(at, block.committed_at_ms, record);
                }
            }
            Row::Ghosts(at, _) => {
                self.used.insert(at.queue());
            }
            Row::Attempts(_, attempts) => {
                self.used.insert(attempts.queue);
            }
            Row::State(id, row) => {
                self.used.insert(id.queue);
                self.refer(key, Owner::State(id), row.value.as_ref().map(|value| &value.bytes));
            }
            Row::Step(identity, step) => {
                self.used.insert(step.queue);
                self.refer(key, Owner::Step(identity), step.result.as_ref());
            }
            Row::Outgoing(_, block) => {
                if block.rows.is_empty() {
                    self.tell(&Damage::new(key, "there is nothing in it"));
                }
                for row in &block.rows {
                    self.used.insert(row.key.queue);
                    self.refer(key, Owner::Outgoing(row.identity), Some(&row.messages));
                    if let Stored::Inline(bytes) = &row.messages
                        && postcard::from_bytes::<Vec<Message>>(bytes).is_err()
                    {
                        let problem = format!("messages of {:?} do not decode", row.identity);
                        self.tell(&Damage::new(key, problem));
                    }
                }
            }
            Row::Piece(id, piece) => {
                for damage in self.values.piece(id, &piece) {
                    self.tell(&damage);
                }
            }
        }
    }

    fn refer(&mut self, key: &[u8], owner: Owner, stored: Option<&Stored>) {
        if let Some(spilled) = stored.and_then(Stored::spilled) {
            self.values.refer(spilled.id, Reference::new(key, owner, spilled));
        }
    }

    async fn end(&mut self, reader: &Reader) -> Result<(), StoreError> {
        for damage in self.blocks.end(reader).await? {
            self.tell(&damage);
        }
        let nameless: Vec<QueueId> = self.used.difference(&self.named).copied().collect();
        for queue in nameless {
            self.tell(&Damage::new(&queue_key(queue), "it is missing, and there are rows of it"));
        }
        for damage in self.values.end(reader).await? {
            self.tell(&damage);
        }
        self.verified.left_over = self.values.left_over();
        Ok(())
    }

    fn tell(&mut self, damage: &Damage) {
        self.verified.damages += 1;
        self.watch.damaged(damage);
    }
}
