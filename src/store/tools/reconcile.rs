//! Compares the ids that a producer has sent with the records of one queue.
//!
//! The records are read once into memory, about twice as large as the index; ids then come one by one, as many as there
//! are. The store keeps hashes of ids only, so a record that nobody asked for is told by its identity.

use std::collections::HashMap;

use super::super::committed::Committed;
use super::super::outcome::{Outcome, Reason};
use super::super::record::{BLOCK_PREFIX, Location, QUEUE_PREFIX, QueueId};
use super::super::{InspectScope, StoreError, StoreOptions};
use super::journal::Blocks;
use super::reader::Reader;
use super::row::{Row, decode};
use super::{Damage, Watch};
use crate::identity::{Fingerprint, HashKey, Identity, ScopeName, hex};
use crate::message::Message;

/// The records of a queue, and which of them were asked for.
pub(crate) struct Reconciliation {
    reader: Reader,
    hash_key: HashKey,
    scope: ScopeName,
    queues: Vec<QueueId>,
    records: HashMap<Identity, Entry>,
    unfinished: HashMap<Identity, u32>,
}

#[derive(Clone, Copy)]
struct Entry {
    committed: Committed,
    fingerprint: Fingerprint,
    outcome: Ended,
    asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    Dead(Reason),
    Forgotten,
}

impl Ended {
    const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Dead(note) => Self::Dead(note.reason),
            Outcome::Forgotten(_) => Self::Forgotten,
        }
    }
}

/// What the store knows of one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Done, with this content if one was given.
    Same,
    /// Not known as ended; with the attempts, if it was tried.
    Missing {
        attempts: Option<u32>,
    },
    Failed(Reason),
    Forgotten,
    /// Done, with another type or body.
    Different,
}

/// A record that nobody has asked for.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// In hexadecimal.
    pub(crate) identity: String,
    pub(crate) committed_at_ms: u64,
    /// `None` if it is done.
    pub(crate) reason: Option<Reason>,
    /// Dead messages keep theirs.
    pub(crate) id: Option<Vec<u8>>,
    /// The other body of an id that was asked for, which is recorded beside it and not under it.
    pub(crate) conflicts: bool,
}

impl Reconciliation {
    /// Reads the records of a queue, by its name at the broker, from the store of a stopped worker.
    ///
    /// # Errors
    ///
    /// If a worker runs on it, if it is damaged, and all other ways in which a store does not open.
    pub(crate) async fn read(
        options: &StoreOptions,
        scope: InspectScope<'_>,
        queue: &str,
        watch: &mut dyn Watch,
    ) -> Result<Self, StoreError> {
        let reader = Reader::open(options).await?;
        let hash_key = HashKey::new(reader.meta().await?.hash_key);
        let mut found = Self {
            reader,
            hash_key,
            scope: scope.name(),
            queues: Vec::new(),
            records: HashMap::new(),
            unfinished: HashMap::new(),
        };
        found.read_queues(queue).await?;
        // Ids of other scopes may have been done in any queue that shares them.
        let shared = !matches!(scope, InspectScope::Queue(_));
        found.read_records(shared, watch).await?;
        Ok(found)
    }

    /// Whether the store has ever had the queue.
    pub(crate) const fn has_queue(&self) -> bool {
        !self.queues.is_empty()
    }

    async fn read_queues(&mut self, name: &str) -> Result<(), StoreError> {
        let reader = self.reader.clone();
        let mut rows = reader.rows(QUEUE_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            if let Row::Queue(id, row) = self.row(&key, &value)?
                && row.name == name
            {
                self.queues.push(id);
            }
        }
        Ok(())
    }

    async fn read_records(&mut self, all: bool, watch: &mut dyn Watch) -> Result<(), StoreError> {
        let reader = self.reader.clone();
        let mut rows = reader.rows(BLOCK_PREFIX);
        let mut blocks = Blocks::default();
        while let Some((key, value)) = rows.next().await? {
            let Row::Block(at, block) = self.row(&key, &value)? else { continue };
            // Messages in a block that is missing would be told as never done.
            if let Some(damage) = blocks.read(at, block.committed_at_ms, value.len()) {
                return Err(reader.damaged(&damage));
            }
            if !all && !self.is_of_queue(at) {
                continue;
            }
            for record in &block.records {
                let entry = Entry {
                    committed: Committed::new(at, block.committed_at_ms, record),
                    fingerprint: record.fingerprint,
                    outcome: Ended::of(&record.outcome),
                    asked: false,
                };
                let known = self.records.entry(record.identity).or_insert(entry);
                if entry.committed.is_after(&known.committed) {
                    *known = entry;
                }
            }
            watch.progress(self.records.len() as u64);
        }
        if let Some(damage) = blocks.end(&reader).await?.first() {
            return Err(reader.damaged(damage));
        }
        let mut rows = reader.rows(super::super::record::ATTEMPTS_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            if let Row::Attempts(identity, attempts) = self.row(&key, &value)? {
                self.unfinished.insert(identity, attempts.started);
            }
        }
        Ok(())
    }

    /// Asks for one id; with the message, if its content is to be compared.
    pub(crate) fn meet(&mut self, id: &[u8], message: Option<&Message>) -> Met {
        let identity = self.hash_key.identity(&self.scope, id);
        let Some(entry) = self.records.get_mut(&identity) else {
            return Met::Missing { attempts: self.unfinished.get(&identity).copied() };
        };
        entry.asked = true;
        let is_different = |message| self.hash_key.fingerprint(message) != entry.fingerprint;
        match entry.outcome {
            Ended::Dead(reason) => Met::Failed(reason),
            Ended::Forgotten => Met::Forgotten,
            Ended::Done if message.is_some_and(is_different) => Met::Different,
            Ended::Done => Met::Same,
        }
    }

    /// Tells the records of the queue that were not asked for, in their order.
    ///
    /// # Errors
    ///
    /// If the store is damaged.
    pub(crate) async fn extra(&self, mut tell: impl FnMut(Extra)) -> Result<(), StoreError> {
        let mut rows = self.reader.rows(BLOCK_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            let Row::Block(at, block) = self.row(&key, &value)? else { continue };
            for record in block.records.iter().filter(|_| self.is_of_queue(at)) {
                let latest = self.records.get(&record.identity).filter(|entry| {
                    !entry.asked
                        && entry.committed.at == at
                        && entry.outcome == Ended::of(&record.outcome)
                });
                if latest.is_none() {
                    continue;
                }
                let (reason, id) = match &record.outcome {
                    Outcome::Done => (None, None),
                    Outcome::Dead(note) => (Some(note.reason), Some(note.id.clone())),
                    // Nobody sent it, and nothing is left of it.
                    Outcome::Forgotten(_) => continue,
                };
                let conflicts = reason == Some(Reason::Conflict)
                    && id.as_ref().is_some_and(|id| self.was_asked(id));
                tell(Extra {
                    identity: hex(record.identity.as_bytes()),
                    committed_at_ms: block.committed_at_ms,
                    reason,
                    id,
                    conflicts,
                });
            }
        }
        Ok(())
    }

    fn was_asked(&self, id: &[u8]) -> bool {
        let identity = self.hash_key.identity(&self.scope, id);
        self.records.get(&identity).is_some_and(|entry| entry.asked)
    }

    fn is_of_queue(&self, at: Location) -> bool {
        self.queues.contains(&at.queue())
    }

    fn row(&self, key: &[u8], value: &[u8]) -> Result<Row, StoreError> {
        decode(key, value).map_err(|problem| self.reader.damaged(&Damage::new(key, problem)))
    }
}
