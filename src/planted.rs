//! Bugs planted on purpose, one at a time, to test the tests: each must be found by the simulation.
//!
//! A build without the feature `simulation` has none of them: the question is answered `false` at compile time. With
//! it, a simulation plants one for its own thread. Where a bug would be made, the code asks [`is`].

/// A bug that a runtime like this one could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "named by tests only"))]
pub enum Bug {
    /// A message is settled when its commit is handed in, not when it is durable.
    AckBeforeSync,
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

/// Plants this bug, or none, for what runs on this thread.
#[cfg(feature = "simulation")]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
