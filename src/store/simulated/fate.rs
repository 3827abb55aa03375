//! What becomes of each commit of a simulated disk, and who decides it: a witness, or a script.

use std::sync::Arc;
use std::time::Duration;

use super::super::backend::StoreError;
use super::{Op, SimulatedDisk, State, apply, failed};

#[cfg(feature = "simulation")]
use super::Rows;

/// Sees the rows of each commit in the last moment before they are durable, and decides.
pub(crate) type Witness = Arc<dyn Fn(&[Op]) -> Fate + Send + Sync>;

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Durable,
    /// The power is cut and the commit is gone; nobody is told anything any more.
    CutBefore,
    /// It is durable, and then the power is cut before anybody is told.
    CutAfter,
    /// The sync fails; whether the commit is there in the next life is not said.
    #[cfg(feature = "simulation")]
    Failed {
        /// It is there.
        is_durable: bool,
    },
}

/// Decides about each commit in the place of a witness, and learns what became of it.
#[cfg(feature = "simulation")]
pub(crate) trait Script: Send + Sync {
    /// A batch is written over these rows; gives how long its sync takes. The disk is locked.
    fn written(&self, rows: &Rows, ops: &[Op]) -> Duration;

    /// Its sync is over.
    fn fate(&self) -> Fate;

    /// The worker asks how large its files are, and is told this; so much of it is in blocks. The disk is locked.
    fn sized(&self, bytes: u64, in_blocks: u64);

    /// The fate has come to pass, and nobody else has been told.
    fn ended(&self, fate: Fate);
}

/// Decides about a commit.
pub(super) type Decide = Box<dyn FnOnce(&[Op]) -> Fate + Send>;

impl State {
    pub(super) fn delay(&self, ops: &[Op]) -> Duration {
        #[cfg(feature = "simulation")]
        if let Some(script) = &self.script {
            return script.written(&self.current, ops);
        }
        let _ = ops;
        self.sync_delay
    }

    pub(super) fn decide(&self) -> Decide {
        #[cfg(feature = "simulation")]
        if let Some(script) = self.script.clone() {
            return Box::new(move |_| script.fate());
        }
        match self.witness.clone() {
            Some(witness) => Box::new(move |ops| witness(ops)),
            None => Box::new(|_| Fate::Durable),
        }
    }
}

impl SimulatedDisk {
    /// Does to the commit what was decided; gives whether nobody is to be told.
    pub(super) fn meet(&self, life: u64, fate: Fate, ops: &[Op]) -> Result<bool, StoreError> {
        let mut state = self.lock();
        if state.life != life {
            return Err(failed("the power was cut"));
        }
        state.under_way = None;
        let (is_durable, mut is_cut, mut has_failed) = match fate {
            Fate::Durable => (!state.failing, false, state.failing),
            Fate::CutBefore => (false, true, false),
            Fate::CutAfter => (!state.failing, true, state.failing),
            #[cfg(feature = "simulation")]
            Fate::Failed { is_durable } => (is_durable, false, true),
        };
        if is_durable {
            apply(&mut state.durable, ops);
        }
        state.syncs += u64::from(is_durable && !has_failed);
        #[cfg(feature = "simulation")]
        let script = state.script.clone();
        drop(state);
        is_cut &= !has_failed;
        if is_cut {
            self.cut();
        }
        #[cfg(feature = "simulation")]
        if let Some(script) = script {
            script.ended(fate);
            // Whoever was told may have cut the power.
            has_failed |= !is_cut && self.lock().life != life;
        }
        if has_failed {
            return Err(failed("fdatasync: Input/output error"));
        }
        Ok(is_cut)
    }
}
