//! What is known of the blocks on disk without reading them: where each queue's begin and end.
//!
//! Blocks of a queue are numbered without gaps, written at the end and removed from the beginning. So a hole in the
//! middle shows by itself, and a missing end by the note that is left beside the engine now and then: sled takes a
//! damaged part of its log for the torn end of a crash and opens without what follows. The note also says of which
//! store it is: files of two stores that were mixed up are no store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::{self, Location, QueueId, UnsealError};

#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Of which store.
    mark: Option<[u8; 16]>,
    queues: BTreeMap<QueueId, QueueJournal>,
    live_bytes: u64,
    /// Bytes of the states of keys, which are not read when the store opens.
    state_bytes: u64,
}

#[derive(Debug, Default)]
struct QueueJournal {
    next_sequence: u64,
    /// The block that expires first, and when it was committed.
    oldest: Option<(Location, u64)>,
    /// When the last block was committed.
    newest_ms: u64,
}

/// How far each queue's blocks went when the note was left.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    ends: Vec<NotedEnd>,
    state_bytes: u64,
    mark: Option<[u8; 16]>,
}

/// As it was before it said of which store it is.
#[derive(Debug, Serialize, Deserialize)]
struct UnmarkedNote {
    ends: Vec<NotedEnd>,
    state_bytes: u64,
}

