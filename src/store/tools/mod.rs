//! Looks at a whole store while no worker has it: counts, checks, copies, corrections.
//!
//! Reading is row by row and by the engine, not through [`Store::open`](super::Store): a store that a worker refuses
//! can still be looked at. Nothing here is on a message's way.

mod chunks;
mod compact;
mod export;
mod forget;
mod import;
mod journal;
mod latest;
mod line;
mod names;
mod reader;
mod rebuild;
#[cfg(feature = "worker")]
mod reconcile;
mod record_line;
mod restore;
mod row;
mod stats;
mod text;
mod values;
mod verify;

pub use self::compact::{Compacted, compact};
pub use self::export::{ExportError, Exported, export};
pub use self::forget::{ForgetError, ForgetRequest, Forgotten, forget};
pub use self::import::{ImportError, Imported, import};
#[cfg(feature = "worker")]
pub(crate) use self::reader::is_store;
#[cfg(feature = "worker")]
pub(crate) use self::reconcile::{Met, Reconciliation};
pub use self::stats::{QueueStats, StoreStats, stats};
pub use self::verify::{Verified, verify};

/// One thing in a store that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The row's key in the engine, or where it should be.
    pub key: Vec<u8>,
    /// Which row that is.
    pub row: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Damage {
    fn new(key: &[u8], problem: impl Into<String>) -> Self {
        Self { key: key.to_vec(), row: row::name(key), problem: problem.into() }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.row, self.problem)
    }
}

/// What is wrong with one row, if anything is.
#[cfg(test)]
pub(super) fn row_damage(key: &[u8], value: &[u8]) -> Option<Damage> {
    row::decode(key, value).err().map(|problem| Damage::new(key, problem))
}

/// Is told how a long look at a store goes; `()` does not listen.
pub trait Watch: Send {
    /// So many rows or lines are done.
    fn progress(&mut self, done: u64) {
        let _ = done;
    }

    /// A damage was found; the look goes on.
    fn damaged(&mut self, damage: &Damage) {
        let _ = damage;
    }
}

impl Watch for () {}
