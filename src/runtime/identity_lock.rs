//! One run at a time of an identity that several queues share.
//!
//! Claims belong to a queue. Under the scopes `global` and `header:NAME` the same identity can come in on two queues
//! at once; then the second waits here until the first one's outcome is durable, and finds it on record. A guard is
//! held by the message from before it is judged until its outcome is settled or given up; whoever holds one waits for
//! disk, handler or broker, never for another guard.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::identity::Identity;

/// The identities that are worked on, of all queues whose scope is wider than the queue.
#[derive(Debug, Default)]
pub(crate) struct IdentityLocks {
    held: Mutex<HashSet<Identity>>,
    freed: Notify,
}

impl IdentityLocks {
    /// Takes the identity if nobody works on it.
    pub(crate) fn try_lock(self: &Arc<Self>, identity: Identity) -> Option<IdentityGuard> {
        let is_free = self.held().insert(identity);
        is_free.then(|| IdentityGuard { locks: Arc::clone(self), identity })
    }

    /// Waits until nobody works on the identity.
    ///
    /// Cancel-safe: a dropped wait holds nothing.
    pub(crate) async fn lock(self: &Arc<Self>, identity: Identity) -> IdentityGuard {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(guard) = self.try_lock(identity) {
                return guard;
            }
            freed.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, HashSet<Identity>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees the identity when dropped.
#[derive(Debug)]
pub(crate) struct IdentityGuard {
    locks: Arc<IdentityLocks>,
    identity: Identity,
}

impl Drop for IdentityGuard {
    fn drop(&mut self) {
        self.locks.held().remove(&self.identity);
        self.locks.freed.notify_waiters();
    }
}
