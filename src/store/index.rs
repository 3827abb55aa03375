//! The upper tier: every retained identity in memory, so an id never seen is answered without the disk.
//!
//! Maps 64 bits of an identity to the block that holds its record. Two identities that share those bits both
//! stay findable: the later one goes to a map by full identity. A hit is a candidate only; the block has the last word.
//! An entry is made when its record is durable, never before.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};

use super::record::Location;
use crate::identity::Identity;

/// Memory of the index in bytes for one retained id, at worst; measured by `cargo bench --bench store`.
pub const MEMORY_BYTES_PER_ID: u64 = 40;

/// Shards of the map: enough that committer and actors rarely meet on one lock.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Index {
    /// 16 bytes an entry; with the table's own byte and its load of 7/16 to 7/8, 20 to 39 bytes an id.
    blocks: DashMap<u64, u64, BuildHasherDefault<PassThrough>>,
    collided: DashMap<Identity, Location>,
    /// Entries of `collided`, which is empty nearly always: asking the map itself locks all its shards.
    collided_count: AtomicUsize,
}

impl Index {
    pub(crate) fn new() -> Self {
        let blocks = DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS);
        Self { blocks, collided: DashMap::new(), collided_count: AtomicUsize::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len() + self.collided_count.load(Ordering::Acquire)
    }

    /// The block to look into.
    pub(crate) fn candidate(&self, identity: Identity) -> Option<Location> {
        if self.collided_count.load(Ordering::Acquire) > 0
            && let Some(found) = self.collided.get(&identity)
        {
            return Some(*found);
        }
        self.blocks.get(&identity.hash64()).map(|bits| Location::from_bits(*bits))
    }

    /// The record is durable in this block: from now on it is the candidate.
    ///
    /// Gives the block that these bits were known for. If the caller finds an earlier record of the identity there, it
    /// says so by [`Self::supersede`]; until then both are kept.
    #[must_use]
    pub(crate) fn insert(&self, identity: Identity, location: Location) -> Option<Location> {
        let known = match self.blocks.entry(identity.hash64()) {
            Entry::Vacant(vacant) => {
                vacant.insert(location.bits());
                None
            }
            Entry::Occupied(known) => Some(Location::from_bits(*known.get())),
        };
        if known.is_none() {
            self.remove_collided(identity, |_| true);
        } else if self.collided.insert(identity, location).is_none() {
            self.collided_count.fetch_add(1, Ordering::Release);
        }
        known
    }

    /// Of two records of one identity this is the block of the one that counts.
    pub(crate) fn supersede(&self, identity: Identity, location: Location) {
        self.blocks.insert(identity.hash64(), location.bits());
        self.remove_collided(identity, |_| true);
    }

    /// Forgets the identity if it is this block, which leaves as a whole, that holds it.
    pub(crate) fn remove(&self, identity: Identity, location: Location) {
        self.remove_collided(identity, |found| found == location);
        self.blocks.remove_if(&identity.hash64(), |_, bits| *bits == location.bits());
    }

    fn remove_collided(&self, identity: Identity, is_it: impl Fn(Location) -> bool) {
        if self.collided_count.load(Ordering::Acquire) > 0
            && self.collided.remove_if(&identity, |_, found| is_it(*found)).is_some()
        {
            self.collided_count.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::QueueId;

    fn identity(first: u8, last: u8) -> Identity {
        let mut bytes = [first; 16];
        bytes[15] = last;
        Identity::from_bytes(bytes)
    }

    #[test]
    fn identities_that_share_their_first_bytes_stay_findable_and_removable() {
        let index = Index::new();
        let [first, second] = [1, 2].map(|number| Location::new(QueueId(3), number));
        assert_eq!(index.insert(identity(7, 1), first), None);
        assert_eq!(index.insert(identity(7, 2), second), Some(first));
        assert_eq!(index.candidate(identity(7, 1)), Some(first));
        assert_eq!(index.candidate(identity(7, 2)), Some(second));
        index.remove(identity(7, 2), second);
        assert_eq!(index.candidate(identity(7, 1)), Some(first));
        index.remove(identity(7, 1), first);
        assert_eq!((index.candidate(identity(7, 1)), index.len()), (None, 0));
    }

    #[test]
    fn a_later_record_of_an_identity_outlives_the_earlier_block() {
        for resolved in [true, false] {
            let index = Index::new();
            let [first, second, third] = [1, 9, 12].map(|number| Location::new(QueueId(0), number));
            assert_eq!(index.insert(identity(7, 1), first), None);
            assert_eq!(index.insert(identity(7, 1), second), Some(first));
            if resolved {
                index.supersede(identity(7, 1), second);
            }
            assert_eq!(index.candidate(identity(7, 1)), Some(second));
            index.remove(identity(7, 1), first);
            assert_eq!(index.candidate(identity(7, 1)), Some(second));
            let known = index.insert(identity(7, 1), third);
            assert_eq!(known, resolved.then_some(second));
            assert_eq!(index.candidate(identity(7, 1)), Some(third));
            if known.is_some() {
                index.supersede(identity(7, 1), third);
            }
            index.remove(identity(7, 1), second);
            assert_eq!(index.candidate(identity(7, 1)), Some(third));
            index.remove(identity(7, 1), third);
            assert_eq!((index.candidate(identity(7, 1)), index.len()), (None, 0));
        }
    }

    #[test]
    fn a_block_with_two_records_of_an_identity_takes_both_with_it() {
        let index = Index::new();
        let block = Location::new(QueueId(0), 4);
        assert_eq!(index.insert(identity(7, 1), block), None);
        assert_eq!(index.insert(identity(7, 1), block), Some(block));
        assert_eq!(index.candidate(identity(7, 1)), Some(block));
        index.remove(identity(7, 1), block);
        assert_eq!((index.candidate(identity(7, 1)), index.len()), (None, 0));
    }
}
