//! What a history can be judged by: what was observed, and the options that decide what is right.
//!
//! A predicate claims nothing of what was not observed. Holds no state.

use std::sync::Arc;

use crate::options::{OnConflict, OnExpired, OnUnroutable};

/// What a history can be judged by.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The queues that are consumed; messages in others are not asked about.
    pub queues: Vec<QueueRules>,
    /// What the history shows.
    pub sees: Sees,
    /// Whether intake may stop because the store is full: then not all that is delivered is taken in.
    pub may_be_full: bool,
    /// How long a frame of the worker may be under way to the broker: what it wrote before it was told of a failure
    /// arrives until then.
    pub frame_ms: u64,
    /// How long it may take until a worker has learned of what is in the history, such as a signal.
    pub told_ms: u64,
}

/// The options of a queue, as far as they decide what is right.
#[derive(Clone, Debug)]
pub struct QueueRules {
    /// As in [`Seen::queue`](super::super::history::Seen::queue).
    pub queue: Arc<str>,
    /// Its dead-letter queue.
    pub dead_letter: Arc<str>,
    /// After as many a message is given up; one more is made alone after the end of a process.
    pub max_attempts: u32,
    /// Most unacknowledged deliveries that the worker may ask for.
    pub prefetch: u16,
    /// How long a record is kept, from its commit.
    pub retention_ms: u64,
    /// The same for messages of a class of their own.
    pub retention_ms_by: Vec<(Arc<str>, u64)>,
    /// The breaker opens when so many different messages have failed in a row; `None` if there is none.
    pub breaker_failures: Option<u32>,
    /// What another body under a known id gets.
    pub on_conflict: OnConflict,
    /// What a message gets whose record has expired.
    pub on_expired: OnExpired,
    /// What an outgoing message gets that no queue takes.
    pub on_unroutable: OnUnroutable,
    /// Whether its handler keeps a state by key as [`model`](super::super::model) says.
    pub has_model_state: bool,
    /// Whether it answers: what a message waits for then is in no commit.
    pub replies: bool,
}

impl QueueRules {
    /// The defaults of a queue with this name.
    #[must_use]
    pub fn new(queue: &str) -> Self {
        Self {
            queue: queue.into(),
            dead_letter: format!("{queue}.dead").into(),
            max_attempts: 10,
            prefetch: 500,
            breaker_failures: None,
            retention_ms: 7 * 24 * 60 * 60 * 1000,
            retention_ms_by: Vec::new(),
            on_conflict: OnConflict::default(),
            on_expired: OnExpired::default(),
            on_unroutable: OnUnroutable::default(),
            has_model_state: false,
            replies: false,
        }
    }
}

/// How commits are in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// Not at all.
    Unseen,
    /// Each record once, as an export of the store has it at the end: without times and effects.
    AtRest,
    /// All of them, with their effects, when they happened.
    AsTheyHappened,
}

/// Which events a history has: all of a kind, or none that counts.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a kind of event, and any of them can be missing"
)]
pub struct Sees {
    /// `Accepted`.
    pub accepted: bool,
    /// `Consuming`, `Delivered`, `ChannelClosed`, `Acked`, `AckRefused`.
    pub channels: bool,
    /// `Run` and `End`.
    pub runs: bool,
    /// `Commit` and `Synced`.
    pub commits: Commits,
    /// `Published`.
    pub published: bool,
    /// `Confirmed` and `Returned`.
    pub confirms: bool,
    /// `Opened`, `Exited` and `Crashed`.
    pub lives: bool,
}

impl Sees {
    /// All, as in the simulation.
    pub const ALL: Self = Self {
        accepted: true,
        channels: true,
        runs: true,
        commits: Commits::AsTheyHappened,
        published: true,
        confirms: true,
        lives: true,
    };

    /// Nothing: to be added to.
    pub const NOTHING: Self = Self {
        accepted: false,
        channels: false,
        runs: false,
        commits: Commits::Unseen,
        published: false,
        confirms: false,
        lives: false,
    };

    pub(super) const fn has_effects(&self) -> bool {
        matches!(self.commits, Commits::AsTheyHappened)
    }

    pub(super) const fn has_records(&self) -> bool {
        !matches!(self.commits, Commits::Unseen)
    }
}

impl Default for Sees {
    fn default() -> Self {
        Self::ALL
    }
}
