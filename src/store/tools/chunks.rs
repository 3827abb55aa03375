//! A spilled value whose chunks are coming, cut into the pieces that lie in rows. Pure.

use bytes::{Bytes, BytesMut};

use super::super::backend::Row;
use super::super::rows::Spilled;
use super::super::spill::{Owner, PIECE_BYTES_MAX, piece_row};

/// A value that is not whole yet.
pub(super) struct OpenValue {
    spilled: Spilled,
    owner: Owner,
    next_piece: u32,
    read_bytes: u64,
    rest: BytesMut,
}

impl OpenValue {
    pub(super) fn new(spilled: Spilled, owner: Owner) -> Self {
        Self { spilled, owner, next_piece: 0, read_bytes: 0, rest: BytesMut::new() }
    }

    pub(super) const fn is_whole(&self) -> bool {
        self.read_bytes == self.spilled.bytes
    }

    /// Takes the next chunk, of any size; gives the rows that are full, and with the last chunk the rest.
    pub(super) fn read(&mut self, chunk: &Bytes) -> Result<Vec<Row>, String> {
        self.read_bytes += chunk.len() as u64;
        if self.read_bytes > self.spilled.bytes {
            return Err("the value is longer than announced".to_owned());
        }
        self.rest.extend_from_slice(chunk);
        let mut rows = Vec::new();
        while self.next_piece < self.spilled.pieces()
            && (self.is_whole() || self.rest.len() >= PIECE_BYTES_MAX)
        {
            let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX)).freeze();
            rows.push(piece_row(self.spilled, self.next_piece, self.owner, &piece));
            self.next_piece += 1;
        }
        Ok(rows)
    }
}
