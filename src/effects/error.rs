//! What can be wrong with what a handler asks of its context.
//!
//! By `?` it becomes the handler's error. Some of these no attempt can mend: the runtime finds them in the chain of
//! causes and dead-letters the message at once.

use std::error::Error;

use crate::payload::EncodeError;

/// An effect or a step cannot be had as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EffectError {
    /// The message has no ordering key, and state belongs to a key: configure `key` for the queue.
    #[error("the message has no ordering key, so there is no state: configure a key for its queue")]
    NoKey,
    /// The state of a key belongs to the whole batch: use [`Batch::state`](crate::Batch::state).
    #[error("the state belongs to the whole batch: use the batch's, not the message's")]
    InBatch,
    /// The encoded state is over `max_state`: the message is dead-lettered as `state-too-large`.
    #[error("the state {name} is over the limit of {bytes_max} bytes")]
    StateTooLarge {
        /// Name of the state's type.
        name: &'static str,
        /// The limit.
        bytes_max: usize,
    },
    /// The stored state is of another type or version, or does not decode: run a version that reads it, or give the
    /// type a [`State::migrate`](crate::State::migrate).
    #[error(
        "the stored state {found:?} version {found_version} cannot be read as {name:?} version {version}"
    )]
    StateUnreadable {
        /// Name of the type that was asked for.
        name: &'static str,
        /// Version of the type that was asked for.
        version: u32,
        /// Name of the type that is stored.
        found: String,
        /// Version of the type that is stored.
        found_version: u32,
        /// What went wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The value cannot be encoded: it is no data, such as a map whose keys are no strings in JSON.
    #[error("{what} cannot be encoded")]
    Unencodable {
        /// Which value.
        what: String,
        /// What the encoder said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The result is over `max_result`: the message is dead-lettered as `rejected`.
    #[error("{what} is over the limit of {bytes_max} bytes")]
    ResultTooLarge {
        /// The handler's or which step's.
        what: String,
        /// The limit.
        bytes_max: usize,
    },
    /// All that the message sends is over `max_outgoing`: it is dead-lettered as `rejected`.
    #[error("the outgoing messages of one message are over the limit of {bytes_max} bytes")]
    OutgoingTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// An outgoing message that no broker can take: the message is dead-lettered as `rejected`.
    #[error(
        "an outgoing message for exchange {exchange:?} with routing key {routing_key:?} can never be sent: {reason}"
    )]
    Unsendable {
        /// Its exchange.
        exchange: String,
        /// Its routing key.
        routing_key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A step's name is longer than 255 bytes: the message is dead-lettered as `rejected`.
    #[error("a step's name has {bytes} bytes, the limit is 255")]
    StepNameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// One attempt used a step's name twice: give each step of a message a name of its own.
    #[error("the step {step:?} is used twice in one attempt: each step needs a name of its own")]
    StepTwice {
        /// The name.
        step: String,
    },
    /// The stored result of a step does not decode into the type that is asked for.
    #[error("the stored result of step {step:?} cannot be read")]
    StepUnreadable {
        /// The name.
        step: String,
        /// What the decoder said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A step began and its end is unknown: the message is dead-lettered as `in-doubt`, for an operator to find out.
    #[error(
        "step {step:?} with key {key} was begun before and nobody knows whether it happened: find out; if it did not, forget the message and send it again"
    )]
    InDoubt {
        /// The name.
        step: String,
        /// The key that the other side was given.
        key: String,
    },
    /// Whether a step happened could not be found out yet: another attempt asks again.
    #[error("whether step {step:?} with key {key} happened is not known yet")]
    StillUnknown {
        /// The name.
        step: String,
        /// The key that the other side was given.
        key: String,
    },
    /// The store has failed: the worker is ending, nothing is acknowledged.
    #[error("the store has failed")]
    Stopped,
}

impl EffectError {
    /// Whether another attempt may go better.
    pub(crate) const fn is_transient(&self) -> bool {
        matches!(
            self,
            // The next version of the program may read it.
            Self::StateUnreadable { .. }
                | Self::StepUnreadable { .. }
                | Self::StillUnknown { .. }
                | Self::Stopped
        )
    }

    /// The first one among an error and its causes.
    pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// What became of encoding `what`.
    pub(crate) fn of_encoding(
        error: EncodeError,
        what: impl Into<String>,
        too_large: impl FnOnce() -> Self,
    ) -> Self {
        match error {
            EncodeError::TooLarge => too_large(),
            EncodeError::Unencodable(source) => Self::Unencodable { what: what.into(), source },
        }
    }
}
