//! Writes a store anew, row after row, as the committer would: in batches that the engine can take, each one durable.
//!
//! Rows come in the order of their keys or nearly so. Until [`replace`] the old store, if there is one, is untouched.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::backend::{BATCH_BYTES_MAX, BATCH_OPS_MAX, Backend, Batch, StoreError};
use super::super::engine::SledBackend;
use super::super::{StoreOptions, encrypted, swap};

/// A store that is written.
pub(super) struct Rebuild {
    backend: Arc<dyn Backend>,
    batch: Batch,
}

impl Rebuild {
    /// Makes an empty store beside what is in the directory; its rows are encrypted if the options have a key.
    pub(super) async fn begin(options: &StoreOptions) -> Result<Self, StoreError> {
        let bare = Self::begin_bare(options).await?;
        let backend = encrypted::wrap(bare.backend, options).await?;
        Ok(Self { backend, batch: bare.batch })
    }

    /// As [`Self::begin`], for rows as another engine had them, encrypted or not.
    pub(super) async fn begin_bare(options: &StoreOptions) -> Result<Self, StoreError> {
        let new = swap::new_store(&options.path);
        let backend = open(new, options.cache_bytes).await?;
        Ok(Self { backend: Arc::new(backend), batch: Batch::default() })
    }

    /// Adds a row of at most [`VALUE_BYTES_MAX`](super::super::backend::VALUE_BYTES_MAX).
    pub(super) async fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.make_room(key.len() + value.len()).await?;
        self.batch.put(key, value);
        Ok(())
    }

    /// Adds a row as another engine had it.
    pub(super) async fn copy(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.make_room(key.len() + value.len()).await?;
        self.batch.put_stored(key, value);
        Ok(())
    }

    async fn make_room(&mut self, row_bytes: usize) -> Result<(), StoreError> {
        let bytes = self.batch.bytes() + row_bytes;
        if self.batch.len() == BATCH_OPS_MAX || bytes > BATCH_BYTES_MAX {
            self.backend.commit(std::mem::take(&mut self.batch)).await?;
        }
        Ok(())
    }

    /// Makes the last rows and the note durable, and closes the store.
    pub(super) async fn end(mut self, note: Option<Vec<u8>>) -> Result<(), StoreError> {
        if !self.batch.is_empty() {
            self.backend.commit(std::mem::take(&mut self.batch)).await?;
        }
        match note {
            Some(note) => self.backend.leave_note(note).await,
            None => Ok(()),
        }
    }
}

/// Opens an engine without blocking the runtime.
pub(super) async fn open(path: PathBuf, cache_bytes: u64) -> Result<SledBackend, StoreError> {
    let of = path.clone();
    let opened = tokio::task::spawn_blocking(move || SledBackend::open(&of, cache_bytes)).await;
    opened.unwrap_or_else(|panicked| {
        Err(StoreError::Damaged { path, reason: format!("opening it panicked: {panicked}") })
    })
}

/// Puts the store that was written in the place of the old one; for whoever has `_lock`.
pub(super) fn replace(path: &Path, _lock: &File) -> Result<(), StoreError> {
    swap::complete(path).map_err(|error| unusable(path, "replacing it", &error))
}

/// The error for what the file system does not do.
pub(super) fn unusable(path: &Path, what: &str, error: &io::Error) -> StoreError {
    StoreError::Unusable { path: path.to_owned(), reason: format!("{what}: {error}") }
}

/// Refuses a disk in memory, whose directory nobody can replace.
#[cfg(any(test, feature = "testkit"))]
pub(super) fn needs_directory(options: &StoreOptions) -> Result<(), StoreError> {
    if options.simulated.is_none() {
        return Ok(());
    }
    let reason = "a simulated disk has no directory that could be replaced".to_owned();
    Err(StoreError::Unusable { path: options.path.clone(), reason })
}

/// Refuses a disk in memory, which does not exist here.
#[cfg(not(any(test, feature = "testkit")))]
pub(super) const fn needs_directory(_options: &StoreOptions) -> Result<(), StoreError> {
    Ok(())
}
