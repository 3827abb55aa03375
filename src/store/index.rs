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

    pub(crate) fn insert(&self, identity: Identity, location: Location) {
        match self.blocks.entry(identity.hash64()) {
            Entry::Vacant(vacant) => {
                vacant.insert(location.bits());
            }
            Entry::Occupied(_) => {
                if self.collided.insert(identity, location).is_none() {
                    self.collided_count.fetch_add(1, Ordering::Release);
                }
            }
        }
    }

    /// Forgets the identity if it is this block that holds it.
    pub(crate) fn remove(&self, identity: Identity, location: Location) {
        let is_here = |_: &Identity, found: &Location| *found == location;
        if self.collided_count.load(Ordering::Acquire) > 0
            && self.collided.remove_if(&identity, is_here).is_some()
        {
            self.collided_count.fetch_sub(1, Ordering::Release);
        } else {
            self.blocks.remove_if(&identity.hash64(), |_, bits| *bits == location.bits());
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
        index.insert(identity(7, 1), first);
        index.insert(identity(7, 2), second);
        assert_eq!(index.candidate(identity(7, 1)), Some(first));
        assert_eq!(index.candidate(identity(7, 2)), Some(second));
        index.remove(identity(7, 2), second);
        assert_eq!(index.candidate(identity(7, 1)), Some(first));
        index.remove(identity(7, 1), first);
        assert_eq!((index.candidate(identity(7, 1)), index.len()), (None, 0));
    }

    #[test]
    fn a_later_record_of_an_identity_outlives_the_earlier_block() {
        let index = Index::new();
        let [early, late] = [1, 9].map(|number| Location::new(QueueId(0), number));
        index.insert(identity(7, 1), early);
        index.insert(identity(7, 1), late);
        index.remove(identity(7, 1), early);
        assert_eq!(index.candidate(identity(7, 1)), Some(late));
    }
}
