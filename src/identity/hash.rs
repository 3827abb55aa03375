//! Hashes of ids, keys and contents: keyed with the store's random key, or stable without it where others see them.
//!
//! Each purpose hashes in a domain of its own, so that no input of one reads as an input of another: what the key
//! hashes begins with a scope's kind or with a word whose first letter is no such kind, and what leaves the worker has
//! its own derived key. Does not read messages by rules.

use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::message::{Message, MessageId};

/// What "the same message" means: 16 bytes of a keyed hash of scope and id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Identity([u8; 16]);

impl Identity {
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first eight bytes as a number: already uniform, so maps use it unhashed.
    pub(crate) fn hash64(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", hex(&self.0))
    }
}

/// A message of a producer that numbers its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SequenceId {
    /// Keyed hash of scope and producer.
    pub(crate) producer: Identity,
    /// At most [`super::SEQUENCE_MAX`], so that the number after it exists.
    pub(crate) number: u64,
}

/// A hash of a message's type and body: tells a duplicate from a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Fingerprint([u8; 8]);

impl Fingerprint {
    pub(crate) const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The store's random key: without it nobody can craft colliding ids or guess ids from the index.
#[derive(Clone)]
pub(crate) struct HashKey([u8; 32]);

impl HashKey {
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What tells this store from others, and nothing of the key.
    #[must_use]
    pub(crate) fn mark(&self) -> [u8; 16] {
        self.hash(&[b"store"])
    }

    /// The identity of an id in a scope.
    #[must_use]
    pub(crate) fn identity(&self, scope: &ScopeName, id: &[u8]) -> Identity {
        Identity(self.hash(&[&scope.0, id]))
    }

    /// The identity of a producer in a scope; never that of a message.
    #[must_use]
    pub(crate) fn producer(&self, scope: &ScopeName, producer: &[u8]) -> Identity {
        Identity(self.hash(&[b"producer", &scope.0, producer]))
    }

    /// The identity under which the other body of a known id is recorded as a conflict.
    #[must_use]
    pub(crate) fn conflict(&self, first: Identity, fingerprint: Fingerprint) -> Identity {
        Identity(self.hash(&[b"conflict", &first.0, &fingerprint.0]))
    }

    /// The fingerprint of a message.
    #[must_use]
    pub(crate) fn fingerprint(&self, message: &Message) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        update_with_content(&mut hasher, message);
        Fingerprint(truncated(&hasher.finalize()))
    }

    /// Where the state of an ordering key lies, among the keys of the queue with this number in the store.
    #[must_use]
    pub(crate) fn key(&self, queue_number: u16, key: &[u8]) -> [u8; 16] {
        self.hash(&[b"key", &queue_number.to_le_bytes(), key])
    }

