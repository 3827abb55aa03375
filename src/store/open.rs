//! Opening the store: who owns it, which format it has, and the index rebuilt from the journal in one scan.
//!
//! Nothing is consumed before this ends. Damage is an error here, never a record that is silently missing.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::backend::{BATCH_OPS_MAX, Backend, Batch, StoreError};
use super::committed::Committed;
use super::committer::{COMMITS_WAITING_MAX, Committer};
use super::garbage::CutOff;
use super::gather::Company;
use super::ghosts::GhostSet;
use super::index::Index;
use super::journal::{Journal, Note};
use super::mirror::Mirror;
use super::outgoing::Unconfirmed;
use super::record::{self, Block, FORMAT, Location, Meta, QueueId, QueueRow, Record};
use super::recover::Recovered;
use super::{QueueIds, QueueRetention, Shared, Store, StoreOptions, encrypted, engine};
use crate::failpoint::{self, Point};
use crate::identity::HashKey;
use crate::planted::{self, Bug};

/// Rows read at a time while scanning.
pub(super) const SCAN_ROWS: usize = 1024;

/// What is wrong where files of two stores were mixed up.
pub(super) const FOREIGN_NOTE: &str = "its files db and onceward.note are of two different stores: put back those that belong together";

/// How far the rebuilding of the index is: records so far.
pub(crate) type OpenProgress<'a> = &'a (dyn Fn(u64) + Send + Sync);

impl Store {
    /// Opens the store or makes one, and numbers the queues.
    ///
    /// Gives the store, the task that writes, and the numbers of `queues` in their order.
    pub(crate) async fn open(
        options: &StoreOptions,
        queues: &[QueueRetention],
        progress: OpenProgress<'_>,
    ) -> Result<(Self, Committer, Vec<QueueIds>), StoreError> {
        let backend = open_backend(options).await?;
        let opening = Opening { options, backend };
        let meta = opening.meta().await?;
        let mut rows = opening.rows().await?;
        let ids = opening.start_epoch(&meta, queues, &mut rows).await?;
        let index = Index::new();
        let mark = HashKey::new(meta.hash_key).mark();
        let mut journal = opening.scan_blocks(&index, Journal::of(mark), progress).await?;
        failpoint::reached(Point::Opening);
        let mut unconfirmed = Unconfirmed::default();
        let next_outgoing = opening.outgoing(&mut unconfirmed).await?;
        failpoint::reached(Point::Opening);
        let states = opening.states().await?;
        let watermarks = opening.watermarks().await?;
        failpoint::reached(Point::Opening);
        let ghosts = GhostSet::default();
        let oldest_ghosts = opening.ghosts(&ghosts, &mut journal).await?;
        failpoint::reached(Point::Opening);
        let garbage = opening.spilled(&rows, &unconfirmed, (&index, &mut journal)).await?;
        failpoint::reached(Point::Opening);

        let shared = Arc::new(Shared {
            path: options.path.clone(),
            backend: opening.backend,
            index,
            hash_key: HashKey::new(meta.hash_key),
            epoch: meta.epoch,
            clock: options.clock.clone(),
            rows: Mutex::new(rows),
            states,
            unconfirmed: Mutex::new(unconfirmed),
            watermarks,
            ghosts,
            next_spilled: AtomicU64::new(meta.epoch << 32),
            cut_off: CutOff::default(),
            full: Arc::default(),
            company: Company::default(),
            failed: AtomicBool::new(false),
        });
        let (commits, waiting) = mpsc::channel(COMMITS_WAITING_MAX);
        let recovered = Recovered { journal, garbage, oldest_ghosts, next_outgoing };
        let committer =
            Committer::new(Arc::clone(&shared), waiting, recovered, options.size_bytes_max);
        Ok((Self { shared, commits }, committer, ids))
    }
}

/// The rows as they were written, whether or not they lie there encrypted.
pub(super) async fn open_backend(options: &StoreOptions) -> Result<Arc<dyn Backend>, StoreError> {
    encrypted::wrap(open_engine(options).await?, options).await
}

#[cfg(any(test, feature = "testkit"))]
async fn open_engine(options: &StoreOptions) -> Result<Arc<dyn Backend>, StoreError> {
    match &options.simulated {
        Some(disk) => Ok(Arc::new(disk.open()?)),
        None => open_sled(options).await,
    }
}

#[cfg(not(any(test, feature = "testkit")))]
async fn open_engine(options: &StoreOptions) -> Result<Arc<dyn Backend>, StoreError> {
    open_sled(options).await
}

async fn open_sled(options: &StoreOptions) -> Result<Arc<dyn Backend>, StoreError> {
    let (path, cache_bytes) = (options.path.clone(), options.cache_bytes);
    let opened = tokio::task::spawn_blocking(move || engine::SledBackend::open(&path, cache_bytes));
    match opened.await {
        Ok(opened) => Ok(Arc::new(opened?)),
        Err(panicked) => Err(StoreError::Damaged {
            path: options.path.clone(),
            reason: format!("opening it panicked: {panicked}"),
        }),
    }
}

/// A store that is being opened.
pub(super) struct Opening<'a> {
    options: &'a StoreOptions,
    pub(super) backend: Arc<dyn Backend>,
}

