//! Spilled values against the rows that refer to them, both ways.
//!
//! Rows come before pieces, as their keys do. A value that nothing refers to is what a crash has left, and no damage.

use std::collections::HashMap;

use super::super::StoreError;
use super::super::committed::Committed;
use super::super::record::{Location, Record};
use super::super::rows::Spilled;
use super::super::spill::{Owner, PieceRow, piece_key};
use super::Damage;
use super::latest::Latest;
use super::reader::Reader;
use super::row::{self, PieceId};
use crate::identity::Identity;

/// A row that refers to a value.
#[derive(Debug)]
pub(super) struct Reference {
    key: Vec<u8>,
    owner: Owner,
    spilled: Spilled,
    is_met: bool,
}

impl Reference {
    pub(super) fn new(key: &[u8], owner: Owner, spilled: Spilled) -> Self {
        Self { key: key.to_vec(), owner, spilled, is_met: false }
    }
}

/// What refers to values, and the value that is being read.
#[derive(Debug, Default)]
pub(super) struct Values {
    references: HashMap<u64, Reference>,
    /// The last record of an identity that has a value, and which value.
    records: HashMap<Identity, (Committed, u64)>,
    open: Option<OpenValue>,
    left_over: u64,
}

#[derive(Debug)]
struct OpenValue {
    id: u64,
    next_piece: u32,
    bytes: u64,
}

impl Values {
    /// Takes a row into account that refers to a value.
    pub(super) fn refer(&mut self, id: u64, reference: Reference) {
        self.references.insert(id, reference);
    }

    /// Takes a record into account; an earlier one of its identity counts no longer, nor does its value.
    pub(super) fn record(&mut self, at: Location, committed_at_ms: u64, record: &Record) {
        let read = Committed::new(at, committed_at_ms, record);
        if let Some((known, id)) = self.records.get(&record.identity)
            && read.is_after(known)
        {
            self.references.remove(id);
            self.records.remove(&record.identity);
        }
        if let Some(spilled) = record.result.as_ref().and_then(|result| result.body.spilled()) {
            self.records.insert(record.identity, (read, spilled.id));
            let owner = Owner::Record(record.identity);
            self.refer(spilled.id, Reference::new(&at.key(), owner, spilled));
        }
    }

    /// Takes a piece into account; pieces come in order. Gives what is wrong with the value before it, and with it.
    pub(super) fn piece(&mut self, id: PieceId, row: &PieceRow) -> Vec<Damage> {
        let mut damages = Vec::new();
        let PieceId { value, number } = id;
        if self.open.as_ref().is_none_or(|open| open.id != value) {
            damages.extend(self.close());
            self.begin(value);
            match (&row.head, self.references.get(&value)) {
                (Some(head), Some(reference)) if head.owner != reference.owner => {
                    let problem =
                        format!("it names another owner than {}", row::name(&reference.key));
                    damages.push(Damage::new(&piece_key(value, number), problem));
                }
                (Some(_), _) => {}
                // Of a value that is referred to, close() tells that the first piece is missing.
                (None, Some(_)) => {}
                (None, None) => {
                    let problem = "its value has no beginning, so nobody knows whose it is";
                    damages.push(Damage::new(&piece_key(value, number), problem));
                }
            }
        }
        if let Some(open) = &mut self.open {
            // After a gap nothing counts any more: then bytes are missing in the end.
            if open.next_piece == number {
                open.next_piece += 1;
                open.bytes += row.bytes.len() as u64;
            }
        }
        damages
    }

    fn begin(&mut self, value: u64) {
        match self.references.get_mut(&value) {
            Some(reference) => reference.is_met = true,
            None => self.left_over += 1,
        }
        self.open = Some(OpenValue { id: value, next_piece: 0, bytes: 0 });
    }

    /// The value that was read has ended.
    fn close(&mut self) -> Option<Damage> {
        let open = self.open.take()?;
        let reference = self.references.get(&open.id)?;
        let Spilled { id, bytes } = reference.spilled;
        (open.bytes != bytes || open.next_piece != reference.spilled.pieces()).then(|| {
            let missing = piece_key(id, open.next_piece);
            let problem = format!(
                "it is missing or damaged: {} refers to a value of {bytes} bytes, of which {} are there",
                row::name(&reference.key),
                open.bytes
            );
            Damage::new(&missing, problem)
        })
    }

    /// All was read: tells the rows whose values are missing.
    pub(super) async fn end(&mut self, reader: &Reader) -> Result<Vec<Damage>, StoreError> {
        let mut damages: Vec<Damage> = self.close().into_iter().collect();
        let mut missing: Vec<&Reference> =
            self.references.values().filter(|reference| !reference.is_met).collect();
        missing.sort_by(|a, b| a.key.cmp(&b.key));
        // A record's value goes when a later record of the message takes its place, in whatever queue.
        let is_of_record = |reference: &&Reference| matches!(reference.owner, Owner::Record(_));
        let latest =
            if missing.iter().any(is_of_record) { Some(Latest::read(reader).await?) } else { None };
        for reference in missing {
            let at = Location::from_key(&reference.key);
            let superseded = match (reference.owner, &latest, at) {
                (Owner::Record(identity), Some(latest), Some(at)) => {
                    latest.is_superseded(identity, at)
                }
                _ => false,
            };
            if !superseded {
                let problem = format!("its value {:x} is missing", reference.spilled.id);
                damages.push(Damage::new(&reference.key, problem));
            }
        }
        Ok(damages)
    }

    /// Values that nothing refers to.
    pub(super) const fn left_over(&self) -> u64 {
        self.left_over
    }
}
