//! Rewrites a store: the engine's files never shrink by themselves.
//!
//! Every row is copied as it is, damaged ones too, and an encrypted one encrypted. A crash leaves the old store or the
//! new one.

use std::sync::Arc;

use super::super::backend::{Backend, StoreError};
use super::super::{StoreOptions, encrypted, swap};
use super::Watch;
use super::reader::Reader;
use super::rebuild::{Rebuild, needs_directory, open, replace, unusable};

/// What a compaction has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Rows that were copied.
    pub rows: u64,
    /// Size of the files before, in bytes.
    pub before_bytes: u64,
    /// Size of the files after, in bytes.
    pub after_bytes: u64,
}

/// Rewrites the store of a stopped worker, which needs room for both meanwhile.
///
/// # Errors
///
/// [`StoreError::InUse`] if a worker runs on it; [`StoreError::Unusable`] if there is none, or the directory cannot be
/// written; [`StoreError::Key`] without its key; [`StoreError::Damaged`] if the engine cannot read it;
/// [`StoreError::Failed`] if the disk is full. The store is as it was then.
pub async fn compact(
    options: &StoreOptions,
    watch: &mut dyn Watch,
) -> Result<Compacted, StoreError> {
    needs_directory(options)?;
    let path = &options.path;
    Reader::require(options)?;
    let old = open(path.clone(), options.cache_bytes).await?;
    let lock = old.lock();
    let read_size =
        || swap::files_bytes(path).map_err(|error| unusable(path, "reading its size", &error));
    let before_bytes = read_size()?;
    // Closed, by its last handle, before its files go.
    let copied = copy(Arc::new(old), options, watch).await;
    let replaced = match copied {
        Ok(rows) => replace(path, &lock).map(|()| rows),
        Err(error) => {
            // Whatever is left of the copy is thrown away when the store is opened.
            let _ = swap::give_up(path);
            Err(error)
        }
    };
    Ok(Compacted { rows: replaced?, before_bytes, after_bytes: read_size()? })
}

async fn copy(
    old: Arc<dyn Backend>,
    options: &StoreOptions,
    watch: &mut dyn Watch,
) -> Result<u64, StoreError> {
    // What the worker before wrote, and this version does not know, would be read wrongly by no one: it is refused.
    Reader::of(encrypted::wrap(Arc::clone(&old), options).await?, options).meta().await?;
    let note = old.note().await?;
    let reader = Reader::of(old, options);
    let mut new = Rebuild::begin_bare(options).await?;
    let mut copied = 0;
    let mut rows = reader.rows(b"");
    while let Some((key, value)) = rows.next().await? {
        new.copy(key, value).await?;
        copied += 1;
        watch.progress(copied);
    }
    new.end(note).await?;
    Ok(copied)
}
