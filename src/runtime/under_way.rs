//! Commits that were handed in and have not settled: counted, so that a drain can wait for them.
//!
//! A commit is under way until its guard is dropped: when it and all that it sends is settled, or lost with the store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

use super::queue::Queue;

#[derive(Debug, Default)]
pub(crate) struct CommitsUnderWay {
    count: AtomicUsize,
    settled: Notify,
}

impl Queue {
    /// Counts a commit until the guard is dropped, told or not.
    pub(crate) fn count_commit(self: &Arc<Self>) -> CommitGuard {
        self.commits.count.fetch_add(1, Ordering::AcqRel);
        CommitGuard(Some(Arc::downgrade(self)))
    }

    fn commit_ended(&self) {
        if self.commits.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.commits.settled.notify_waiters();
        }
    }

    /// Waits until every commit that was handed in has settled, or is lost with the store or given up.
    ///
    /// What a commit sends is confirmed by then.
    pub(crate) async fn commits_settled(&self) {
        loop {
            let settled = self.commits.settled.notified();
            if self.commits.count.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.await;
        }
    }
}

/// A commit on its way, and what it sends.
///
/// Weak: a commit that a dying committer left in its channel would keep the queue, the queue the store, and the store
/// the channel.
pub(crate) struct CommitGuard(Option<Weak<Queue>>);

impl CommitGuard {
    /// Settles what was committed, and counts it no more; does nothing if the worker is gone, and with it every claim
    /// and every channel.
    pub(crate) fn settle(mut self, settle: impl FnOnce(&Arc<Queue>)) {
        if let Some(queue) = self.take() {
            settle(&queue);
            queue.commit_ended();
        }
    }

    /// `None` if the worker is gone; for what is committed next, and is counted with it.
    pub(crate) fn queue(&self) -> Option<Arc<Queue>> {
        self.0.as_ref()?.upgrade()
    }

    fn take(&mut self) -> Option<Arc<Queue>> {
        self.0.take()?.upgrade()
    }
}

impl Drop for CommitGuard {
    fn drop(&mut self) {
        if let Some(queue) = self.take() {
            queue.commit_ended();
        }
    }
}
