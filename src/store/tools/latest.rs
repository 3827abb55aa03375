//! Which records of an identity count: one that was forgotten has several, and the value of an earlier one may be gone.

use std::collections::{HashMap, HashSet};

use super::super::StoreError;
use super::super::committed::Committed;
use super::super::record::{BLOCK_PREFIX, Block, Location, Record};
use super::reader::Reader;
use super::row::{Row, decode};
use crate::identity::Identity;

/// Where the last record of each identity is that has a spilled result.
pub(super) struct Latest(HashMap<Identity, Committed>);

impl Latest {
    /// Reads all blocks twice; those that are damaged say nothing.
    pub(super) async fn read(reader: &Reader) -> Result<Self, StoreError> {
        let mut spilled = HashSet::new();
        let mut rows = reader.rows(BLOCK_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            if let Ok(Row::Block(_, block)) = decode(&key, &value) {
                let found = block.records.iter().filter(|record| has_spilled(record));
                spilled.extend(found.map(|record| record.identity));
            }
        }
        let mut latest = HashMap::new();
        let mut rows = reader.rows(BLOCK_PREFIX);
        while let Some((key, value)) = rows.next().await? {
            let Ok(Row::Block(at, Block { committed_at_ms, records })) = decode(&key, &value)
            else {
                continue;
            };
            for record in records.iter().filter(|record| spilled.contains(&record.identity)) {
                let read = Committed::new(at, committed_at_ms, record);
                let known = latest.entry(record.identity).or_insert(read);
                if read.is_after(known) {
                    *known = read;
                }
            }
        }
        Ok(Self(latest))
    }

    /// Whether a later record of the identity counts, and not the one in this block.
    pub(super) fn is_superseded(&self, identity: Identity, at: Location) -> bool {
        self.0.get(&identity).is_some_and(|latest| latest.at != at)
    }
}

fn has_spilled(record: &Record) -> bool {
    record.result.as_ref().is_some_and(|result| result.body.spilled().is_some())
}
