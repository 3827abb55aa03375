//! The end of a queue's actors: what runs may finish, what has finished becomes durable, what it sends is confirmed,
//! nothing waits for ever.
//!
//! No new run starts here: actors see the drain before they take their next message. Acks are the settler's. What the
//! broker does not take now is not waited for: the relay gives it up.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::queue::{Queue, TIME_MAX};
use crate::failpoint::{self, Point};
use crate::store::StoreError;

/// How long handlers that were cut off may take to let go: one that blocks its thread is left behind.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// How long commits may take to become durable, and what they send to be confirmed, past the deadline at most.
const COMMIT_GRACE: Duration = Duration::from_secs(5);

/// How an actor ended.
pub(crate) type ActorEnd = Result<Result<(), StoreError>, JoinError>;

/// Lets running handlers finish until the limit, and waits until what they committed has settled.
///
/// Gives how the actors ended; those that were cut off are not among them.
pub(crate) async fn finish(
    queue: &Arc<Queue>,
    actors: &mut JoinSet<Result<(), StoreError>>,
    limit: Duration,
) -> Vec<ActorEnd> {
    failpoint::reached(Point::Draining);
    queue.dismiss_actors();
    let deadline = Instant::now() + limit.min(TIME_MAX);
    let mut ended = Vec::new();
    while !actors.is_empty() {
        tokio::select! {
            biased;
            Some(end) = actors.join_next() => {
                // Of many actors that ended well nothing is kept.
                if !matches!(end, Ok(Ok(()))) {
                    ended.push(end);
                }
                failpoint::reached(Point::Draining);
            }
            () = tokio::time::sleep_until(deadline) => {
                let handlers = actors.len();
                warn!(queue = &*queue.name, handlers, "the drain deadline cuts handlers off");
                if timeout(CUT_GRACE, actors.shutdown()).await.is_err() {
                    warn!(queue = &*queue.name, "a handler blocks its thread and is left behind");
                    actors.detach_all();
                }
            }
        }
    }
    let deadline = deadline.max(Instant::now() + COMMIT_GRACE);
    if timeout_at(deadline, queue.commits_settled()).await.is_err() {
        warn!(
            queue = &*queue.name,
            "the last outcomes are not durable or what they send is not confirmed: they stay unacknowledged"
        );
    }
    failpoint::reached(Point::Draining);
    ended
}
