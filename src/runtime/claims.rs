//! Who is being worked on: one claim for each identity that waits, runs or commits.
//!
//! Pure. Every delivery of a claimed identity adds its tag to the claim, and the one outcome settles them all, so that
//! nothing runs twice at a time. A delivery with another fingerprint is no twin: it waits until the claim ends, to be
//! judged by what is then on record.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;

use super::admission::{Admitted, Tag};
use crate::identity::{Fingerprint, Identity};
use crate::planted::{self, Bug};

/// Tags of one message: nearly always one.
pub(crate) type Tags = SmallVec<[Tag; 1]>;

#[derive(Debug, Default)]
pub(crate) struct Claims {
    claims: HashMap<Identity, Claim, BuildHasherDefault<IdentityHasher>>,
}

#[derive(Debug)]
struct Claim {
    fingerprint: Fingerprint,
    tags: Tags,
    contested: Vec<Admitted>,
}

/// What became of a delivery that asked for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// The identity was free: this delivery is to be worked on.
    New,
    /// A twin is being worked on: its outcome settles this delivery too.
    Joined,
    /// Another message with the same id is being worked on: this one is for [`Claims::contest`].
    Contested,
}

impl Claims {
    pub(crate) fn len(&self) -> usize {
        self.claims.len()
    }

    /// A twin joins the claim if it `may_join`, and waits for its end if not.
    pub(crate) fn claim(&mut self, message: &Admitted, may_join: bool) -> Claimed {
        match self.claims.get_mut(&message.identity) {
            None => {
                let claim = Claim {
                    fingerprint: message.fingerprint,
                    tags: Tags::from_elem(message.tag, 1),
                    contested: Vec::new(),
                };
                self.claims.insert(message.identity, claim);
                Claimed::New
            }
            Some(_) if planted::is(Bug::TwinNotJoined) => Claimed::New,
            Some(claim) if may_join && claim.fingerprint == message.fingerprint => {
                // Tags of a connection that is over are worth nothing: the broker delivers those messages again.
                claim.tags.retain(|tag| tag.generation == message.tag.generation);
                if !planted::is(Bug::TwinTagLost) {
                    claim.tags.push(message.tag);
                }
                Claimed::Joined
            }
            Some(_) => Claimed::Contested,
        }
    }

    /// Keeps a contested delivery until the claim ends.
    pub(crate) fn contest(&mut self, message: Admitted) {
        if let Some(claim) = self.claims.get_mut(&message.identity) {
            claim.contested.push(message);
        }
    }

    /// Ends the claim: the tags to settle or to forget, and the deliveries to judge now.
    pub(crate) fn end(&mut self, identity: Identity) -> (Tags, Vec<Admitted>) {
        match self.claims.remove(&identity) {
            Some(claim) => (claim.tags, claim.contested),
            None => (Tags::new(), Vec::new()),
        }
    }

    /// Forgets contested deliveries of a generation that is over: the broker delivers them again.
    pub(crate) fn drop_contested(&mut self, generation: u32) -> usize {
        let mut dropped = 0;
        for claim in self.claims.values_mut() {
            let before = claim.contested.len();
            claim.contested.retain(|message| message.tag.generation != generation);
            dropped += before - claim.contested.len();
        }
        dropped
    }
}

/// Identities are hashes already: their first eight bytes serve.
#[derive(Default)]
pub(crate) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    /// The length prefix of an array says nothing.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::admission::tests::admitted;

    #[test]
    fn twins_share_one_outcome() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim(&admitted(1, "a", 10), true), Claimed::New);
        assert_eq!(claims.claim(&admitted(1, "a", 11), true), Claimed::Joined);
        let (tags, contested) = claims.end(admitted(1, "a", 0).identity);
        assert_eq!(tags.iter().map(|tag| tag.tag).collect::<Vec<_>>(), [10, 11]);
        assert!(contested.is_empty());
        assert_eq!(claims.claim(&admitted(1, "a", 12), true), Claimed::New);
    }

    #[test]
    fn another_body_under_the_same_id_is_kept_apart() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim(&admitted(1, "a", 10), true), Claimed::New);
        assert_eq!(claims.claim(&admitted(1, "b", 11), true), Claimed::Contested);
        claims.contest(admitted(1, "b", 11));
        let (tags, contested) = claims.end(admitted(1, "a", 0).identity);
        assert_eq!((tags.len(), contested.len()), (1, 1));
    }
}
