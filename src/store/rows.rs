//! The rows beside the records: state of keys, steps, outgoing messages, watermarks, and values in pieces.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::QueueId;
use crate::identity::Identity;

/// Most bytes of a value that lies in its row; a longer one is spilled into pieces.
pub(crate) const INLINE_BYTES_MAX: usize = 2560;

/// A value of any size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stored {
    /// In the row itself.
    Inline(Bytes),
    /// In pieces, durable before the row that refers to them.
    Spilled(Spilled),
}

/// A value that lies in pieces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Spilled {
    /// Never given twice in one store: the epoch in the upper half, a rising number in the lower.
    pub(crate) id: u64,
    pub(crate) bytes: u64,
}

/// Whose state: a queue and a hash of the ordering key, keyed as identities are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct KeyId {
    pub(crate) queue: QueueId,
    pub(crate) hash: [u8; 16],
}

/// The state of one key, as it is in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyState {
    /// Name and version of the type, and the encoded value; `None` if only `latest` is known.
    pub(crate) value: Option<StateValue>,
    /// The highest version that a message of the key has carried (`Context::is_stale`).
    pub(crate) latest: Option<u64>,
}

/// An encoded state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateValue {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) bytes: Bytes,
    /// Where it lies if it is spilled; `None` if it is inline or not written yet.
    pub(crate) spilled: Option<Spilled>,
}

/// A step of a message that has no outcome, or is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRow {
    pub(crate) queue: QueueId,
    pub(crate) name: String,
    /// `None`: begun, and its end is not known.
    pub(crate) result: Option<Stored>,
    pub(crate) updated_at_ms: u64,
}

/// What one message sends, until the broker has confirmed all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutgoingRow {
    pub(crate) identity: Identity,
    /// Of which queue and key the message was; one without a key has its identity there.
    pub(crate) key: KeyId,
    /// A postcard `Vec<Message>`.
    pub(crate) messages: Stored,
}

/// What a handler returned, with a versioned checksum of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResultRow {
    /// How `checksum` was made; 1 is the first eight bytes of BLAKE3.
    pub(crate) signature: u8,
    pub(crate) checksum: [u8; 8],
    pub(crate) content_type: Option<String>,
    pub(crate) body: Stored,
}

/// The state that a commit leaves behind; kept in memory until it is durable.
pub(crate) type SharedState = Option<Arc<KeyState>>;

impl Stored {
    /// Where it lies, if not in the row.
    pub(super) const fn spilled(&self) -> Option<Spilled> {
        match self {
            Self::Inline(_) => None,
            Self::Spilled(spilled) => Some(*spilled),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:032x} of queue {}", u128::from_be_bytes(self.hash), self.queue.0)
    }
}
