//! The relay: what commits send, published in commit order per key until the broker has confirmed it.
//!
//! Owns every message between the commit that decided it and the broker's confirmation. Of one key one message is under
//! way at a time, so a refusal or a lost connection cannot reorder a key; other keys go on. Nothing is sent that is not
//! durable or still with the broker, and nothing is settled here: whoever sends is told the end, and commits. Bytes are
//! never changed, except into the dead letter of a message that no queue takes.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::identity::Identity;
use crate::message::Message;
use crate::store::{Commit, KeyId};
use crate::telemetry::OutgoingMetrics;

mod ends;
mod entry;
mod flights;
mod holds;
mod lanes;
mod letter;
mod room;
mod task;

pub(crate) use self::letter::{Headers, Letter};
pub(crate) use self::task::{RelayParts, RelayTask};

/// What one commit sends.
pub(crate) struct Outgoing {
    /// Its order is that of this key and the sender's kind: one message of both is under way at a time.
    pub(crate) key: KeyId,
    /// In order; with their final ids, by which they can be published again.
    pub(crate) messages: Vec<Arc<Message>>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) otherwise: Otherwise,
    /// The message whose outgoing row in the store ends with it; none for what is not in the store.
    pub(crate) row: Option<Identity>,
    /// Cancelled when nobody is to send it any more.
    pub(crate) returned: Option<CancellationToken>,
    /// Called once with how it ended, unless the worker ends first: then it is dropped uncalled.
    pub(crate) on_end: OnEnd,
}

/// Who sends: a name for [`Health`](crate::telemetry::Health), and series of its own.
pub(crate) struct Sender {
    pub(crate) queue: Arc<str>,
    pub(crate) kind: Kind,
    /// Under this name its fault is shown.
    pub(crate) part: String,
    pub(crate) metrics: OutgoingMetrics,
}

/// What kind of messages: one kind does not wait for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Message,
    DeadLetter,
}

impl Sender {
    /// The sender of what the handler of a queue publishes.
    pub(crate) fn of_messages(queue: &str) -> Self {
        Self {
            queue: queue.into(),
            kind: Kind::Message,
            part: format!("outgoing messages of queue {queue}"),
            metrics: OutgoingMetrics::new(queue, "message"),
        }
    }

    /// The sender of a queue's dead letters.
    pub(crate) fn of_dead_letters(queue: &str, dead_letter: &str) -> Self {
        Self {
            queue: queue.into(),
            kind: Kind::DeadLetter,
            part: format!("dead-letter queue {dead_letter}"),
            metrics: OutgoingMetrics::new(queue, "dead-letter"),
        }
    }
}

/// What happens to a message that no queue takes or that can never be sent.
///
/// What the broker refuses for now is tried again whatever this says, but for what is to be dropped.
#[derive(Clone, Debug)]
pub(crate) enum Otherwise {
    /// Tried again until it goes.
    Hold,
    /// Goes to this dead-letter queue, as `unroutable`.
    DeadLetter { queue: Arc<str> },
    /// Not sent, and counted: nobody waits for it any more.
    Drop,
    /// This one is tried in its place if it can never be sent as it is; for a single message.
    Instead(Arc<Message>),
}

/// Told how it ended; gives what is to be committed for that, if anything: a commit with at least a record or a row.
pub(crate) type OnEnd = Box<dyn FnOnce(End) -> Option<Commit> + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The broker has confirmed all of it, or what was sent in its place, or it was dropped as its policy says.
    Sent,
    /// Given up: its token was cancelled, or a drain does not wait for what cannot be sent now. What waits for it is to
    /// be released, not settled: the broker delivers it again, and the store still has the outgoing row.
    Returned,
}

/// Takes what commits send; clones are handles to the same relay.
#[derive(Clone)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Relay { .. }")
    }
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Notify,
}

#[derive(Default)]
struct Inbox {
    /// The task is gone: nothing is sent any more.
    closed: bool,
    arrived: Vec<Outgoing>,
    /// What an earlier process left unsent or this one has given up, by the message that sends it.
    unsent: HashMap<Identity, Unsent>,
}

/// Outgoing rows of one message that are not sent.
#[derive(Default)]
struct Unsent {
    /// Those that an earlier process left.
    rows: usize,
    given_up: bool,
    waiting: Vec<OnEnd>,
}

impl Shared {
    /// A row that an earlier process left unsent has ended: whoever waits for it, if it was the last of its message.
    fn ended(&self, identity: Identity, end: End) -> Vec<OnEnd> {
        let mut inbox = self.lock();
        let Some(unsent) = inbox.unsent.get_mut(&identity) else {
            return Vec::new();
        };
        if end == End::Returned {
            // At once: who comes between would wait with those that nobody tells any more.
            unsent.given_up = true;
            return std::mem::take(&mut unsent.waiting);
        }
        unsent.rows = unsent.rows.saturating_sub(1);
        if unsent.rows > 0 || unsent.given_up {
            return Vec::new();
        }
        inbox.unsent.remove(&identity).map_or_else(Vec::new, |unsent| unsent.waiting)
    }

    /// Its row stays in the store: a twin that comes later must not be taken for done with all that it sends.
    fn give_up(&self, identity: Identity) {
        self.lock().unsent.entry(identity).or_default().given_up = true;
    }

    /// Nothing is sent any more: drops, uncalled, what has not arrived at the task.
    fn close(&self) {
        let left = {
            let mut inbox = self.lock();
            inbox.closed = true;
            (std::mem::take(&mut inbox.arrived), std::mem::take(&mut inbox.unsent))
        };
        // Without the lock: what they hold may let go of more.
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    /// Takes it in, in the order of these calls; never waits.
    ///
    /// Bounded by what is in flight: its claim is held until the end.
    pub(crate) fn send(&self, outgoing: Outgoing) {
        let mut inbox = self.shared.lock();
        if inbox.closed {
            // Dropped without the lock: what it holds may let go of more.
            drop(inbox);
            return drop(outgoing);
        }
        let was_empty = inbox.arrived.is_empty();
        inbox.arrived.push(outgoing);
        drop(inbox);
        if was_empty {
            self.shared.arrived.notify_one();
        }
    }

    /// Calls back when what an earlier process left unsent for this identity is confirmed; gives the call back if there
    /// is nothing.
    ///
    /// To be asked before every duplicate is settled. Calls at once, with [`End::Returned`], if that was given up.
    pub(crate) fn wait(&self, identity: Identity, on_end: OnEnd) -> Option<OnEnd> {
        let mut inbox = self.shared.lock();
        if inbox.closed {
            drop(inbox);
            drop(on_end);
            return None;
        }
        match inbox.unsent.get_mut(&identity) {
            None => Some(on_end),
            Some(unsent) if !unsent.given_up => {
                unsent.waiting.push(on_end);
                None
            }
            Some(_) => {
                drop(inbox);
                // Nothing is committed for what was given up.
                drop(on_end(End::Returned));
                None
            }
        }
    }
}