    /// All parts but the last have a length that what is before them gives.
    fn hash(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        truncated(&hasher.finalize())
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// A resolved scope: its bytes carry their kind and length, so no id of one scope reads as one of another.
///
/// Copied rather than shared: the scope of a queue is in all its messages, and a count of its owners would be a line of
/// memory that all threads write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScopeName(SmallVec<[u8; 48]>);

impl ScopeName {
    fn new(kind: u8, name: &[u8]) -> Self {
        let mut bytes = SmallVec::with_capacity(name.len() + 9);
        bytes.push(kind);
        bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The scope of one queue.
    #[must_use]
    pub(crate) fn queue(name: &str) -> Self {
        Self::new(b'q', name.as_bytes())
    }

    /// The scope of all queues of the worker.
    #[must_use]
    pub(crate) fn global() -> Self {
        Self::new(b'g', b"")
    }

    /// The scope of one tenant.
    #[must_use]
    pub(crate) fn tenant(name: &[u8]) -> Self {
        Self::new(b't', name)
    }
}

/// The name other systems dedupe by: the same for every attempt, restart and even after a lost store.
///
/// Not keyed with the store's key for that last reason.
pub(crate) fn effect_key(scope: &ScopeName, id: &MessageId, name: &str) -> String {
    derived("onceward 1 effect key", scope, id, name.as_bytes())
}

/// The id of the message that a handler sends as its `index`th, from 0: stable as an effect key is, so that the next
/// hop knows it again after any crash, and even after a lost store.
pub(crate) fn outgoing_id(scope: &ScopeName, id: &MessageId, index: u32) -> String {
    derived("onceward 1 outgoing id", scope, id, &index.to_le_bytes())
}

/// The name of the death of this content under an id: the same for every store, so that readers of dead letters know
/// one again after a takeover by a worker with another memory.
///
/// Not of the id alone: when its record has expired, another body can die under it. A conflict's death is one of its
/// own.
pub(crate) fn death_id(
    scope: &ScopeName,
    id: &MessageId,
    message: &Message,
    is_conflict: bool,
) -> String {
    let mut rest = vec![u8::from(is_conflict)];
    rest.extend_from_slice(content_id(message).as_bytes());
    derived("onceward 1 dead letter id", scope, id, &rest)
}

fn derived(purpose: &str, scope: &ScopeName, id: &MessageId, rest: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(&scope.0);
    hasher.update(&(id.as_bytes().len() as u64).to_le_bytes());
    hasher.update(id.as_bytes());
    hasher.update(rest);
    hex(&truncated::<16>(&hasher.finalize()))
}

/// The id of a message that is known by its content.
pub(super) fn content_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new_derive_key("onceward 1 fingerprint as id");
    update_with_content(&mut hasher, message);
    MessageId::new(hex(&truncated::<16>(&hasher.finalize())))
}

fn update_with_content(hasher: &mut blake3::Hasher, message: &Message) {
    let kind = message.properties.kind.as_deref().unwrap_or_default();
    hasher.update(&(kind.len() as u64).to_le_bytes());
    hasher.update(kind.as_bytes());
    hasher.update(&message.body);
}

fn truncated<const N: usize>(hash: &blake3::Hash) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    out
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_that_others_see_never_change_between_releases() {
        let (scope, id) = (ScopeName::queue("orders"), MessageId::new("order-17"));
        assert_eq!(outgoing_id(&scope, &id, 0), "6367615bac0ef6a42b290b31b16719f2");
        assert_eq!(outgoing_id(&scope, &id, 1), "205fd6b67ee1a2cd6274b988a59bdf3f");
        assert_eq!(effect_key(&scope, &id, "mail"), "fde98dd0b5e178dce4ac912e0f2667fb");
        let message = Message { body: "17".into(), ..Message::default() };
        assert_eq!(death_id(&scope, &id, &message, false), "a4111700482a0ba1f9dfb364656b9b8f");
        assert_eq!(death_id(&scope, &id, &message, true), "ff12923735c05ad81ce8f797bf68498c");
    }

    #[test]
    fn outgoing_ids_differ_by_scope_id_and_index() {
        let scopes = [ScopeName::queue("a"), ScopeName::global(), ScopeName::tenant(b"a")];
        let mut seen = BTreeSet::new();
        for scope in &scopes {
            for id in ["1", "10", "a/1"] {
                for index in [0, 1, 10, u32::MAX] {
                    let id = outgoing_id(scope, &MessageId::new(id), index);
                    assert_eq!(id.len(), 32);
                    assert!(seen.insert(id));
                }
            }
        }
    }

    #[test]
    fn one_name_is_another_hash_for_every_purpose() {
        let key = HashKey::new([7; 32]);
        let (queue, global) = (ScopeName::queue("a"), ScopeName::global());
        let seen: BTreeSet<[u8; 16]> = [
            *key.identity(&queue, b"a").as_bytes(),
            *key.identity(&global, b"a").as_bytes(),
            *key.producer(&queue, b"a").as_bytes(),
            *key.producer(&global, b"a").as_bytes(),
            key.key(0, b"a"),
            key.key(1, b"a"),
            key.key(0, b"b"),
            HashKey::new([8; 32]).key(0, b"a"),
        ]
        .into();
        assert_eq!(seen.len(), 8);
        assert_eq!(key.key(1, b"a"), key.key(1, b"a"));
    }
}
