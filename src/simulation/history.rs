//! What happened, as seen at the borders of a worker: broker, disk and handlers.
//!
//! A history is what every tier of tests writes and the one checker reads: simulated runs write all of it, tests with
//! real processes what they can see. Records facts in the order in which they happened; judges nothing.

use std::fmt;
use std::sync::Arc;

/// What "the same message" means: queue or scope, and id, such as `orders/t1`.
///
/// A message without an id is the same as no other; it is named by its place, such as `orders/#17`.
pub type Name = Arc<str>;

/// An ordering key with its queue, such as `orders/alice`.
pub type KeyName = Arc<str>;

/// Everything that happened, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What happened, oldest first.
    pub entries: Vec<Entry>,
}

/// One thing that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since the beginning, on the clock of the test.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

/// A message of a producer, as the rules of its queue read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The queue it is in.
    pub queue: Arc<str>,
    /// What it is known by.
    pub name: Name,
    /// What it is ordered by; `None` if it is its own key.
    pub key: Option<KeyName>,
    /// The class of retention that it names.
    pub class: Option<Arc<str>>,
    /// Hash of type and body: two under one name are a conflict.
    pub fingerprint: u64,
    /// Whether it has an id that can be used; one without is published to the dead-letter queue before it is on record,
    /// and more than once if its connection is lost meanwhile.
    pub has_id: bool,
    /// Its number among all messages that producers have published: twins have different ones.
    pub copy: u64,
}

/// How a message ended, as a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With all its effects.
    Done,
    /// Given up, for the reason of the dead letter.
    Dead(Arc<str>),
}

/// A record that a commit makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Of which message; for a conflict, the name of the message that it is not.
    pub name: Name,
    /// Hash of type and body.
    pub fingerprint: u64,
    /// How it ended.
    pub ended: Ended,
    /// Attempts that were begun.
    pub attempts: u32,
    /// Whether it is under an identity of its own, because another body has the name.
    pub is_conflict: bool,
}

/// What a commit makes durable, all or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Messages that end, in the order in which they were handed in.
    pub records: Vec<Recorded>,
    /// Messages that are done without a record: their producer numbered them, and its watermark passes them.
    pub passed: Vec<Name>,
    /// Messages that end with a record here and that a watermark passes too: they stay known when the record goes.
    pub numbered: Vec<Name>,
    /// Attempts that are on record: message, begun attempts, whether the last one may be running.
    pub attempts: Vec<(Name, u32, bool)>,
    /// States by key, as the handler gave them (see [`model`](super::model)), each one's last; `None` is removed.
    pub states: Vec<(KeyName, Option<Vec<u8>>)>,
    /// Steps that are begun (`false`) or have a result (`true`): message, step.
    pub steps: Vec<(Name, Arc<str>, bool)>,
    /// Outgoing messages that are kept until they are confirmed: sender, and each one's outgoing id; in commit order.
    pub outgoing: Vec<(Name, Vec<Arc<str>>)>,
    /// Records that are removed, past their retention; of one that was carried into a later block, the older copy.
    pub collected: Vec<Name>,
    /// The epoch of the store, if this opens it.
    pub epoch: Option<u64>,
}

/// What a step does outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// It calls, and may call again until its result is on record.
    Repeatable,
    /// It calls, and must not call again unless that is cleared: it was on record before that it may.
    Guarded,
    /// It asked and was told that the last call did not happen, or undid it.
    Clears,
}

/// How a run of a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// It returned `Ok`.
    Ok,
    /// It failed, by an error or the timeout: another attempt may follow.
    Failed,
    /// It panicked: another attempt may follow, and nobody knows whether it called anything.
    Panicked,
    /// It rejected the message.
    Rejected,
    /// A step of it may have happened, and only people can tell: the message is given up.
    InDoubt,
    /// It was dropped with its worker.
    Dropped,
}

/// What happened. `life` is the number of a worker's process, rising.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Event {
    /// A producer's message is in a queue, confirmed to the producer.
    Accepted(Seen),
    /// The worker asked for a queue and got a channel.
    Consuming { life: u32, queue: Arc<str>, channel: u64, prefetch: u16 },
    /// The broker sent a message to the worker.
    Delivered { channel: u64, tag: u64, redelivered: bool, seen: Seen },
    /// A handler began; those that it was given together have the number of their batch.
    Run { life: u32, seen: Seen, attempt: u32, batch: Option<u64> },
    /// A handler ended.
    End { life: u32, seen: Seen, attempt: u32, batch: Option<u64>, ended: RunEnd },
    /// A handler called something outside within a step, under this key.
    Called { life: u32, name: Name, step: Arc<str>, effect_key: Arc<str>, call: Call },
    /// A batch was given to the disk when the store's clock stood at `clock_ms`. Numbers rise over all lives. It is
    /// durable at `Synced`, and may be gone with a crash before.
    Commit { life: u32, number: u64, clock_ms: u64, written: Arc<Written> },
    /// It is durable, with all before it. Also after `Crashed`, if the disk had it without having said so.
    Synced { number: u64 },
    /// The worker was told how large its store is: as large as it may be, or not any more.
    Full { life: u32, is_full: bool },
    /// A write or a sync failed, and the worker was told.
    DiskFailed { life: u32 },
    /// The broker has read an ack.
    Acked { channel: u64, tag: u64, multiple: bool },
    /// The broker refused an ack with 406 and closed the channel.
    AckRefused { channel: u64, tag: u64 },
    /// A channel is gone, and what was unacked on it is back in its queue. `asked`: by the worker, at the end of a
    /// drain, and not by a fault.
    ChannelClosed { channel: u64, asked: bool },
    /// The broker has a message of the worker: by the worker's own id for it, in these queues; none took it if there is
    /// none. `body` is a hash of all of it.
    Published {
        life: u32,
        id: Arc<str>,
        body: u64,
        to: Vec<Arc<str>>,
        letter: Option<Letter>,
        /// The message whose result this is, if it is the reply to one: those are in no commit.
        answers: Option<Name>,
    },
    /// The worker was told that it is confirmed.
    Confirmed { life: u32, id: Arc<str> },
    /// The worker was told that no queue took it, or that it is refused.
    Returned { life: u32, id: Arc<str> },
    /// A worker opened the store and may work.
    Opened { life: u32, epoch: u64 },
    /// A worker was asked to drain.
    Drain { life: u32 },
    /// A worker ended by itself; an error is how it said why.
    Exited { life: u32, error: Option<Arc<str>> },
    /// A worker's process ended at once, or the power was cut: what was not synced is gone.
    Crashed { life: u32 },
    /// Time is over: the producers have finished, faults have stopped and everything should have ended.
    AtRest,
}

/// What a dead letter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Which message it is; of an outgoing message that no queue took (reason `unroutable`), its outgoing id.
    pub name: Name,
    /// Of its type and body: that of the message.
    pub fingerprint: u64,
    /// Why.
    pub reason: Arc<str>,
    /// After how many attempts.
    pub attempts: u32,
    /// Whether all properties and headers of the message are there.
    pub is_whole: bool,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, entry) in self.entries.iter().enumerate() {
            writeln!(f, "{number:>6} {:>9} ms  {:?}", entry.at_ms, entry.event)?;
        }
        Ok(())
    }
}