impl Opening<'_> {
    /// The store's own row, with the epoch of this opening; a fresh one if the store is new.
    async fn meta(&self) -> Result<Meta, StoreError> {
        let Some(value) = self.backend.get(record::META_KEY).await? else {
            if self.backend.scan(b"", None, 1).await?.is_empty() {
                return Ok(Meta { format: FORMAT, hash_key: self.random_key()?, epoch: 1 });
            }
            return Err(self.damaged("its own row is missing"));
        };
        let meta: Meta = self.read("the store's own row", &value)?;
        if meta.format != FORMAT {
            let path = self.options.path.clone();
            return Err(StoreError::Format { path, found: meta.format, known: FORMAT });
        }
        let raised = if planted::is(Bug::EpochNotRaised) { 0 } else { 1 };
        Ok(Meta { epoch: meta.epoch + raised, ..meta })
    }

    fn random_key(&self) -> Result<[u8; 32], StoreError> {
        #[cfg(any(test, feature = "testkit"))]
        if let Some(key) = self.options.simulated.as_ref().and_then(|disk| disk.given_hash_key()) {
            return Ok(key);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| StoreError::Unusable {
            path: self.options.path.clone(),
            reason: format!("the system gives no random key: {error}"),
        })?;
        Ok(key)
    }

    /// Makes the new epoch and the queues' rows durable before anything else happens in it.
    async fn start_epoch(
        &self,
        meta: &Meta,
        queues: &[QueueRetention],
        rows: &mut Mirror,
    ) -> Result<Vec<QueueIds>, StoreError> {
        let mut batch = Batch::default();
        batch.put(record::META_KEY.to_vec(), record::seal(meta));
        let mut ids = Vec::with_capacity(queues.len());
        for queue in queues {
            let mut numbers = Vec::with_capacity(1 + queue.classes.len());
            for row in queue.rows() {
                let id = self.number(&row, rows)?;
                if batch.len() == BATCH_OPS_MAX {
                    // No need to be atomic: a crash between leaves queues that are numbered the same way again.
                    self.backend.commit(std::mem::take(&mut batch)).await?;
                }
                batch.put(record::queue_key(id), record::seal(&row));
                rows.queues.insert(id, row);
                numbers.push(id);
            }
            let classes = numbers.split_off(1);
            ids.extend(numbers.first().map(|own| QueueIds { own: *own, classes }));
        }
        failpoint::reached(Point::Opening);
        self.backend.commit(batch).await?;
        failpoint::reached(Point::Opening);
        Ok(ids)
    }

    /// The number that a queue or class has, or else the next one.
    fn number(&self, row: &QueueRow, rows: &Mirror) -> Result<QueueId, StoreError> {
        let is_same = |known: &QueueRow| known.name == row.name && known.class == row.class;
        let known = rows.queues.iter().find(|(_, known)| is_same(known)).map(|(id, _)| *id);
        let next = rows.queues.keys().next_back().map_or(Some(0), |last| last.0.checked_add(1));
        known.or_else(|| next.map(QueueId)).ok_or_else(|| StoreError::Unusable {
            path: self.options.path.clone(),
            reason: format!("no number is left for queue {:?}", row.name),
        })
    }

    async fn scan_blocks(
        &self,
        index: &Index,
        mut journal: Journal,
        progress: OpenProgress<'_>,
    ) -> Result<Journal, StoreError> {
        let mut records = 0;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.backend.scan(record::BLOCK_PREFIX, after.as_deref(), SCAN_ROWS).await?;
            let Some((last, _)) = rows.last() else { break };
            after = Some(last.clone());
            for (key, value) in rows {
                let location =
                    Location::from_key(&key).ok_or_else(|| self.damaged("a block's key"))?;
                let what = format!("block {}", location.sequence());
                let block: Block = self.read(&what, &value)?;
                records += block.records.len() as u64;
                let records_known = block.records.iter();
                for record in records_known.filter(|_| !planted::is(Bug::IndexNotRebuilt)) {
                    if let Some(known) = index.insert(record.identity, location) {
                        self.resolve(index, record, block.committed_at_ms, (known, location))
                            .await?;
                    }
                }
                journal
                    .read(location, block.committed_at_ms, value.len())
                    .map_err(|missing| self.missing(missing))?;
            }
            progress(records);
            tokio::task::yield_now().await;
        }
        if let Some(note) = self.backend.note().await? {
            let note = Note::read(&note)
                .map_err(|error| self.damaged(format!("the note beside it: {error}")))?;
            if journal.is_foreign(&note) {
                return Err(self.damaged(FOREIGN_NOTE));
            }
            let now_ms = self.options.clock.now_ms();
            journal.check(&note, now_ms).map_err(|missing| self.missing(missing))?;
        }
        Ok(journal)
    }

    /// Finds out which record of an identity counts that lies in two blocks, read in no order of time: the later one.
    async fn resolve(
        &self,
        index: &Index,
        record: &Record,
        committed_at_ms: u64,
        (known, location): (Location, Location),
    ) -> Result<(), StoreError> {
        let Record { identity, .. } = record;
        if known == location {
            return Ok(());
        }
        let Some(block) = self.backend.get(&known.key()).await? else { return Ok(()) };
        let found = record::find_in_block(&block, *identity)
            .map_err(|error| self.damaged(format!("block {}: {error}", known.sequence())))?;
        // Without one it is another identity that shares the bits: both stay.
        let Some((known_at_ms, known_record)) = found else { return Ok(()) };
        let known = Committed::new(known, known_at_ms, &known_record);
        let read = Committed::new(location, committed_at_ms, record);
        let later = if read.is_after(&known) { read } else { known };
        index.supersede(*identity, later.at);
        Ok(())
    }

    fn missing(&self, block: u64) -> StoreError {
        self.damaged(format!("block {block} is missing, and perhaps others after it"))
    }

    pub(super) async fn scan_all(
        &self,
        prefix: &[u8],
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        self.backend.scan(prefix, None, usize::MAX).await
    }

    pub(super) fn read<T: DeserializeOwned>(
        &self,
        what: &str,
        value: &[u8],
    ) -> Result<T, StoreError> {
        record::unseal(value).map_err(|error| self.damaged(format!("{what}: {error}")))
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.options.path.clone(), reason: reason.into() }
    }
}
