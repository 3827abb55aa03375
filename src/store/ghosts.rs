//! Records that have expired: 48 bits of each identity, kept for one more retention.
//!
//! Written when a block of records is collected, in the same batch, and always in memory, where an id takes four to
//! eight bytes. Of a hundred million ids that are new, one or two among ten million ghosts are taken for expired.
//! Forgotten messages leave none. Does not decide what becomes of a message that has expired.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Store;
use super::group::Group;
use super::record::{self, Location, QueueId};
use crate::identity::Identity;

pub(super) const GHOST_PREFIX: &[u8] = b"g";

/// Bytes of one identity in a row: two choose its bucket, four stand there.
const HASH_BYTES: usize = 6;

/// Most ghosts in one row, with room for the time and the checksum.
const ROW_GHOSTS_MAX: usize = 670;

/// What a row of ghosts takes beside them, at most.
pub(super) const ROW_BYTES: usize = 48;

/// What one collected record adds to a batch.
pub(super) const GHOST_BYTES: usize = HASH_BYTES;

const BUCKETS: usize = 1 << 16;

/// Parts with a lock each: enough that actors and the committer rarely meet.
const SHARDS: usize = 64;

/// A row is at the place of the last block that it has the ghosts of.
pub(super) fn ghost_key(location: Location) -> Vec<u8> {
    [GHOST_PREFIX, &location.bits().to_be_bytes()].concat()
}

pub(super) fn ghost_prefix(queue: QueueId) -> Vec<u8> {
    [GHOST_PREFIX, &queue.0.to_be_bytes()].concat()
}

pub(super) fn location_of_key(key: &[u8]) -> Option<Location> {
    let bits = key.strip_prefix(GHOST_PREFIX)?.try_into().ok()?;
    Some(Location::from_bits(u64::from_be_bytes(bits)))
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GhostRow {
    /// When the latest of its records was committed.
    pub(super) committed_at_ms: u64,
    pub(super) hashes: Bytes,
}

impl GhostRow {
    /// What is kept of the identities, if the row is one that was written.
    pub(super) fn hashes(&self) -> Option<impl Iterator<Item = GhostHash>> {
        let (hashes, rest) = self.hashes.as_chunks::<HASH_BYTES>();
        rest.is_empty().then(|| hashes.iter().map(|hash| GhostHash(*hash)))
    }
}

/// What is kept of an identity: other bytes of it than the index goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GhostHash([u8; HASH_BYTES]);

impl GhostHash {
    pub(super) const fn new(identity: Identity) -> Self {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, _, _] = *identity.as_bytes();
        Self([a, b, c, d, e, f])
    }

    const fn bucket(self) -> usize {
        let [a, b, ..] = self.0;
        u16::from_le_bytes([a, b]) as usize
    }

    const fn entry(self) -> u32 {
        let [_, _, c, d, e, f] = self.0;
        u32::from_le_bytes([c, d, e, f])
    }
}

/// All ghosts; one that is there twice has to be removed twice.
#[derive(Debug)]
pub(super) struct GhostSet {
    /// Each with its part of the buckets, made with its first ghost.
    shards: [Mutex<Vec<Vec<u32>>>; SHARDS],
    /// Without any, which is usual for a long time, nobody takes a lock.
    count: AtomicUsize,
}

impl Default for GhostSet {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), count: AtomicUsize::new(0) }
    }
}

