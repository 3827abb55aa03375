//! Bugs planted on purpose, one at a time, to test the tests: each must be found by the simulation.
//!
//! A build without the feature `simulation` has none of them: the question is answered `false` at compile time. With
//! it, a simulation plants one for its own thread. Where a bug would be made, the code asks [`is`].

/// A bug that a runtime like this one could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "named by tests only"))]
pub enum Bug {
    /// A message is settled when its commit is written, not when it is synced.
    AckBeforeSync,
    /// A `multiple` ack names the tag behind the finished prefix.
    AckWindowOffByOne,
    /// A message is on record as Done before its handler runs.
    MarkBeforeRun,
    /// A known id with another body is taken for a duplicate.
    FingerprintNotCompared,
    /// A lost connection leaves the claims of what waited behind.
    ClaimNotReleased,
    /// A block of outgoing messages goes with the first of them that is confirmed.
    OutgoingRemovedUnsent,
    /// Outgoing messages are sent, and not in the commit.
    OutgoingNotStored,
    /// A tag of a lost connection is acked on the next one.
    StaleTagAcked,
    /// A store is opened under its old epoch.
    EpochNotRaised,
    /// A redelivered message runs before its attempt is durable.
    RunNotRecordedBefore,
    /// A failed attempt is not made durable.
    FailureNotRecorded,
    /// A twin of a message that is being worked on is worked on too.
    TwinNotJoined,
    /// The tag of a twin that joins is forgotten.
    TwinTagLost,
    /// A key that has an actor gets another one.
    KeyNotSerialized,
    /// What its key sends later overtakes a message that is held.
    HeldIsOvertaken,
    /// What the broker does not take counts as sent.
    RefusalCountsAsSent,
    /// A dead letter that is published again has another id.
    LetterIdChanges,
    /// What an earlier process left unsent is not sent.
    UnsentForgotten,
    /// A duplicate is settled while what its message sends is unconfirmed.
    DuplicateSettledUnsent,
    /// Records are removed at half of their retention.
    CollectedEarly,
    /// After a failed sync all goes on.
    FailedSyncIgnored,
    /// The commits of a group are written in reverse.
    CommitsReordered,
    /// The effects are durable in one commit, the record in the next.
    EffectsInCommitOfTheirOwn,
    /// The next message of a key finds the state that the one before found.
    StateNotRemembered,
    /// A step whose result is on record is called again.
    StepCalledAgain,
    /// An opened store does not know its records.
    IndexNotRebuilt,
    /// New runs start while the worker drains.
    RunInDrain,
    /// A message of two queues that share ids runs in both at a time.
    SharedIdentityNotLocked,
    /// All messages of a queue are kept for one time, whatever their class is.
    ClassRetentionIgnored,
    /// More is asked for than the prefetch allows.
    PrefetchIgnored,
    /// A full store does not stop intake.
    FullStoreTakesIn,
    /// A step that must not be called twice is called before its intent is durable.
    IntentNotRecorded,
    /// An attempt that fails while the breaker is open is counted.
    AttemptBurntInOutage,
}

/// Whether this bug is planted here.
#[inline]
#[cfg(feature = "simulation")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted here: never.
#[inline]
#[cfg(not(feature = "simulation"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(feature = "simulation")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(feature = "simulation")]
impl Bug {
    /// Every one of them.
    pub const ALL: [Self; 33] = [
        Self::AckBeforeSync,
        Self::AckWindowOffByOne,
        Self::MarkBeforeRun,
        Self::FingerprintNotCompared,
        Self::ClaimNotReleased,
        Self::OutgoingRemovedUnsent,
        Self::OutgoingNotStored,
        Self::StaleTagAcked,
        Self::EpochNotRaised,
        Self::RunNotRecordedBefore,
        Self::FailureNotRecorded,
        Self::TwinNotJoined,
        Self::TwinTagLost,
        Self::KeyNotSerialized,
        Self::HeldIsOvertaken,
        Self::RefusalCountsAsSent,
        Self::LetterIdChanges,
        Self::UnsentForgotten,
        Self::DuplicateSettledUnsent,
        Self::CollectedEarly,
        Self::FailedSyncIgnored,
        Self::CommitsReordered,
        Self::EffectsInCommitOfTheirOwn,
        Self::StateNotRemembered,
        Self::StepCalledAgain,
        Self::IndexNotRebuilt,
        Self::RunInDrain,
        Self::SharedIdentityNotLocked,
        Self::ClassRetentionIgnored,
        Self::PrefetchIgnored,
        Self::FullStoreTakesIn,
        Self::IntentNotRecorded,
        Self::AttemptBurntInOutage,
    ];
}

/// Plants this bug, or none, for what runs on this thread.
#[cfg(feature = "simulation")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
