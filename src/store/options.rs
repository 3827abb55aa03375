//! Where a store is and how large it may grow.

use std::path::PathBuf;

#[cfg(any(test, feature = "testkit"))]
use super::SimulatedDisk;
use super::key::StoreKey;
use crate::clock::Clock;

/// Where the store is and how large it may grow.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Directory, made with mode 0700 if missing; one process at a time.
    pub path: PathBuf,
    /// Memory for pages of the store, in bytes; default 64 MiB; real use is two to three times that.
    pub cache_bytes: u64,
    /// Intake stops before the store's files grow past this, in bytes; default 10 GiB.
    pub size_bytes_max: u64,
    /// The key that a store is encrypted with from its beginning; default none, and then it is not.
    pub key: Option<StoreKey>,
    /// The clock that retention goes by.
    pub clock: Clock,
    /// A disk in memory in the place of `path`.
    #[cfg(any(test, feature = "testkit"))]
    pub simulated: Option<SimulatedDisk>,
}

impl StoreOptions {
    /// The defaults, for a store in this directory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            cache_bytes: 64 << 20,
            size_bytes_max: 10 << 30,
            key: None,
            clock: Clock::default(),
            #[cfg(any(test, feature = "testkit"))]
            simulated: None,
        }
    }
}
