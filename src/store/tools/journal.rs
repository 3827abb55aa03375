//! The blocks of a store in order, with each one that is missing named once.

use super::super::StoreError;
use super::super::journal::{Journal, Note};
use super::super::open::FOREIGN_NOTE;
use super::super::record::{Location, QueueId};
use super::Damage;
use super::reader::Reader;
use crate::identity::HashKey;

/// Follows the blocks as they are read.
#[derive(Default)]
pub(super) struct Blocks {
    journal: Journal,
}

impl Blocks {
    /// Takes the next block into account; the damage, if others before it are missing.
    pub(super) fn read(
        &mut self,
        at: Location,
        committed_at_ms: u64,
        bytes: usize,
    ) -> Option<Damage> {
        let missing = self.journal.read(at, committed_at_ms, bytes).err()?;
        let last = at.sequence().saturating_sub(1);
        let first = Location::new(at.queue(), missing);
        let problem = if missing == last {
            "it is missing".to_owned()
        } else {
            format!("it is missing, and all up to {last}")
        };
        Some(Damage::new(&first.key(), problem))
    }

    /// Compares what was read with the note beside the rows.
    pub(super) async fn end(&mut self, reader: &Reader) -> Result<Vec<Damage>, StoreError> {
        let mut found = Vec::new();
        match reader.note().await? {
            Ok(None) => {}
            Ok(Some(note)) if Self::is_foreign(&note, reader).await => found.push(Damage {
                key: Vec::new(),
                row: "the note beside the rows".to_owned(),
                problem: FOREIGN_NOTE.to_owned(),
            }),
            Ok(Some(note)) => {
                let now_ms = reader.clock.now_ms();
                while let Err(missing) = self.journal.check(&note, now_ms) {
                    found.push(Damage {
                        key: Vec::new(),
                        row: format!("block {missing} of a queue"),
                        problem: "the note says that it was written, and it is missing".to_owned(),
                    });
                }
            }
            Err(damage) => found.push(damage),
        }
        Ok(found)
    }

    async fn is_foreign(note: &Note, reader: &Reader) -> bool {
        // Without its own row nobody knows which store it is, which is told as a damage of its own.
        match reader.meta().await {
            Ok(meta) => Journal::of(HashKey::new(meta.hash_key).mark()).is_foreign(note),
            Err(_) => false,
        }
    }

    /// The number of each queue's next block.
    pub(super) fn ends(&self) -> impl Iterator<Item = (QueueId, u64)> {
        self.journal.ends()
    }
}
