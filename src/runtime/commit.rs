//! Commits that end a message: what becomes durable, and what is settled when it is.
//!
//! The claim, and the lock of a shared identity, end with the proof and not before. A commit that is lost with the
//! store settles nothing.

use std::sync::Arc;

use tokio::time::Instant;

use super::admission::Admitted;
use super::queue::Queue;
use crate::identity::Identity;
use crate::store::{Change, Commit, Outcome, Record};
use crate::telemetry::QueueMetrics;

/// Commits a message whose handler has finished.
pub(crate) async fn done(queue: &Arc<Queue>, message: Box<Admitted>, attempts: u32) {
    let record = record(&message, message.identity, attempts, Outcome::Done);
    let has_row = queue.store.attempts(message.identity).is_some();
    let rows = if has_row { vec![Change::RemoveAttempts(message.identity)] } else { Vec::new() };
    hand_in(queue, message, Some(record), rows, |metrics| metrics.done.increment(1)).await;
}

/// Commits what ends a message in any other way.
pub(crate) async fn settled(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    record: Option<Record>,
    rows: Vec<Change>,
) {
    hand_in(queue, message, record, rows, |_| {}).await;
}

/// The record of a message under an identity, which for a conflict is not its own.
pub(crate) fn record(
    message: &Admitted,
    identity: Identity,
    attempts: u32,
    outcome: Outcome,
) -> Record {
    Record { identity, fingerprint: message.fingerprint, attempts, outcome }
}

async fn hand_in(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    record: Option<Record>,
    rows: Vec<Change>,
    count: fn(&QueueMetrics),
) {
    let Admitted { identity, shared, .. } = *message;
    let counted = queue.count_commit();
    let commit = Commit {
        queue: queue.id,
        record,
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| {
            if let Some(queue) = counted.queue() {
                count(&queue.metrics);
                queue.finish(identity, proof);
            }
            drop(shared);
        }),
    };
    queue.store.commit(commit).await;
}
