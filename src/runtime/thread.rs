//! An actor and the thread that it has: told of when the work waits, and given to others.
//!
//! What a task wakes may be kept for that task's own thread, so a task that goes on for long, or whose handler blocks,
//! must let others run first. Knows no message.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use super::queue::Queue;

/// Tells the queue while the work waits, so that another actor looks for keys.
pub(super) async fn watched<T>(queue: &Queue, mut work: Pin<&mut impl Future<Output = T>>) -> T {
    let mut waits = false;
    poll_fn(|cx| {
        if waits {
            queue.actor_goes_on();
        }
        let polled = work.as_mut().poll(cx);
        waits = polled.is_pending();
        if waits {
            queue.actor_waits();
        }
        polled
    })
    .await
}

/// Goes to the end of the line of tasks, from where any thread may take it.
///
/// tokio's `yield_now` keeps a task for its own thread, and with it a key behind a handler that blocks that thread.
pub(super) async fn let_others_run() {
    let mut has_run = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_run, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
