//! The one fault of a run: at which commit or publish it strikes, and what it hit.
//!
//! Counts commits and publishes from the start of the run. A fault strikes once, or twice if it says so; after a crash
//! nobody of the struck worker is told anything, and the bed is woken to bury it. Does not restart anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::broker::MemoryBroker;
use crate::message::Message;
use crate::store::{Fate, Op};

/// What goes wrong, and at which commit or publish, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A crash in the last moment before the commit is durable.
    BeforeCommit(u64),
    /// A crash when the commit is durable and nobody has been told.
    AfterCommit(u64),
    /// The same, and another crash before the first commit of the next worker behind its opening is durable.
    AfterCommitAndAgain(u64),
    /// The connections to the broker are lost while the commit is on its way.
    LostAtCommit(u64),
    /// A crash when the broker has the messages and their sender has not been told.
    AfterPublish(u64),
}

/// What a fault struck.
#[derive(Debug)]
pub(super) enum Struck {
    Commit(Vec<Op>),
    Publish(Vec<Arc<Message>>),
}

/// Counts, and strikes.
#[derive(Default)]
pub(super) struct Faults {
    state: Mutex<State>,
    crash: Notify,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    commits: u64,
    publishes: u64,
    struck: Vec<Struck>,
    has_crashed: bool,
}

impl Faults {
    pub(super) fn new(fault: Option<Fault>) -> Self {
        Self { state: Mutex::new(State { fault, ..State::default() }), crash: Notify::new() }
    }

    /// A commit is about to be durable.
    pub(super) fn at_commit(&self, ops: &[Op], broker: &MemoryBroker) -> Fate {
        let mut state = self.lock();
        state.commits += 1;
        let commit = state.commits;
        let fate = match state.fault {
            Some(Fault::BeforeCommit(at)) if at == commit => Fate::CutBefore,
            Some(Fault::AfterCommit(at) | Fault::AfterCommitAndAgain(at)) if at == commit => {
                Fate::CutAfter
            }
            // One commit opens the store.
            Some(Fault::AfterCommitAndAgain(at)) if at + 2 == commit => Fate::CutBefore,
            Some(Fault::LostAtCommit(at)) if at == commit => {
                state.struck.push(Struck::Commit(ops.to_vec()));
                drop(state);
                broker.disconnect_all();
                return Fate::Durable;
            }
            Some(_) | None => return Fate::Durable,
        };
        state.struck.push(Struck::Commit(ops.to_vec()));
        self.crash(state);
        fate
    }

    /// The broker has taken these; `true` if that is never told.
    pub(super) fn at_publish(&self, messages: &[Arc<Message>]) -> bool {
        let mut state = self.lock();
        state.publishes += 1;
        let strikes = state.fault == Some(Fault::AfterPublish(state.publishes));
        if strikes {
            state.struck.push(Struck::Publish(messages.to_vec()));
            self.crash(state);
        }
        strikes
    }

    /// Commits and publishes so far.
    pub(super) fn counted(&self) -> (u64, u64) {
        let state = self.lock();
        (state.commits, state.publishes)
    }

    /// Whether the fault found what it was to strike at.
    pub(super) fn has_struck(&self) -> bool {
        !self.lock().struck.is_empty()
    }

    /// What the fault struck, in order.
    pub(super) fn take_struck(&self) -> Vec<Struck> {
        std::mem::take(&mut self.lock().struck)
    }

    /// Waits for the crash.
    pub(super) async fn crashed(&self) {
        while !self.lock().has_crashed {
            self.crash.notified().await;
        }
    }

    /// The crash is over: a new worker can start.
    pub(super) fn recover(&self) {
        self.lock().has_crashed = false;
    }

    fn crash(&self, mut state: MutexGuard<'_, State>) {
        state.has_crashed = true;
        drop(state);
        self.crash.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
