//! How a message ended, as a record keeps it and an inspection shows it.
//!
//! Plain data: its encoding is part of the store's format, and its names are part of what users script against.

use serde::{Deserialize, Serialize};

/// Longest error text in a record, in bytes; with the longest id a record still fits a block.
pub(crate) const ERROR_BYTES_MAX: usize = 512;

/// Why a message was dead-lettered; the names are the values of `x-onceward-reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// The body or a header does not decode.
    Decode,
    /// There is no id.
    MissingId,
    /// The id or key is of a wrong type or too long.
    BadId,
    /// The id is known with another body.
    Conflict,
    /// The body is over the limit.
    TooLarge,
    /// The handler said that no attempt can succeed.
    Rejected,
    /// The last attempt failed.
    Exhausted,
    /// The last attempt ended with the process.
    CrashLoop,
    /// The handler's state for the key is over the limit.
    StateTooLarge,
    /// A step was begun, its end is unknown, and an operator has to find out.
    InDoubt,
    /// Its record has expired, or its sequence number is too old to tell whether it was done.
    Expired,
}

impl Reason {
    /// All of them, in order of declaration.
    pub const ALL: [Self; 11] = [
        Self::Decode,
        Self::MissingId,
        Self::BadId,
        Self::Conflict,
        Self::TooLarge,
        Self::Rejected,
        Self::Exhausted,
        Self::CrashLoop,
        Self::StateTooLarge,
        Self::InDoubt,
        Self::Expired,
    ];

    /// The name in headers, metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::MissingId => "missing-id",
            Self::BadId => "bad-id",
            Self::Conflict => "conflict",
            Self::TooLarge => "too-large",
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::CrashLoop => "crash-loop",
            Self::StateTooLarge => "state-too-large",
            Self::InDoubt => "in-doubt",
            Self::Expired => "expired",
        }
    }
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its handler returned `Ok`.
    Done,
    /// It went to the dead-letter queue.
    Dead(Box<DeadNote>),
    /// An operator had it forgotten: its next delivery runs.
    Forgotten(Box<ForgetNote>),
}

/// Who had a message forgotten and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetNote {
    /// Why, as the operator gave it, cut to 512 bytes.
    pub reason: String,
    /// The id.
    pub id: Vec<u8>,
}

/// What is kept of a dead message beside its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadNote {
    /// Why.
    pub reason: Reason,
    /// The last error, cut to 512 bytes.
    pub error: String,
    /// The id as it came, if there was one.
    pub id: Vec<u8>,
    /// When it was first delivered, in milliseconds since 1970.
    pub first_seen_ms: u64,
}
