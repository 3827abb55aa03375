//! A look at one id in the store of a stopped worker.
//!
//! Opens the store as a worker would, so it needs the store for itself; removes and writes nothing but the epoch.

use super::outcome::Outcome;
use super::record::Attempts;
use super::{Store, StoreError, StoreOptions, Watermark};
use crate::identity::{ScopeName, SequenceId};

/// What a store knows of one id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspection {
    /// The message has an outcome.
    Known(Known),
    /// The message was tried and has no outcome yet.
    Unfinished {
        /// Attempts that were started.
        attempts: u32,
        /// When it was first delivered, in milliseconds since 1970.
        first_seen_ms: u64,
    },
    /// It had an outcome, and its record has expired.
    Expired,
    /// Its producer numbers its messages, and the watermark says that it is done; there is no record of it.
    Numbered,
    /// Its producer numbers its messages, and this one is below a gap that was given up: it may have been done.
    Unsure,
    /// There is no trace of it: never delivered, still on its first attempt, or collected.
    Unknown,
}

/// What a store knows of a message that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Known {
    /// How it ended.
    pub outcome: Outcome,
    /// When it did, in milliseconds since 1970.
    pub committed_at_ms: u64,
    /// When its record may be collected, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// Attempts that it took.
    pub attempts: u32,
    /// Keyed hash of type and body: comparable within one store only.
    pub fingerprint: String,
    /// Whether its dead letter still waits for the broker's confirmation.
    pub dead_letter_pending: bool,
}

/// The namespace of an id that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InspectScope<'a> {
    /// The queue of this name.
    Queue(&'a str),
    /// All queues together.
    Global,
    /// One tenant.
    Tenant(&'a [u8]),
}

impl InspectScope<'_> {
    pub(super) fn name(self) -> ScopeName {
        match self {
            Self::Queue(name) => ScopeName::queue(name),
            Self::Global => ScopeName::global(),
            Self::Tenant(name) => ScopeName::tenant(name),
        }
    }
}

/// Looks up one id in the store of a stopped worker.
///
/// # Errors
///
/// [`StoreError::InUse`] if a worker runs on it, and all other ways in which a store does not open. A store that is
/// not there is made; check for its directory first.
pub async fn inspect(
    options: &StoreOptions,
    scope: InspectScope<'_>,
    id: &[u8],
) -> Result<Inspection, StoreError> {
    let (store, _committer, _) = Store::open(options, &[], &|_| {}).await?;
    let identity = store.hash_key().identity(&scope.name(), id);
    let Some(found) = store.lookup(identity).await? else {
        return Ok(match store.attempts(identity) {
            Some(Attempts { started, first_seen_ms, .. }) => {
                Inspection::Unfinished { attempts: started, first_seen_ms }
            }
            None => match numbered(&store, &scope.name(), id) {
                Watermark::Done(_) => Inspection::Numbered,
                Watermark::Unsure => Inspection::Unsure,
                Watermark::New if store.has_expired(identity) => Inspection::Expired,
                Watermark::New => Inspection::Unknown,
            },
        });
    };
    Ok(Inspection::Known(Known {
        outcome: found.record.outcome,
        committed_at_ms: found.committed_at_ms,
        expires_at_ms: found.committed_at_ms.saturating_add(found.retention_ms),
        attempts: found.record.attempts,
        fingerprint: found.record.fingerprint.to_string(),
        dead_letter_pending: store.is_pending(identity),
    }))
}

/// What the watermark of its producer says of an id, if it is one of a numbered message: the producer, a slash, and the
/// number without zeros before it.
pub(super) fn numbered(store: &Store, scope: &ScopeName, id: &[u8]) -> Watermark {
    let mut parts = id.rsplitn(2, |byte| *byte == b'/');
    let (Some(text), Some(producer)) = (parts.next(), parts.next()) else {
        return Watermark::New;
    };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
    match number {
        Some(number) if number.to_string().as_bytes() == text => {
            let producer = store.hash_key().producer(scope, producer);
            store.watermark(SequenceId { producer, number })
        }
        _ => Watermark::New,
    }
}
