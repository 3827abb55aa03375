//! How long a group stays open: no longer than it takes to see what waits, unless others are on their way.
//!
//! A group costs the same processor time whatever is in it, several hundred microseconds. So where many commits come,
//! two groups begin some time apart; on a disk whose sync takes as long they do so anyway. Nobody waits for what
//! cannot come: where few commits come at a time, where enough wait already, or where the broker sends nothing more
//! before an ack, a group closes at once. Looks into no commit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::committer::Committer;

/// Time between the beginnings of two groups where many commits come.
const APART: Duration = Duration::from_millis(3);

/// Commits of the last group that are many: fewer came one by one, and a wait would be for nothing.
const MANY: usize = 8;

/// Commits that make a group cheap for each of them, so that it waits for no more.
pub(super) const ENOUGH: usize = 512;

/// What those who hand in commits know of those that are to come.
#[derive(Debug, Default)]
pub(crate) struct Company {
    /// Queues of which the broker sends nothing more before an ack.
    full_windows: AtomicUsize,
    /// Whether a group waits for more.
    is_open: AtomicBool,
    closed: Notify,
}

impl Company {
    pub(crate) fn window_filled(&self) {
        self.full_windows.fetch_add(1, Ordering::Relaxed);
        self.closes();
    }

    pub(crate) fn window_opened(&self) {
        self.full_windows.fetch_sub(1, Ordering::Relaxed);
    }

    /// The group that gathers waits no longer.
    pub(super) fn closes(&self) {
        if self.is_open.swap(false, Ordering::AcqRel) {
            self.closed.notify_waiters();
        }
    }

    pub(super) fn opens(&self) -> Notified<'_> {
        let closed = self.closed.notified();
        self.is_open.store(true, Ordering::Release);
        closed
    }
}

/// When the group before began, and how many it was told of.
#[derive(Debug)]
pub(super) struct Gathering {
    begun: Instant,
    commits: usize,
}

impl Gathering {
    pub(super) const fn new(now: Instant) -> Self {
        Self { begun: now, commits: 0 }
    }

    /// Until when the next group gathers; `None` if it closes at once.
    pub(super) fn until(&self, company: &Company, waiting: usize) -> Option<Instant> {
        let waits = self.commits >= MANY
            && waiting < ENOUGH
            && company.full_windows.load(Ordering::Relaxed) == 0;
        waits.then(|| self.begun + APART)
    }

    /// A group of so many commits begins.
    pub(super) const fn begin(&mut self, now: Instant, commits: usize) {
        *self = Self { begun: now, commits };
    }
}

impl Committer {
    /// Waits for more commits, if more are worth a wait.
    pub(super) async fn gather(&mut self, stopping: &CancellationToken) {
        let company = &self.shared.company;
        let closed = company.opens();
        let waiting = self.waiting.len() + self.commits.len();
        let Some(until) = self.gathering.until(company, waiting) else { return };
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = closed => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(commits: usize) -> (Gathering, Instant) {
        let now = Instant::now();
        let mut gathering = Gathering::new(now);
        gathering.begin(now, commits);
        (gathering, now + APART)
    }

    #[test]
    fn a_group_waits_only_where_many_commits_come() {
        let company = Company::default();
        let (few, _) = after(MANY - 1);
        assert_eq!(few.until(&company, 1), None);
        let (many, apart) = after(MANY);
        assert_eq!(many.until(&company, 1), Some(apart));
        assert_eq!(many.until(&company, ENOUGH), None, "enough are there");
    }

    #[test]
    fn nobody_waits_while_a_broker_waits_for_acks() {
        let company = Company::default();
        let (many, apart) = after(MANY);
        company.window_filled();
        company.window_filled();
        company.window_opened();
        assert_eq!(many.until(&company, 1), None, "one queue's window is full");
        company.window_opened();
        assert_eq!(many.until(&company, 1), Some(apart));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_gathers_closes_when_a_window_fills() {
        let company = Company::default();
        company.closes();
        let closed = company.opens();
        company.window_filled();
        let waited = tokio::time::timeout(APART, closed).await;
        assert!(waited.is_ok(), "it was told");
    }
}
