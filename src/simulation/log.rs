//! Where a run writes its history; deaf to whatever a dead process still does.
//!
//! A process that was killed goes on until its tasks are dropped, a few turns later: nobody outside may see that. So an
//! event of a life that is over is not written. Judges nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::history::{Entry, Event, History};
use crate::clock::duration_ms;

/// The history that is being written; clones are handles to the same one.
#[derive(Clone)]
pub(super) struct Log {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// Lives that are over.
    dead: BTreeSet<u32>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Arc::default() }
    }

    /// When the run began.
    pub(super) const fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn put(&self, event: Event) {
        let at_ms = duration_ms(self.started.elapsed());
        self.lock().entries.push(Entry { at_ms, event });
    }

    /// Writes what a life does, unless it is over.
    pub(super) fn put_of(&self, life: u32, event: Event) {
        if !self.is_dead(life) {
            self.put(event);
        }
    }

    pub(super) fn is_dead(&self, life: u32) -> bool {
        self.lock().dead.contains(&life)
    }

    /// The life is over; gives whether it was not before.
    pub(super) fn end(&self, life: u32) -> bool {
        self.lock().dead.insert(life)
    }

    pub(super) fn take(&self) -> History {
        History { entries: std::mem::take(&mut self.lock().entries) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
