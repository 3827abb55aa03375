//! What a store calls a message: for tests that read an export, which has hashes where ids were.
//!
//! Pure.

use crate::identity::{Fingerprint, HashKey, ScopeName, hex};
use crate::message::Message;

/// The identities of one store, by its secret key, as an export writes them.
#[derive(Clone, Debug)]
pub struct StoredNames(HashKey);

impl StoredNames {
    /// Of the `hash_key` of an export's header; `None` if it is none.
    #[must_use]
    pub fn new(hash_key: &str) -> Option<Self> {
        let digits = hash_key.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = digits
            .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            .collect();
        Some(Self(HashKey::new(bytes?.try_into().ok()?)))
    }

    /// The identity of an id whose scope is its queue.
    #[must_use]
    pub fn identity(&self, queue: &str, id: &[u8]) -> String {
        hex(self.0.identity(&ScopeName::queue(queue), id).as_bytes())
    }

    /// The identity of another body, of no type, under a known id.
    #[must_use]
    pub fn conflict(&self, queue: &str, id: &[u8], body: &[u8]) -> String {
        let first = self.0.identity(&ScopeName::queue(queue), id);
        let message = Message { body: body.to_vec().into(), ..Message::default() };
        let fingerprint: Fingerprint = self.0.fingerprint(&message);
        hex(self.0.conflict(first, fingerprint).as_bytes())
    }
}
