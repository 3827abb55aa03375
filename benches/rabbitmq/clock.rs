//! One clock for all processes of the bench: the system's monotonic one, which nobody sets.

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine started, about.
pub(crate) fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
