//! sled 0.34.7 as the engine, with what it takes to be durable: the only place that names it.
//!
//! sled's `flush` never calls fsync: after it, this file calls fdatasync on a descriptor of sled's log that it keeps
//! open for life. One thread writes (`writer.rs`); nothing else applies batches. Rules that its issues and our
//! measurements teach: one tree, batches of at most 256 operations and 40 KiB, values of at most 4 KiB, no
//! `flush_async`, no transactions, no `drop_tree`, no use after an error. Its panics end here.

use std::fs::{File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::backend::{BATCH_BYTES_MAX, Backend, Batch, Row, StoreError};
use super::directory::{self, LOCK_RETRY_DELAY, LOCK_TRIES};
use super::record::FORMAT;
use super::swap::{self, Settled};
use super::writer::{Engine, Patience, Writer};
use crate::failpoint::{self, Point};

/// Size of sled's segments, four times its default.
///
/// sled frees a segment when what replaces it is written, not when it is synced, and takes it for the segment after the
/// next. So no batch may make more log than this.
pub(super) const SEGMENT_BYTES: usize = 2 * 1024 * 1024;

/// How sled says that the segments on disk are those of format 1.
const FORMAT_1_SEGMENTS: &str = "change it back to 524288";

/// Dropped in the order of its fields: what is being written ends first, and only then another process may come.
#[derive(Debug)]
pub(crate) struct SledBackend {
    path: PathBuf,
    writer: Writer,
    db: sled::Db,
    /// Held for life: one process a store.
    lock: Arc<File>,
}

impl SledBackend {
    /// Opens the store in `path` or makes one; blocks, for seconds if the store is large or still locked.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let unusable = |what: &str, error: &io::Error| StoreError::Unusable {
            path: path.to_owned(),
            reason: format!("{what}: {error}"),
        };
        let made = directory::make_directory(path)
            .map_err(|error| unusable("making the directory", &error))?;
        directory::refuse_others(path)?;
        // Ours before sled's: what is cleaned up next may be another process's work in progress.
        let lock = directory::lock(path)?;
        failpoint::reached(Point::Opening);
        match swap::settle(path) {
            Ok(Settled::Whole) => {}
            Ok(Settled::Unfinished) => {
                let reason = "an import into it did not end: run the import again, or remove it";
                return Err(StoreError::Unusable { path: path.to_owned(), reason: reason.into() });
            }
            Err(error) => return Err(unusable("finishing its replacement", &error)),
        }
        remove_unfinished_snapshots(path).map_err(|error| unusable("cleaning up", &error))?;
        failpoint::reached(Point::Opening);
        let db = open_unlocked(path, cache_bytes)?;
        failpoint::reached(Point::Opening);
        if directory::was_used(path) && db.is_empty() {
            let reason = "it was in use before, and now it is empty".to_owned();
            return Err(StoreError::Damaged { path: path.to_owned(), reason });
        }
        directory::close_to_others(path)
            .map_err(|error| unusable("closing it to others", &error))?;
        let log = sync_all_files(path, &made).map_err(|error| unusable("syncing it", &error))?;
        failpoint::reached(Point::Opening);
        let marked = AtomicBool::new(directory::was_used(path));
        let log = Log { db: db.clone(), file: log, path: path.to_owned(), marked };
        let writer = Writer::start(Arc::new(log), Patience::OF_A_DISK)
            .map_err(|error| unusable("starting the writer thread", &error))?;
        Ok(Self { path: path.to_owned(), writer, db, lock: Arc::new(lock) })
    }

    /// Held on, the store stays this process's when the engine is closed.
    pub(crate) fn lock(&self) -> Arc<File> {
        Arc::clone(&self.lock)
    }

    fn failed(&self, reason: impl ToString) -> StoreError {
        StoreError::Failed { path: self.path.clone(), reason: reason.to_string().into() }
    }

    /// sled asserts on some damaged pages instead of returning an error.
    fn read<T>(&self, read: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
        let damaged = |reason: &str| StoreError::Damaged {
            path: self.path.clone(),
            reason: reason.to_owned(),
        };
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(Err(error @ sled::Error::Corruption { .. })) => Err(damaged(&error.to_string())),
            Ok(read) => read.map_err(|error| self.failed(error)),
            Err(_) => Err(damaged("sled cannot read a page of it")),
        }
    }
}

impl Drop for SledBackend {
    fn drop(&mut self) {
        // The next opening does it again, and the directory is ours alone.
        let _ = directory::close_to_others(&self.path);
    }
}

