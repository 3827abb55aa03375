//! Values larger than a row: in pieces, durable before the row that refers to them.
//!
//! A value's id is never given twice in one store. Its first piece names the row that is to refer to it, is written
//! first and removed last: so a value that a crash left without its row is found when the store opens, and its pieces
//! go, as those of a value that nobody writes to its end. Does not know what the values mean.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backend::StoreError;
use super::garbage::CutOff;
use super::record::{self, QueueId};
use super::rows::{INLINE_BYTES_MAX, KeyId, ResultRow, Spilled, Stored};
use super::{Change, Commit, Records, Store};
use crate::identity::Identity;
use crate::message::cut;

pub(super) const PIECE_PREFIX: &[u8] = b"v";

/// Most bytes of a value in one piece: with owner, length and checksum it fits a row.
pub(super) const PIECE_BYTES_MAX: usize = 4000;

/// Pieces of one commit: they and what collection may add fit a batch.
const PIECES_PER_COMMIT: usize = 6;

/// Longest content type of a result, in bytes: that of a short string of AMQP.
const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// How a result's checksum is made: the first eight bytes of BLAKE3.
const SIGNATURE_BLAKE3: u8 = 1;

/// The row that refers to a spilled value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Owner {
    State(KeyId),
    /// A step of this message.
    Step(Identity),
    /// What this message sends.
    Outgoing(Identity),
    /// The result of this message.
    Record(Identity),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PieceRow {
    /// In the first piece only.
    pub(super) head: Option<Head>,
    pub(super) bytes: Bytes,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) owner: Owner,
    pub(super) value_bytes: u64,
}

impl Spilled {
    pub(super) fn pieces(self) -> u32 {
        let pieces = self.bytes.div_ceil(PIECE_BYTES_MAX as u64).max(1);
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }
}

pub(super) fn piece_key(id: u64, number: u32) -> Vec<u8> {
    [PIECE_PREFIX, &id.to_be_bytes(), &number.to_be_bytes()].concat()
}

/// Key and value of a piece.
pub(super) fn piece_row(
    spilled: Spilled,
    number: u32,
    owner: Owner,
    bytes: &Bytes,
) -> (Vec<u8>, Vec<u8>) {
    let head = (number == 0).then_some(Head { owner, value_bytes: spilled.bytes });
    let row = PieceRow { head, bytes: bytes.clone() };
    (piece_key(spilled.id, number), record::seal(&row))
}

/// The spilled value that a first piece begins, and its owner; `Err` says what is wrong with it.
pub(super) fn read_head(key: &[u8], value: &[u8]) -> Result<(Spilled, Owner), String> {
    let id = key.strip_prefix(PIECE_PREFIX).and_then(|key| key.strip_suffix(&[0; 4]));
    let id: [u8; 8] = id.and_then(|id| id.try_into().ok()).ok_or("a value without a beginning")?;
    let id = u64::from_be_bytes(id);
    let row: PieceRow =
        record::unseal(value).map_err(|error| format!("piece 0 of value {id:x}: {error}"))?;
    let head = row.head.ok_or_else(|| format!("piece 0 of value {id:x} names no owner"))?;
    Ok((Spilled { id, bytes: head.value_bytes }, head.owner))
}

/// After the last key that a value's pieces can have.
pub(super) fn after_value(id: u64) -> Vec<u8> {
    piece_key(id, u32::MAX)
}

/// A value that is being written: cut off in between, its pieces are garbage.
struct Writing<'a> {
    cut_off: &'a CutOff,
    /// As far as it is handed in.
    spilled: Spilled,
}

impl<'a> Writing<'a> {
    fn new(store: &'a Store, id: u64) -> Self {
        Self { cut_off: &store.shared.cut_off, spilled: Spilled { id, bytes: 0 } }
    }

    const fn handed_in(&mut self, bytes: u64) {
        self.spilled.bytes = bytes;
    }

    fn ended(mut self) {
        self.spilled.bytes = 0;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.spilled.bytes > 0 {
            self.cut_off.add(self.spilled);
        }
    }
}

