//! What the store needs of an engine: ordered rows, and batches that are atomic and on stable storage.
//!
//! The engine knows nothing of records. A commit that returned `Ok` survives a power cut; after one that returned an
//! error the engine is not to be used again.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// Most operations in one batch: sled 0.34.7 degrades with larger ones.
pub(crate) const BATCH_OPS_MAX: usize = 256;

/// Most bytes of keys and values in one batch, as [`Batch::bytes`] counts them.
///
/// sled must not free and reuse a segment between two syncs, so it may not write 2 MiB of log in between. It writes
/// many times what it is given: the neighbours of a row, and pages that it moves. With this limit that is 1.2 MB at
/// worst (`the_largest_batches_make_less_log_than_a_segment`).
pub(crate) const BATCH_BYTES_MAX: usize = 40 * 1024;

/// What the removal of a large row counts: sled writes its neighbours again.
const REMOVED_BYTES: usize = 1024;

/// From this size on a row anywhere counts twice: sled writes its neighbours again, which are as large.
const LARGE_BYTES: usize = 512;

/// Most bytes of one value: with up to 17 of them in a leaf, no page of sled grows into a blob file, which it never
/// syncs. Encryption adds a little, for which there is room.
pub(crate) const VALUE_BYTES_MAX: usize = 4096;

/// Most bytes of one value as the engine has it, encrypted or not.
pub(super) const STORED_BYTES_MAX: usize = VALUE_BYTES_MAX + 128;

/// Rows to write and remove together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    ops: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Batch {
    /// Adds a row that comes after all others of its kind.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        assert!(value.len() <= VALUE_BYTES_MAX, "a value larger than {VALUE_BYTES_MAX} bytes");
        self.put_stored(key, value);
    }

    /// As [`Self::put`], a row as another engine had it.
    pub(super) fn put_stored(&mut self, key: Vec<u8>, value: Vec<u8>) {
        assert!(value.len() <= STORED_BYTES_MAX, "a row larger than {STORED_BYTES_MAX} bytes");
        self.bytes += key.len() + value.len();
        self.ops.push((key, Some(value)));
    }

    /// The same rows with other values; counts as before.
    pub(super) fn with_values<E>(
        mut self,
        mut other: impl FnMut(&[u8], Vec<u8>) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        for (key, value) in &mut self.ops {
            if let Some(value) = value {
                *value = other(key, std::mem::take(value))?;
                assert!(value.len() <= STORED_BYTES_MAX, "more than {STORED_BYTES_MAX} bytes");
            }
        }
        Ok(self)
    }

    /// Adds a row that is anywhere among those of its kind.
    pub(crate) fn put_anywhere(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += Self::bytes_anywhere(value.len()) - value.len();
        self.put(key, value);
    }

    /// What a value counts in [`Self::put_anywhere`].
    pub(crate) const fn bytes_anywhere(value_bytes: usize) -> usize {
        if value_bytes < LARGE_BYTES { value_bytes } else { 2 * value_bytes }
    }

    /// Removes a small row.
    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.ops.push((key, None));
    }

    /// Removes a row that may be large.
    pub(crate) fn remove_large(&mut self, key: Vec<u8>) {
        self.bytes += REMOVED_BYTES;
        self.remove(key);
    }

    /// What [`Self::remove_large`] counts.
    pub(crate) const fn bytes_removed(key_bytes: usize) -> usize {
        key_bytes + REMOVED_BYTES
    }

    /// Adds all of another batch behind this one.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.bytes += other.bytes;
        self.ops.append(&mut other.ops);
    }

    pub(crate) const fn len(&self) -> usize {
        self.ops.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of keys and values, and more for what makes sled write more.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_ops(self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        assert!(self.ops.len() <= BATCH_OPS_MAX, "a batch of more than {BATCH_OPS_MAX} operations");
        self.ops
    }
}

/// A row as it is read.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// An embedded ordered engine.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The value of a key.
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>>;

    /// At most `limit` rows with keys of this prefix that are greater than `after`, in order.
    fn scan<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, StoreError>>;

    /// Applies all or nothing and returns when it is on stable storage.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The note that was left last, if any.
    fn note(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>>;

    /// Leaves a note beside the rows, on stable storage: damage to them does not reach it.
    fn leave_note(&self, note: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Size of the files, in bytes.
    ///
    /// # Errors
    ///
    /// If the system does not say: a size that is not known is no size of 0.
    fn disk_bytes(&self) -> Result<u64, StoreError>;
}

/// What went wrong with the store, by what is to be done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the store open: stop it, or give this worker a directory of its own.
    #[error("the store {path} is in use by another process; stop that one first", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be made or opened: mend its rights or the path.
    #[error("the store {path} cannot be opened: {reason}", path = .path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Others can write in the directory, so what is in it proves nothing: do what the text says.
    #[error("the store {path} is open to others: {problem}; {remedy}", path = .path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Who can do what.
        problem: String,
        /// What to run.
        remedy: String,
    },
    /// The key that was given, or that none was, does not fit the store: mend the configuration.
    #[error("the store {path} does not open: {reason}", path = .path.display())]
    Key {
        /// The directory.
        path: PathBuf,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// The store's contents are not what was written: restore it, or start with an empty directory and a gap in memory.
    #[error(
        "the store {path} is damaged: {reason}: put back a copy, or save what is sound with \
         `onceward store export --skip-damaged` and import that into an empty directory",
        path = .path.display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// Which row, and what is wrong with it.
        reason: String,
    },
    /// The store was written by another version: run that one, or begin with an empty directory and a gap in memory.
    #[error(
        "the store {path} has format {found}, this version reads format {known}: run the version that wrote it, or \
         export it with that and import it here",
        path = .path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The format number that was found.
        found: u16,
        /// The format number that this version writes.
        known: u16,
    },
    /// A write or a sync failed: nothing more is acknowledged; mend the disk and start again.
    #[error(
        "the store {path} failed: {reason}; nothing more is acknowledged: mend the disk and start again",
        path = .path.display()
    )]
    Failed {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: Arc<str>,
    },
}
