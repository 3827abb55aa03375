//! How much of a queue is in work: messages, handlers, bytes, and the age of the oldest delivery.
//!
//! Changes none of it; gives back the memory that more of it took. The bytes are also kept where the consumer sees them
//! without a lock, and whoever waits for fewer is woken.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::claims::Oldest;
use super::queue::Queue;
use crate::message::Message;

/// Bytes of all messages in work, against their limit.
#[derive(Debug)]
pub(crate) struct InFlight {
    bytes: AtomicUsize,
    bytes_max: usize,
    fits_again: Notify,
}

impl InFlight {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), bytes_max, fits_again: Notify::new() }
    }

    /// By the one who has the lock of what is counted.
    pub(super) fn set(&self, bytes: usize) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        if before >= self.bytes_max && bytes < self.bytes_max {
            self.fits_again.notify_one();
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn is_too_much(&self) -> bool {
        self.bytes() >= self.bytes_max
    }

    /// Waits until it is no longer too much, or a little longer ago was.
    pub(crate) async fn fits_again(&self) {
        self.fits_again.notified().await;
    }
}

impl Queue {
    /// Deliveries that wait for their key, a free handler or a retry, and handlers that run.
    pub(crate) fn load(&self) -> (usize, usize) {
        let running =
            self.options.concurrency.get().saturating_sub(self.permits.available_permits());
        (self.claimed().saturating_sub(running), running)
    }

    /// Messages in work.
    pub(crate) fn claimed(&self) -> usize {
        self.lock().claims.len()
    }

    /// Gives back memory that is not needed any more.
    pub(crate) fn give_back(&self) {
        let mut dispatch = self.lock();
        dispatch.claims.give_back();
        dispatch.mailboxes.give_back();
    }

    /// The oldest delivery of a generation that is not settled.
    pub(crate) fn oldest(&self, generation: u32) -> Option<Oldest> {
        self.lock().claims.oldest(generation)
    }

    /// The id of a message, for people.
    pub(crate) fn id_of(&self, message: &Message) -> Option<String> {
        let (id, _) = self.admission.resolver.resolve(message).id.ok()?;
        Some(id.to_string())
    }
}