impl Store {
    /// Keeps the value in the row that is to hold it, if it fits beside `beside_bytes` of others, or else makes it
    /// durable before; `None` after a failure of the store.
    pub(super) async fn stored(
        &self,
        owner: Owner,
        value: Bytes,
        beside_bytes: usize,
    ) -> Option<Stored> {
        if value.len() + beside_bytes <= INLINE_BYTES_MAX {
            return Some(Stored::Inline(value));
        }
        // Boxed because it is rare: every actor's task would be larger.
        Box::pin(self.spill(owner, value)).await.map(Stored::Spilled)
    }

    /// Waits for each commit of pieces: who writes much is held back by the disk, not by memory.
    async fn spill(&self, owner: Owner, value: Bytes) -> Option<Spilled> {
        let id = self.shared.next_spilled.fetch_add(1, Ordering::Relaxed);
        let spilled = Spilled { id, bytes: value.len() as u64 };
        let mut rest = value;
        let mut written = Writing::new(self, id);
        let mut numbers = 0..spilled.pieces();
        while !numbers.is_empty() {
            let pieces = numbers.by_ref().take(PIECES_PER_COMMIT).map(|number| {
                let piece = rest.split_to(rest.len().min(PIECE_BYTES_MAX));
                Change::PutPiece(spilled, number, owner, piece)
            });
            let rows = pieces.collect();
            let (persisted, wait) = oneshot::channel();
            self.commit(Commit {
                // Without records the queue says nothing.
                queue: QueueId(0),
                records: Records::new(),
                rows,
                submitted: Instant::now(),
                on_persisted: Box::new(move |proof| {
                    // Nobody waits any more if the value is cut off.
                    let _ = persisted.send(proof);
                }),
            })
            .await;
            written.handed_in(spilled.bytes - rest.len() as u64);
            let _persisted = wait.await.ok()?;
        }
        written.ended();
        Some(spilled)
    }

    /// Reads a value; a spilled one from its pieces.
    pub(crate) async fn fetch(&self, stored: &Stored) -> Result<Bytes, StoreError> {
        match stored {
            Stored::Inline(bytes) => Ok(bytes.clone()),
            Stored::Spilled(spilled) => Box::pin(self.read_pieces(*spilled)).await,
        }
    }

    async fn read_pieces(&self, spilled: Spilled) -> Result<Bytes, StoreError> {
        let Spilled { id, bytes } = spilled;
        let damaged = |what: String| self.shared.damaged(what);
        let mut value = BytesMut::new();
        for number in 0..spilled.pieces() {
            let piece = self.shared.backend.get(&piece_key(id, number)).await?;
            let piece = piece
                .ok_or_else(|| damaged(format!("piece {number} of value {id:x} is missing")))?;
            let row: PieceRow = record::unseal(&piece)
                .map_err(|error| damaged(format!("piece {number} of value {id:x}: {error}")))?;
            value.extend_from_slice(&row.bytes);
        }
        if value.len() as u64 != bytes {
            let found = value.len();
            return Err(damaged(format!("value {id:x} has {found} bytes in the place of {bytes}")));
        }
        Ok(value.freeze())
    }

    /// What a record keeps of a result; `None` after a failure of the store.
    pub(crate) async fn stage_result(
        &self,
        identity: Identity,
        mut content_type: Option<String>,
        body: Bytes,
    ) -> Option<Box<ResultRow>> {
        if let Some(content_type) = &mut content_type {
            cut(content_type, CONTENT_TYPE_BYTES_MAX);
        }
        let checksum = result_checksum(&body);
        let body = self.stored(Owner::Record(identity), body, 0).await?;
        Some(Box::new(ResultRow { signature: SIGNATURE_BLAKE3, checksum, content_type, body }))
    }

    /// The result that a record keeps, which must be the one that was given.
    pub(crate) async fn fetch_result(&self, result: &ResultRow) -> Result<Bytes, StoreError> {
        let body = self.fetch(&result.body).await?;
        if result.signature != SIGNATURE_BLAKE3 {
            let signature = result.signature;
            return Err(self.damaged(format!("a result has the unknown signature {signature}")));
        }
        if result_checksum(&body) != result.checksum {
            return Err(self.damaged("a result is not what its record says"));
        }
        Ok(body)
    }
}

/// The checksum of a result's body under [`SIGNATURE_BLAKE3`].
fn result_checksum(body: &[u8]) -> [u8; 8] {
    let hash = blake3::hash(body);
    let mut checksum = [0; 8];
    checksum.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    checksum
}
