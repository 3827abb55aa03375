//! Commits that end a message: what becomes durable, and what is sent and settled when it is.
//!
//! The claim, and the lock of a shared identity, end when all that the message sends is confirmed, and not before. A
//! commit that is lost with the store settles nothing.

use std::sync::Arc;

use tokio::time::Instant;

use super::admission::Admitted;
use super::key_memory::KeyMemory;
use super::queue::Queue;
use super::reply;
use super::run::Success;
use crate::identity::{self, Identity};
use crate::message::Message;
use crate::outbox::{End, Outgoing};
use crate::payload::Reply;
use crate::planted::{self, Bug};
use crate::store::{
    Change, Commit, INLINE_BYTES_MAX, KeyId, OnPersisted, Outcome, Persisted, Record, Records,
    ResultRow, Stored,
};

/// What may still go into one commit, which has to fit one batch of the store.
pub(crate) struct Room {
    /// Bytes of outgoing messages; what is more is written before, and referred to.
    outgoing_bytes: usize,
    /// Steps whose rows are removed; those of more follow in commits of their own.
    steps: usize,
}

/// Most steps whose rows one commit removes.
const STEPS_MAX: usize = 64;

impl Room {
    pub(crate) const fn of_one_message() -> Self {
        Self { outgoing_bytes: INLINE_BYTES_MAX, steps: STEPS_MAX }
    }

    /// With the largest state and the records of the largest batch they still fit.
    pub(crate) const fn of_a_batch() -> Self {
        Self { outgoing_bytes: 4 * 1024, steps: STEPS_MAX }
    }
}

/// Commits a message whose handler has finished.
pub(crate) async fn done(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    success: Box<Success>,
    memory: &mut KeyMemory,
) {
    let mut rows = Vec::new();
    let identity = message.identity;
    let left = queue.store.left_of(identity);
    if left.attempts {
        rows.push(Change::RemoveAttempts(identity));
    }
    let attempts = success.attempts;
    let staged = if success.has_effects() || left.steps {
        // Boxed: few queues have effects, and every actor's task would be several times as large.
        let mut room = Room::of_one_message();
        Box::pin(stage(queue, &message, *success, memory, &mut rows, &mut room)).await
    } else {
        Some(Staged::default())
    };
    let Some(Staged { result, sends, later }) = staged else {
        return queue.release(identity);
    };
    if planted::is(Bug::EffectsInCommitOfTheirOwn) {
        queue.store.persist(queue.id, Records::new(), std::mem::take(&mut rows)).await;
    }
    let record = finished(&message, attempts, result, &mut rows);
    let counted = queue.count_commit();
    let lane = queue.lane(&message.message);
    let on_persisted: OnPersisted = match sends {
        None => {
            // The body is let go of here, and not by the committer.
            let Admitted { shared, .. } = *message;
            Box::new(move |proof| {
                counted.settle(|queue| {
                    queue.metrics.done.increment(1);
                    queue.finish(identity, proof);
                });
                drop(shared);
            })
        }
        Some(sends) => Box::new(move |proof| {
            counted.settle(|queue| {
                queue.metrics.done.increment(1);
                send_and_settle(queue, message, *sends, proof);
            });
        }),
    };
    let records = record.into_iter().collect();
    let submitted = Instant::now();
    queue.store.commit(Commit { queue: lane, records, rows, submitted, on_persisted }).await;
    forget_steps(queue, later).await;
}

/// The record of a finished message; one that its producer numbered needs none.
pub(crate) fn finished(
    message: &Admitted,
    attempts: u32,
    result: Option<Box<ResultRow>>,
    rows: &mut Vec<Change>,
) -> Option<Record> {
    if let Some(sequence) = message.sequence {
        rows.push(Change::Advance(sequence));
        return None;
    }
    let mut record = record(message, message.identity, attempts, Outcome::Done);
    record.result = result;
    Some(record)
}

/// What of a message's effects is more than rows.
#[derive(Default)]
pub(crate) struct Staged {
    pub(crate) result: Option<Box<ResultRow>>,
    pub(crate) sends: Option<Box<Sends>>,
    /// Rows of steps that did not fit in.
    pub(crate) later: Vec<Change>,
}

/// What goes out when a message is durable.
pub(crate) struct Sends {
    key: KeyId,
    messages: Vec<Arc<Message>>,
    reply: Option<Arc<Message>>,
}

