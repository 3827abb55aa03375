//! Messages offered by a timetable, whether or not anybody keeps up: an open loop.
//!
//! A thread of its own, so that a busy runtime cannot slow down what it is offered. What is late counts from the moment
//! it was due at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use onceward::{MemoryBroker, Message};
use tokio::time::Instant;

use super::load::QUEUE;

/// How often it is looked at what is due.
const LOOK: Duration = Duration::from_micros(100);

/// Most messages that wait in the broker: behind that the offer waits too, or its memory would be measured.
const WAITING_MAX: usize = 20_000;

/// When which message is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timetable {
    pub(crate) started: Instant,
    pub(crate) per_s: u64,
}

impl Timetable {
    /// A rate that nothing keeps up with: there is always a message waiting.
    pub(crate) const NO_LIMIT_PER_S: u64 = 1_000_000_000;

    /// When the message of this number, from 0, is due.
    pub(crate) fn due(&self, number: u64) -> Instant {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.per_s);
        self.started + Duration::from_nanos(nanos as u64)
    }

    /// How many were due so far.
    fn due_by_now(&self) -> u64 {
        let nanos = self.started.elapsed().as_nanos();
        (nanos * u128::from(self.per_s) / 1_000_000_000) as u64 + 1
    }
}

/// The thread that offers.
pub(crate) struct Offering {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Offering {
    /// Offers what `next` gives, until it gives nothing more or this is stopped.
    pub(crate) fn start(
        broker: MemoryBroker,
        timetable: Timetable,
        mut next: impl FnMut() -> Option<Message> + Send + 'static,
    ) -> Result<Self> {
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = Builder::new().name("offering".to_owned()).spawn({
            let stopped = Arc::clone(&stopped);
            move || {
                let mut published = 0;
                while !stopped.load(Ordering::Relaxed) {
                    let due = timetable.due_by_now() - published;
                    let room = WAITING_MAX.saturating_sub(broker.depth(QUEUE).0);
                    for _ in 0..due.min(room as u64) {
                        let Some(message) = next() else { return published };
                        broker.publish(message);
                        published += 1;
                    }
                    std::thread::sleep(LOOK);
                }
                published
            }
        })?;
        Ok(Self { stopped, thread })
    }

    /// Waits until all is offered; gives how many messages that were.
    pub(crate) async fn all_offered(self) -> Result<u64> {
        while !self.thread.is_finished() {
            tokio::time::sleep(LOOK).await;
        }
        self.stop()
    }

    /// Offers nothing more; gives how many messages were offered.
    pub(crate) fn stop(self) -> Result<u64> {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that offers has panicked"))
    }
}
