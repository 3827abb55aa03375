//! Reads a store row by row, whatever state it is in; needs it for itself, and writes nothing.
//!
//! A store that is not there is an error here: nothing is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::super::backend::{self, Backend, StoreError};
use super::super::journal::Note;
use super::super::record::{self, FORMAT, META_KEY, Meta};
use super::super::rows::Spilled;
use super::super::spill::{PieceRow, piece_key};
use super::super::{StoreOptions, directory, open, swap};
use super::Damage;
use crate::clock::Clock;

/// Rows read at a time.
const PAGE_ROWS: usize = 512;

/// Whether there is a store in this directory, in whatever state.
pub(crate) fn is_store(path: &Path) -> bool {
    directory::was_used(path) || swap::has_files(path)
}

/// An open store, for reading.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) clock: Clock,
    path: PathBuf,
}

impl Reader {
    /// Takes the store for this process.
    pub(super) async fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        Self::require(options)?;
        Ok(Self::of(open::open_backend(options).await?, options))
    }

    /// Of an engine that is open already.
    pub(super) fn of(backend: Arc<dyn Backend>, options: &StoreOptions) -> Self {
        Self { backend, clock: options.clock.clone(), path: options.path.clone() }
    }

    /// Opening the engine would make a store where there is none.
    pub(super) fn require(options: &StoreOptions) -> Result<(), StoreError> {
        #[cfg(any(test, feature = "testkit"))]
        let is_there = options.simulated.is_some() || is_store(&options.path);
        #[cfg(not(any(test, feature = "testkit")))]
        let is_there = is_store(&options.path);
        if !is_there {
            let reason = "there is none".to_owned();
            return Err(StoreError::Unusable { path: options.path.clone(), reason });
        }
        Ok(())
    }

    /// The store's own row, if this version reads what it says.
    pub(super) async fn meta(&self) -> Result<Meta, StoreError> {
        let row = self.backend.get(META_KEY).await?;
        let row = row.ok_or_else(|| self.damaged(&Damage::new(META_KEY, "it is missing")))?;
        let meta: Meta = record::unseal(&row)
            .map_err(|error| self.damaged(&Damage::new(META_KEY, error.to_string())))?;
        if meta.format != FORMAT {
            let path = self.path.clone();
            return Err(StoreError::Format { path, found: meta.format, known: FORMAT });
        }
        Ok(meta)
    }

    /// The note beside the rows: `Err` in the inside says what is wrong with it.
    pub(super) async fn note(&self) -> Result<Result<Option<Note>, Damage>, StoreError> {
        let note = self.backend.note().await?;
        Ok(note.map(|note| Note::read(&note)).transpose().map_err(|error| Damage {
            key: Vec::new(),
            row: "the note beside the rows".to_owned(),
            problem: error.to_string(),
        }))
    }

    /// All rows whose keys have this prefix, in order.
    pub(super) fn rows<'a>(&'a self, prefix: &'a [u8]) -> Rows<'a> {
        Rows { reader: self, prefix, last: None, page: Vec::new().into_iter() }
    }

    async fn page(
        &self,
        prefix: &[u8],
        last: Option<&[u8]>,
    ) -> Result<Vec<backend::Row>, StoreError> {
        let page = self.backend.scan(prefix, last, PAGE_ROWS).await;
        page.map_err(|error| match error {
            StoreError::Damaged { path, reason } => {
                let row = super::row::name(last.unwrap_or(prefix));
                let reason = format!("{reason}; the engine cannot read on behind {row}");
                StoreError::Damaged { path, reason }
            }
            other => other,
        })
    }

    /// Reads one piece of a value; `None` if it is missing or not what was written.
    pub(super) async fn piece(
        &self,
        spilled: Spilled,
        number: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        let piece = self.backend.get(&piece_key(spilled.id, number)).await?;
        let row = piece.and_then(|piece| record::unseal::<PieceRow>(&piece).ok());
        Ok(row.map(|row| row.bytes))
    }

    /// Whether all pieces of a value are there and as long as it says.
    pub(super) async fn is_whole(&self, spilled: Spilled) -> Result<bool, StoreError> {
        let mut bytes = 0;
        for number in 0..spilled.pieces() {
            let Some(piece) = self.piece(spilled, number).await? else { return Ok(false) };
            bytes += piece.len() as u64;
        }
        Ok(bytes == spilled.bytes)
    }

    /// The damage as an error, for who cannot go on with it.
    pub(super) fn damaged(&self, damage: &Damage) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason: damage.to_string() }
    }
}

/// Rows in the order of their keys, read page by page.
pub(super) struct Rows<'a> {
    reader: &'a Reader,
    prefix: &'a [u8],
    last: Option<Vec<u8>>,
    page: std::vec::IntoIter<backend::Row>,
}

impl Rows<'_> {
    pub(super) async fn next(&mut self) -> Result<Option<backend::Row>, StoreError> {
        if let Some(row) = self.page.next() {
            return Ok(Some(row));
        }
        let page = self.reader.page(self.prefix, self.last.as_deref()).await?;
        if let Some((last, _)) = page.last() {
            self.last = Some(last.clone());
        }
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}