impl Note {
    pub(super) fn read(value: &[u8]) -> Result<Self, UnsealError> {
        record::unseal(value).or_else(|error| match error {
            UnsealError::Contents => {
                let UnmarkedNote { ends, state_bytes } = record::unseal(value)?;
                Ok(Self { ends, state_bytes, mark: None })
            }
            other => Err(other),
        })
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NotedEnd {
    queue: QueueId,
    next_sequence: u64,
    /// Before this the last block must still be there, in milliseconds since 1970.
    expires_at_ms: u64,
}

impl Journal {
    /// Of the store with this mark, without blocks.
    pub(super) fn of(mark: [u8; 16]) -> Self {
        Self { mark: Some(mark), ..Self::default() }
    }

    /// Whether the note was left by another store.
    pub(super) fn is_foreign(&self, note: &Note) -> bool {
        self.mark.zip(note.mark).is_some_and(|(own, noted)| own != noted)
    }

    /// Takes a block into account that was read; blocks of one queue come in order.
    ///
    /// # Errors
    ///
    /// The number of the first one that is missing before it; it is taken into account all the same.
    pub(super) fn read(
        &mut self,
        location: Location,
        committed_at_ms: u64,
        value_bytes: usize,
    ) -> Result<(), u64> {
        let queue = self.queues.entry(location.queue()).or_default();
        let expected = queue.oldest.map(|_| queue.next_sequence);
        queue.next_sequence = location.sequence();
        self.add(location.queue(), committed_at_ms, value_bytes);
        match expected {
            Some(expected) if expected != location.sequence() => Err(expected),
            _ => Ok(()),
        }
    }

    /// Gives no number below this one to the queue's next block.
    pub(super) fn skip_to(&mut self, queue: QueueId, next_sequence: u64) {
        let queue = self.queues.entry(queue).or_default();
        queue.next_sequence = queue.next_sequence.max(next_sequence);
    }

    /// The number of each queue's next block.
    pub(super) fn ends(&self) -> impl Iterator<Item = (QueueId, u64)> {
        self.queues.iter().map(|(id, queue)| (*id, queue.next_sequence))
    }

    /// Where the queue's next block goes.
    pub(super) fn next(&self, queue: QueueId) -> Location {
        Location::new(queue, self.queues.get(&queue).map_or(0, |queue| queue.next_sequence))
    }

    /// Takes the block at [`Self::next`] into account.
    pub(super) fn add(&mut self, queue: QueueId, committed_at_ms: u64, value_bytes: usize) {
        let location = self.next(queue);
        let journal = self.queues.entry(queue).or_default();
        journal.next_sequence += 1;
        journal.oldest.get_or_insert((location, committed_at_ms));
        journal.newest_ms = committed_at_ms;
        self.live_bytes += value_bytes as u64;
    }

    /// Takes into account by how many bytes other rows have grown, or blocks have left.
    pub(super) const fn grow(&mut self, bytes: i64) {
        self.live_bytes = self.live_bytes.saturating_add_signed(bytes);
    }

    /// Takes into account by how many bytes the states of keys have grown.
    pub(super) const fn grow_states(&mut self, bytes: i64) {
        self.state_bytes = self.state_bytes.saturating_add_signed(bytes);
    }

    /// The first block of each queue that has any, and when it was committed.
    pub(super) fn oldest(&self) -> impl Iterator<Item = (QueueId, u64)> {
        self.queues.iter().filter_map(|(id, queue)| queue.oldest.map(|(_, at_ms)| (*id, at_ms)))
    }

    /// The first block of the queue is another one now, or there is none.
    pub(super) fn set_oldest(&mut self, queue: QueueId, oldest: Option<(Location, u64)>) {
        self.queues.entry(queue).or_default().oldest = oldest;
    }

    /// Bytes of all blocks and other rows.
    pub(super) const fn live_bytes(&self) -> u64 {
        self.live_bytes.saturating_add(self.state_bytes)
    }

    pub(super) fn note(&self, retention_ms: impl Fn(QueueId) -> u64) -> Note {
        let ends = self.queues.iter().map(|(id, queue)| NotedEnd {
            queue: *id,
            next_sequence: queue.next_sequence,
            // Where everything has expired nothing is missed, whatever the clock says later.
            expires_at_ms: match queue.oldest {
                Some(_) => queue.newest_ms.saturating_add(retention_ms(*id)),
                None => 0,
            },
        });
        Note { ends: ends.collect(), state_bytes: self.state_bytes, mark: self.mark }
    }

    /// Whether the note wants to see blocks of a queue that has none any more.
    pub(super) fn has_lost_what_is_in(&self, note: &Note) -> bool {
        note.ends.iter().any(|end| {
            let queue = self.queues.get(&end.queue);
            end.expires_at_ms > 0 && queue.is_none_or(|queue| queue.oldest.is_none())
        })
    }

    /// Compares what was read with the last note, and never gives a number again that was given before.
    ///
    /// # Errors
    ///
    /// The number of a block that is missing; called again, one of another queue.
    pub(super) fn check(&mut self, note: &Note, now_ms: u64) -> Result<(), u64> {
        self.state_bytes = note.state_bytes;
        for end in &note.ends {
            let queue = self.queues.entry(end.queue).or_default();
            if queue.next_sequence < end.next_sequence {
                let missing = std::mem::replace(&mut queue.next_sequence, end.next_sequence);
                if now_ms < end.expires_at_ms {
                    return Err(missing);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueId = QueueId(3);

    fn read(sequences: &[u64]) -> Result<Journal, u64> {
        let mut journal = Journal::default();
        for sequence in sequences {
            journal.read(Location::new(QUEUE, *sequence), 1000, 100)?;
        }
        Ok(journal)
    }

    #[test]
    fn a_note_says_of_which_store_it_is_and_one_of_an_earlier_release_is_read() {
        let note = Journal::of([1; 16]).note(|_| 0);
        let read = Note::read(&record::seal(&note)).expect("it was just written");
        assert_eq!(read, note);
        assert!(Journal::of([2; 16]).is_foreign(&read));
        assert!(!Journal::of([1; 16]).is_foreign(&read));
        let unmarked = UnmarkedNote { ends: Vec::new(), state_bytes: 7 };
        let read = Note::read(&record::seal(&unmarked)).expect("it is known");
        assert_eq!(read, Note { ends: Vec::new(), state_bytes: 7, mark: None });
        assert!(!Journal::of([1; 16]).is_foreign(&read));
    }

    #[test]
    fn a_hole_in_the_middle_is_noticed() {
        assert_eq!(read(&[5, 6, 8]).err(), Some(7));
        let journal = read(&[5, 6, 7]).expect("no hole");
        assert_eq!(journal.next(QUEUE).sequence(), 8);
    }

    #[test]
    fn a_missing_end_is_noticed_until_it_would_have_expired() {
        let note = read(&[5, 6, 7]).expect("no hole").note(|_| 500);
        let shorter = || read(&[5, 6]).expect("no hole");
        assert_eq!(shorter().check(&note, 1499), Err(7));
        assert_eq!(Journal::default().check(&note, 1499), Err(0));
        let mut expired = Journal::default();
        assert_eq!(expired.check(&note, 1500), Ok(()));
        assert_eq!(expired.next(QUEUE).sequence(), 8);
        let mut longer = read(&[6, 7, 8]).expect("no hole");
        assert_eq!(longer.check(&note, 0), Ok(()));
        assert_eq!(longer.next(QUEUE).sequence(), 9);
    }
}