impl Backend for SledBackend {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        let get = || self.db.get(key).map(|value| value.map(|value| value.to_vec()));
        std::future::ready(self.read(get)).boxed()
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let scan = || {
            self.db
                .range::<&[u8], _>((from, Bound::Unbounded))
                .take_while(|row| row.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)))
                .take(limit)
                .map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())))
                .collect::<Result<Vec<_>, _>>()
        };
        std::future::ready(self.read(scan)).boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            assert!(
                batch.bytes() <= BATCH_BYTES_MAX,
                "a batch of more than {BATCH_BYTES_MAX} bytes"
            );
            self.writer.write(batch).await.map_err(|reason| self.failed(reason))
        }
        .boxed()
    }

    fn note(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        let note = directory::read_note(&self.path);
        let note = note.map_err(|error| self.failed(format!("reading the note: {error}")));
        std::future::ready(note).boxed()
    }

    fn leave_note(&self, note: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            // The store stays ours until the note is written, whatever becomes of this future.
            let (path, lock) = (self.path.clone(), Arc::clone(&self.lock));
            let written = tokio::task::spawn_blocking(move || {
                let written = directory::write_note(&path, &note)
                    .and_then(|()| directory::close_to_others(&path));
                drop(lock);
                written
            })
            .await;
            let failed =
                |error: &dyn std::fmt::Display| self.failed(format!("writing the note: {error}"));
            written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        let size = self.db.size_on_disk();
        size.map_err(|error| self.failed(format!("reading the size of its files: {error}")))
    }
}

/// A crash while sled opens leaves a half-written snapshot, which its next open takes for a damaged one (issues 1527,
/// 1533). It holds nothing that the log does not.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn open_unlocked(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(None);
    let mut tries = 1;
    loop {
        // sled asserts on some damaged files instead of returning an error.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let path = path.to_owned();
        return match opened {
            Ok(Ok(db)) => Ok(db),
            Ok(Err(error)) if is_locked(&error) && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_RETRY_DELAY);
                continue;
            }
            Ok(Err(error)) if is_locked(&error) => Err(StoreError::InUse { path }),
            Ok(Err(sled::Error::Io(error))) => {
                Err(StoreError::Unusable { path, reason: error.to_string() })
            }
            Ok(Err(sled::Error::Unsupported(problem))) if problem.ends_with(FORMAT_1_SEGMENTS) => {
                Err(StoreError::Format { path, found: 1, known: FORMAT })
            }
            Ok(Err(sled::Error::Unsupported(problem))) => {
                let reason = format!("its file conf is not what was written: {problem}");
                Err(StoreError::Damaged { path, reason })
            }
            Ok(Err(error)) => Err(StoreError::Damaged { path, reason: error.to_string() }),
            Err(_) => Err(StoreError::Damaged { path, reason: "sled cannot read it".to_owned() }),
        };
    }
}

/// sled 0.34.7 wraps the system's `WouldBlock` into an error of kind `Other` with this text.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock"))
}

/// Makes the files themselves and the way to them durable once, and gives the log's descriptor for all later syncs.
///
/// It stays open for life: an error of writing back is reported once, to descriptors that were open then.
fn sync_all_files(path: &Path, made: &[PathBuf]) -> io::Result<File> {
    let log = OpenOptions::new().read(true).write(true).open(path.join("db"))?;
    log.sync_all()?;
    for name in ["conf", "blobs"] {
        match File::open(path.join(name)) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(path)?.sync_all()?;
    for parent in made {
        File::open(parent)?.sync_all()?;
    }
    Ok(log)
}

/// What the writing thread writes to.
struct Log {
    db: sled::Db,
    file: File,
    path: PathBuf,
    /// Whether the directory says that it was used.
    marked: AtomicBool,
}

impl Engine for Log {
    fn write(&self, batch: Batch) -> Result<(), String> {
        let mut sled_batch = sled::Batch::default();
        for (key, value) in batch.into_ops() {
            match value {
                Some(value) => sled_batch.insert(key, value),
                None => sled_batch.remove(key),
            }
        }
        self.db.apply_batch(sled_batch).map_err(|error| format!("writing: {error}"))?;
        failpoint::reached(Point::Applied);
        self.db.flush().map_err(|error| format!("flushing: {error}"))?;
        self.file.sync_data().map_err(|error| format!("fdatasync: {error}"))?;
        if !self.marked.swap(true, Ordering::Relaxed) {
            failpoint::reached(Point::Opening);
            let marking = |error| format!("marking the store: {error}");
            directory::write_note(&self.path, &[]).map_err(marking)?;
        }
        Ok(())
    }

    /// Where the thread that fills a segment fails, sled does not wake who waits for it; another flush does.
    fn nudge(&self) {
        // The error goes to who is woken.
        let _ = self.db.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::FORMAT;
    use crate::store::{Store, StoreOptions};

    /// It had smaller segments, so sled says it first.
    #[tokio::test]
    async fn a_store_of_the_first_format_is_told_as_such() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        drop(sled::Config::new().path(dir.path()).open().expect("it opens"));
        let opened = Store::open(&StoreOptions::new(dir.path()), &[], &|_| ()).await;
        let error = opened.expect_err("it must not open");
        let StoreError::Format { found, known, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((found, known), (1, FORMAT));
    }
}