/// Makes the rows of a success; `None` after a failure of the store.
pub(crate) async fn stage(
    queue: &Arc<Queue>,
    message: &Admitted,
    success: Success,
    memory: &mut KeyMemory,
    rows: &mut Vec<Change>,
    room: &mut Room,
) -> Option<Staged> {
    let Success { state, messages, result, .. } = success;
    let later = steps(queue, message.identity, rows, room);
    if let Some(state) = state {
        memory.stage(queue, message, state, rows).await?;
    }
    let key = memory.key_id(queue, message);
    let messages: Vec<Arc<Message>> = match &message.id {
        Some((id, scope)) => {
            let messages = messages.into_messages(|index| identity::outgoing_id(scope, id, index));
            messages.into_iter().map(Arc::new).collect()
        }
        // A message without an id is dead before it runs.
        None => Vec::new(),
    };
    if !messages.is_empty() {
        let outgoing = queue
            .store
            .stage_outgoing(message.identity, key, &messages, room.outgoing_bytes)
            .await?;
        if let Stored::Inline(bytes) = &outgoing.messages {
            room.outgoing_bytes = room.outgoing_bytes.saturating_sub(bytes.len());
        }
        if !planted::is(Bug::OutgoingNotStored) {
            rows.push(Change::PutOutgoing(outgoing));
        }
    }
    let mut reply = None;
    let result = match result {
        Some(Reply { content_type, body }) => {
            reply = reply::to(queue, message, body.clone(), content_type.clone());
            // A numbered message has no record to keep it in.
            match message.sequence {
                Some(_) => None,
                None => Some(queue.store.stage_result(message.identity, content_type, body).await?),
            }
        }
        None => None,
    };
    let sends =
        (!messages.is_empty() || reply.is_some()).then(|| Box::new(Sends { key, messages, reply }));
    Some(Staged { result, sends, later })
}

/// Adds the removal of the message's steps to the rows; gives those that are too many for one commit.
fn steps(
    queue: &Queue,
    identity: Identity,
    rows: &mut Vec<Change>,
    room: &mut Room,
) -> Vec<Change> {
    let steps = queue.store.steps(identity).into_iter();
    let mut removed: Vec<_> = steps.map(|step| Change::RemoveStep(identity, step.name)).collect();
    let later = removed.split_off(removed.len().min(room.steps));
    room.steps -= removed.len();
    rows.append(&mut removed);
    later
}

/// Removes the steps of a message that is done: nobody asks for them any more, so nobody waits.
pub(crate) async fn forget_steps(queue: &Queue, mut rows: Vec<Change>) {
    while !rows.is_empty() {
        let left = rows.split_off(rows.len().min(STEPS_MAX));
        let commit = Commit {
            queue: queue.id,
            records: Records::new(),
            rows: std::mem::replace(&mut rows, left),
            submitted: Instant::now(),
            on_persisted: Box::new(drop),
        };
        Box::pin(queue.store.commit(commit)).await;
    }
}

/// Sends what the message emits, and settles it when that is confirmed.
pub(crate) fn send_and_settle(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    sends: Sends,
    proof: Persisted,
) {
    let Sends { key, messages, reply } = sends;
    if messages.is_empty() {
        return answer_and_settle(queue, message, reply, proof);
    }
    let counted = queue.count_commit();
    queue.relay.send(Outgoing {
        key,
        row: Some(message.identity),
        messages,
        sender: Arc::clone(&queue.outgoing),
        otherwise: queue.otherwise(),
        returned: None,
        on_end: Box::new(move |end| {
            counted.settle(|queue| match end {
                End::Sent => answer_and_settle(queue, message, reply, proof),
                End::Returned => queue.release(message.identity),
            });
            None
        }),
    });
}

fn answer_and_settle(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    reply: Option<Arc<Message>>,
    proof: Persisted,
) {
    match reply {
        Some(reply) => reply::send(queue, message, reply, proof),
        None => queue.finish(message.identity, proof),
    }
}

/// Commits what ends a message in any other way.
pub(crate) async fn settled(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    record: Option<Record>,
    rows: Vec<Change>,
) {
    let counted = queue.count_commit();
    let commit = Commit {
        queue: queue.lane(&message.message),
        records: record.into_iter().collect(),
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| {
            counted.settle(|queue| queue.finish(message.identity, proof));
        }),
    };
    queue.store.commit(commit).await;
}

/// The record of a message under an identity, which for a conflict is not its own.
pub(crate) fn record(
    message: &Admitted,
    identity: Identity,
    attempts: u32,
    outcome: Outcome,
) -> Record {
    Record { identity, fingerprint: message.fingerprint, attempts, outcome, result: None }
}
