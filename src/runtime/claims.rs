//! Who is being worked on: one claim for each identity that waits, runs or commits.
//!
//! Pure. Every delivery of a claimed identity adds its tag to the claim, and the one outcome settles them all, so that
//! nothing runs twice at a time. A delivery with another fingerprint is no twin: it waits until the claim ends, to be
//! judged by what is then on record.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Weak};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::admission::{Admitted, Tag};
use super::spare;
use crate::identity::{Fingerprint, Identity};
use crate::message::Message;
use crate::planted::{self, Bug};

/// Tags of one message: nearly always one.
pub(crate) type Tags = SmallVec<[Tag; 1]>;

#[derive(Debug, Default)]
pub(crate) struct Claims {
    claims: HashMap<Identity, Claim, BuildHasherDefault<IdentityHasher>>,
    /// Of all their messages, contested ones among them.
    bytes: usize,
}

#[derive(Debug)]
struct Claim {
    fingerprint: Fingerprint,
    tags: Tags,
    contested: Vec<Admitted>,
    bytes: usize,
    /// For people, who know it by its id; its body is let go of when its handler has finished.
    message: Weak<Message>,
}

/// The delivery of a connection that has waited longest.
pub(crate) struct Oldest {
    pub(crate) received: Instant,
    pub(crate) message: Weak<Message>,
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
                    bytes: message.bytes,
                    message: Arc::downgrade(&message.message),
                };
                self.bytes += message.bytes;
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
            claim.bytes += message.bytes;
            self.bytes += message.bytes;
            claim.contested.push(message);
        }
    }

    /// About what all their messages take in memory.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest delivery of a generation that is not settled.
    pub(crate) fn oldest(&self, generation: u32) -> Option<Oldest> {
        let received = |claim: &Claim| {
            let tags = claim.tags.iter().chain(claim.contested.iter().map(|of| &of.tag));
            let own = tags.filter(|tag| tag.generation == generation);
            own.map(|tag| tag.received).min()
        };
        let claims = self.claims.values();
        let (received, claim) = claims
            .filter_map(|claim| Some((received(claim)?, claim)))
            .min_by_key(|(received, _)| *received)?;
        Some(Oldest { received, message: claim.message.clone() })
    }

    /// Ends the claim: the tags to settle or to forget, and the deliveries to judge now.
    pub(crate) fn end(&mut self, identity: Identity) -> (Tags, Vec<Admitted>) {
        match self.claims.remove(&identity) {
            Some(claim) => {
                self.bytes -= claim.bytes;
                (claim.tags, claim.contested)
            }
            None => (Tags::new(), Vec::new()),
        }
    }

    /// Gives back what many claims at once took.
    pub(crate) fn give_back(&mut self) {
        spare::give_back(&mut self.claims);
    }

    /// Forgets contested deliveries of a generation that is over: the broker delivers them again.
    pub(crate) fn drop_contested(&mut self, generation: u32) -> usize {
        let mut dropped = 0;
        for claim in self.claims.values_mut() {
            let before = claim.contested.len();
            claim.contested.retain(|message| {
                let stays = message.tag.generation != generation;
                if !stays {
                    claim.bytes -= message.bytes;
                    self.bytes -= message.bytes;
                }
                stays
            });
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

    #[test]
    fn bytes_are_those_of_all_that_is_claimed_or_contested() {
        let mut claims = Claims::default();
        let [first, other, twin] =
            [("a", 10), ("b", 11), ("a", 12)].map(|(body, tag)| admitted(1, body, tag));
        let each = first.bytes;
        claims.claim(&first, true);
        claims.claim(&twin, true);
        assert_eq!(claims.bytes(), each, "a twin is not kept");
        claims.contest(other);
        assert_eq!(claims.bytes(), 2 * each);
        claims.drop_contested(first.tag.generation);
        assert_eq!(claims.bytes(), each);
        claims.end(first.identity);
        assert_eq!(claims.bytes(), 0);
    }

    #[test]
    fn the_oldest_is_of_its_own_generation() {
        let mut claims = Claims::default();
        let [mut old, mut young] = [admitted(1, "a", 10), admitted(2, "b", 11)];
        old.tag.received -= std::time::Duration::from_secs(10);
        claims.claim(&young, true);
        claims.claim(&old, true);
        let oldest = |claims: &Claims, generation| claims.oldest(generation).map(|of| of.received);
        assert_eq!(oldest(&claims, old.tag.generation), Some(old.tag.received));
        assert_eq!(oldest(&claims, old.tag.generation + 1), None);
        young.tag.generation += 1;
        claims.claim(&young, true);
        assert_eq!(oldest(&claims, young.tag.generation), Some(young.tag.received));
    }
}
