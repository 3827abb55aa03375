//! Actors and the keys that are ready for them: who takes which, who rests, who is called.
//!
//! Under the lock of [`Queue`], as mailboxes and crew change together: a key that becomes ready meets an actor that is
//! awake, or calls one. Starts no task: the consumer owns actors and starts those that are missing.

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::admission::{ActorKey, Admitted};
use super::crew::Call;
use super::queue::Queue;

/// What an actor that looks for a key does next.
pub(crate) enum Look {
    /// Work on this message's key.
    At(Box<Admitted>),
    /// Wait to be called.
    Rest,
    End,
}

impl Queue {
    /// A key for an actor that has none.
    pub(crate) fn look(&self) -> Look {
        let mut dispatch = self.lock();
        if dispatch.crew.may_look() {
            if let Some(first) = dispatch.mailboxes.take_ready() {
                return Look::At(first);
            }
            dispatch.crew.found_none();
        }
        if dispatch.crew.rests() { Look::Rest } else { Look::End }
    }

    /// An actor that works waits: another one looks for keys meanwhile.
    pub(crate) fn actor_waits(&self) {
        let mut dispatch = self.lock();
        dispatch.crew.waits();
        if dispatch.mailboxes.has_ready() {
            let call = dispatch.crew.call();
            drop(dispatch);
            self.answer(call);
        }
    }

    pub(crate) fn actor_goes_on(&self) {
        self.lock().crew.goes_on();
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.lock().mailboxes.has_ready()
    }

    /// Calls one more actor if a key was ready that long ago already: a handler may block its thread.
    pub(crate) fn relieve_actors(&self, ready_since: Instant) {
        let mut dispatch = self.lock();
        if dispatch.mailboxes.is_ready_since(ready_since) {
            let call = dispatch.crew.relieve();
            drop(dispatch);
            self.answer(call);
        }
    }

    pub(super) fn answer(&self, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Resting => self.called.add_permits(1),
            Call::New => self.short_of_actors.notify_one(),
        }
    }

    /// How many actors are to be started.
    pub(crate) fn actors_to_start(&self) -> usize {
        self.lock().crew.take_starting()
    }

    /// Sends those who rest away: an actor without a key ends from now on.
    pub(crate) fn dismiss_actors(&self) {
        self.lock().crew.dismiss();
        self.called.close();
    }

    /// The turn of an actor is over, before this next message of its key: if other keys wait, it gives its own back; if
    /// not, it gets the message back.
    pub(crate) fn turn_over(&self, next: Box<Admitted>) -> Option<Box<Admitted>> {
        let mut dispatch = self.lock();
        if !dispatch.mailboxes.has_ready() {
            return Some(next);
        }
        dispatch.mailboxes.put_back(next, Instant::now());
        None
    }

    /// The next message of the key; `None` if there is none, and then it is no longer the caller's.
    pub(crate) fn next(&self, key: &ActorKey) -> Option<Box<Admitted>> {
        self.lock().mailboxes.next(key)
    }

    /// The next message of the key, for an actor that goes on without one too.
    pub(crate) fn next_waiting(&self, key: &ActorKey) -> Option<Box<Admitted>> {
        self.lock().mailboxes.next_waiting(key)
    }
}

/// Threads that run actors.
pub(super) fn threads() -> usize {
    Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}
