//! What follows from an end: whoever sent it is told, and its row in the store goes.
//!
//! Gathers the commits that follow until they are handed in. Those who are told settle with commits of their own;
//! nobody waits for the removal of a row, so removals rest a moment and share a sync.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Entry;
use super::lanes::LaneId;
use super::{End, OnEnd, Shared};
use crate::store::{Change, Commit, Records, Store};

/// How long a removal rests: alone it would cost a sync of its own. A crash in that time sends some messages again,
/// under their ids.
const REMOVALS_REST: Duration = Duration::from_millis(20);

/// Removals that rest at most.
const REMOVALS_MAX: usize = 64;

pub(super) struct Ends {
    shared: Arc<Shared>,
    store: Store,
    /// What is to be handed in, as somebody waits for it.
    commits: Vec<Commit>,
    /// Removals of rows, for which nobody waits, and until when they rest.
    removals: Vec<Commit>,
    rest_until: Option<Instant>,
}

impl Ends {
    pub(super) fn new(shared: Arc<Shared>, store: Store) -> Self {
        Self { shared, store, commits: Vec::new(), removals: Vec::new(), rest_until: None }
    }

    pub(super) fn end(&mut self, lane: LaneId, entry: Entry, end: End) {
        let told: Vec<OnEnd> = match (entry.on_end, entry.row) {
            (Some(on_end), _) => vec![on_end],
            (None, Some(identity)) => self.shared.ended(identity, end),
            (None, None) => Vec::new(),
        };
        if end == End::Returned
            && let Some(identity) = entry.row
        {
            self.shared.give_up(identity);
        }
        for on_end in told {
            self.commits.extend(on_end(end));
        }
        if end == End::Sent
            && let Some(identity) = entry.row
        {
            let rows = self.store.sent(identity);
            if !rows.is_empty() {
                self.removals.push(removal(lane, rows));
                self.rest_until.get_or_insert_with(|| Instant::now() + REMOVALS_REST);
            }
        }
    }

    /// When the removals are to be handed in, if there are any.
    pub(super) const fn next_due(&self) -> Option<Instant> {
        self.rest_until
    }

    /// Hands the store what has been gathered, and the removals when they have rested or are many.
    pub(super) async fn hand_in(&mut self) {
        let have_rested = self.rest_until.is_some_and(|until| Instant::now() >= until);
        if have_rested || self.removals.len() >= REMOVALS_MAX {
            self.end_rest();
        }
        self.hand_in_commits().await;
    }

    /// Hands the store all of it.
    pub(super) async fn hand_in_all(&mut self) {
        self.end_rest();
        self.hand_in_commits().await;
    }

    fn end_rest(&mut self) {
        self.rest_until = None;
        self.commits.append(&mut self.removals);
    }

    async fn hand_in_commits(&mut self) {
        for commit in self.commits.drain(..) {
            self.store.commit(commit).await;
        }
    }
}

/// Each in a commit of its own, which the committer puts together with others as they fit.
fn removal(lane: LaneId, rows: Vec<Change>) -> Commit {
    Commit {
        queue: lane.0.queue,
        records: Records::new(),
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(drop),
    }
}
