//! Which deliveries are the same message, and which messages run in order: id, scope, key, fingerprint.
//!
//! Pure: the rules of a queue and a message in, a `Resolved` out. An identity is 16 bytes, a hash of
//! scope and id keyed with a random key of the store, so ids of any length cost the same, cannot be crafted
//! to collide, and leave no personal data behind. Never looks at `redelivered` or at a producer's clock.

mod hash;
mod resolve;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use self::hash::{
    Fingerprint, HashKey, Identity, ScopeName, SequenceId, death_id, effect_key, hex, outgoing_id,
};
pub(crate) use self::resolve::{IdError, Resolver};
pub use self::source::{ParseSourceError, SEQUENCE_MAX, SOURCE_NAMES, Source};

/// Longest id in bytes; a longer one is dead-lettered as `bad-id`.
pub const ID_BYTES_MAX: usize = 1024;

/// Longest ordering key in bytes; a longer one is dead-lettered as `bad-id`.
pub const KEY_BYTES_MAX: usize = 1024;

/// The namespace in which an id is unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each queue for itself (default).
    #[default]
    Queue,
    /// All queues of the worker together.
    Global,
    /// The tenant named by this header; without the header the message has no usable id.
    Header(String),
}

/// What happens to a message without an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissingId {
    /// Dead-letter it as `missing-id` (default).
    #[default]
    DeadLetter,
    /// Take a hash of type and body as the id: two equal messages count as one.
    Fingerprint,
}

/// How a queue's messages are told apart and ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRules {
    /// Sources of the id, the first present one wins; default `message-id`.
    pub id: Vec<Source>,
    /// Sources of the ordering key, the first present one wins; default none: no ordering.
    pub key: Vec<Source>,
    /// Namespace of ids.
    pub scope: Scope,
    /// What happens without an id.
    pub on_missing_id: OnMissingId,
}

impl Default for IdentityRules {
    fn default() -> Self {
        Self {
            id: vec![Source::MessageId],
            key: Vec::new(),
            scope: Scope::default(),
            on_missing_id: OnMissingId::default(),
        }
    }
}