impl GhostSet {
    fn shard(&self, hash: GhostHash) -> Option<MutexGuard<'_, Vec<Vec<u32>>>> {
        let shard = self.shards.get(hash.bucket() % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn insert(&self, hash: GhostHash) {
        let Some(mut shard) = self.shard(hash) else { return };
        if shard.is_empty() {
            shard.resize(BUCKETS / SHARDS, Vec::new());
        }
        if let Some(bucket) = shard.get_mut(hash.bucket() / SHARDS) {
            bucket.push(hash.entry());
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn remove(&self, hash: GhostHash) {
        let Some(mut shard) = self.shard(hash) else { return };
        let Some(bucket) = shard.get_mut(hash.bucket() / SHARDS) else { return };
        if let Some(at) = bucket.iter().position(|entry| *entry == hash.entry()) {
            bucket.swap_remove(at);
            self.count.fetch_sub(1, Ordering::Release);
            if bucket.len() * 4 < bucket.capacity() {
                bucket.shrink_to(bucket.len() * 2);
            }
        }
    }

    fn contains(&self, hash: GhostHash) -> bool {
        if self.len() == 0 {
            return false;
        }
        let shard = self.shard(hash);
        let bucket = shard.as_ref().and_then(|shard| shard.get(hash.bucket() / SHARDS));
        bucket.is_some_and(|bucket| bucket.contains(&hash.entry()))
    }
}

/// Ghosts of one queue on their way into rows of a group.
#[derive(Debug, Default)]
pub(super) struct OpenGhosts {
    last: Option<(Location, u64)>,
    hashes: Vec<u8>,
}

impl OpenGhosts {
    /// What it will take of the batch.
    pub(super) const fn bytes(&self) -> usize {
        self.hashes.len() + if self.last.is_some() { ROW_BYTES } else { 0 }
    }

    /// Adds those of one block, later than all before; the row goes into the group when it is full.
    pub(super) fn add(
        &mut self,
        group: &mut Group,
        (location, committed_at_ms): (Location, u64),
        hashes: &[GhostHash],
    ) -> usize {
        let is_full = self.hashes.len() / HASH_BYTES + hashes.len() > ROW_GHOSTS_MAX;
        let written = if is_full { self.finish(group) } else { 0 };
        if !hashes.is_empty() {
            self.last = Some((location, committed_at_ms));
            self.hashes.extend(hashes.iter().flat_map(|hash| hash.0));
        }
        written
    }

    /// Writes what is left; gives the bytes of the row.
    pub(super) fn finish(&mut self, group: &mut Group) -> usize {
        let hashes = Bytes::from(std::mem::take(&mut self.hashes));
        let Some((location, committed_at_ms)) = self.last.take() else { return 0 };
        let row = record::seal(&GhostRow { committed_at_ms, hashes });
        let bytes = row.len();
        group.batch.put(ghost_key(location), row);
        bytes
    }
}

/// When the first row of each queue's ghosts was committed.
pub(super) type OldestGhosts = BTreeMap<QueueId, u64>;

impl Store {
    /// Whether a record of this identity has expired within one more retention.
    pub(crate) fn has_expired(&self, identity: Identity) -> bool {
        self.shared.ghosts.contains(GhostHash::new(identity))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn identity(number: u64) -> Identity {
        Identity::from_bytes((u128::from(number) << 64).to_le_bytes())
    }

    proptest! {
        #[test]
        fn a_ghost_is_there_until_it_is_removed_as_often_as_it_came(
            changes in proptest::collection::vec((any::<bool>(), 0..20_u64), 0..200),
        ) {
            let (ghosts, mut naive) = (GhostSet::default(), HashMap::new());
            for (comes, number) in changes {
                // Some share a bucket, some share none.
                let number = number * 0x8001;
                let count: &mut usize = naive.entry(number).or_default();
                if comes {
                    ghosts.insert(GhostHash::new(identity(number)));
                    *count += 1;
                } else {
                    ghosts.remove(GhostHash::new(identity(number)));
                    *count = count.saturating_sub(1);
                }
            }
            prop_assert_eq!(ghosts.len(), naive.values().sum::<usize>());
            for (number, count) in naive {
                prop_assert_eq!(ghosts.contains(GhostHash::new(identity(number))), count > 0);
            }
        }

        #[test]
        fn rows_of_ghosts_give_them_all_back_and_never_pass_the_limit(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u64>(), 0..151), 0..16),
        ) {
            let (mut group, mut open) = (Group::default(), OpenGhosts::default());
            let mut expected = Vec::new();
            for (sequence, numbers) in (0..).zip(blocks) {
                let hashes: Vec<GhostHash> =
                    numbers.into_iter().map(|number| GhostHash::new(identity(number))).collect();
                expected.extend(hashes.clone());
                open.add(&mut group, (Location::new(QueueId(1), sequence), sequence), &hashes);
            }
            open.finish(&mut group);
            let mut found = Vec::new();
            for (key, value) in group.batch.into_ops() {
                let location = location_of_key(&key).expect("it is a ghost's");
                let row: GhostRow = record::unseal(&value.expect("it is put")).expect("it was sealed");
                prop_assert_eq!(row.committed_at_ms, location.sequence());
                found.extend(row.hashes().expect("whole hashes"));
            }
            prop_assert_eq!(found, expected);
        }
    }
}
