//! How a message dies: decided durably, then published to the dead-letter queue and confirmed, then settled.
//!
//! The decision comes first, so that a crash in between cannot end with the message both dead and done. The body is not
//! stored: the broker keeps the message until the ack, and after a crash its redelivery is published again, under the
//! same outgoing id. The relay publishes; the key goes on meanwhile, and only its dead letters wait for one another.
//!
//! A message without an id is never the same as another: nothing is on record before its dead letter is confirmed, so a
//! lost connection or a crash in between publishes it again under another outgoing id.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Span, info};

use super::admission::Admitted;
use super::commit;
use super::queue::Queue;
use super::under_way::CommitGuard;
use crate::failpoint::{self, Point};
use crate::identity::{self, Identity};
use crate::message::{Message, cut};
use crate::outbox::{End, Headers, Letter, Otherwise, Outgoing};
use crate::planted::{self, Bug};
use crate::store::{Change, Commit, DeadNote, ERROR_BYTES_MAX, Outcome, Reason, Records};

/// Why and after how many attempts a message is given up.
pub(crate) struct Death {
    pub(crate) reason: Reason,
    pub(crate) error: String,
    pub(crate) attempts: u32,
}

/// A message on its way to the dead-letter queue.
pub(crate) struct Burial {
    pub(crate) message: Box<Admitted>,
    /// The identity that its record is under; that of a conflict is not the message's own.
    pub(crate) recorded: Identity,
    pub(crate) note: Box<DeadNote>,
    pub(crate) attempts: u32,
}

/// Records the death; when that is durable, the dead letter goes to its queue.
pub(crate) async fn bury(
    queue: &Arc<Queue>,
    message: Box<Admitted>,
    recorded: Identity,
    death: Death,
) {
    let Death { reason, mut error, attempts } = death;
    cut(&mut error, ERROR_BYTES_MAX);
    let id = message.id.as_ref().map_or_else(Vec::new, |(id, _)| id.as_bytes().to_vec());
    let known = queue.store.attempts(message.identity);
    let first_seen_ms =
        known.map_or_else(|| queue.first_seen_ms(&message), |row| row.first_seen_ms);
    let note = Box::new(DeadNote { reason, error, id, first_seen_ms });
    let (identity, has_id) = (message.identity, message.id.is_some());
    let dead = Outcome::Dead(note.clone());
    let record = commit::record(&message, recorded, attempts, dead);
    let (lane, sequence) = (queue.lane(&message.message), message.sequence);
    let burial = Burial { message, recorded, note, attempts };
    if !has_id {
        return confirm(queue, burial);
    }
    let (relay, letter) = (queue.relay.clone(), outgoing(queue, burial));
    let mut rows = vec![Change::RemoveAttempts(identity), Change::PutPending(recorded)];
    rows.extend(sequence.map(Change::Advance));
    let commit = Commit {
        queue: lane,
        records: Records::from_elem(record, 1),
        rows,
        submitted: Instant::now(),
        // This proof settles nothing: the next commit does, when the dead letter is confirmed.
        on_persisted: Box::new(move |_| relay.send(letter)),
    };
    queue.store.commit(commit).await;
}

/// Has the dead letter of a death that is on record, or of a message that cannot be, published; then it settles.
pub(crate) fn confirm(queue: &Arc<Queue>, burial: Burial) {
    queue.relay.send(outgoing(queue, burial));
}

fn outgoing(queue: &Arc<Queue>, burial: Burial) -> Outgoing {
    let made = [Headers::All, Headers::OwnOnly].map(|which| letter(queue, &burial, which));
    // With our own headers added, the table may be too large for a frame.
    let [letter, own_only] = made;
    let counted = queue.count_commit();
    let span = Span::current();
    Outgoing {
        key: queue.key_of(&burial.message),
        messages: vec![letter],
        sender: Arc::clone(&queue.letters),
        otherwise: Otherwise::Instead(own_only),
        row: None,
        // A message without an id cannot be joined by its redelivery: copies would pile up behind a broker that takes
        // none.
        returned: burial.message.returned.clone(),
        on_end: Box::new(move |end| {
            let queue = counted.queue()?;
            match end {
                End::Returned => {
                    queue.release(burial.message.identity);
                    None
                }
                End::Sent => {
                    failpoint::reached(Point::DeadLetterPublished);
                    queue.metrics.count_dead(burial.note.reason);
                    span.in_scope(|| say(&queue, &burial));
                    Some(settling(&queue, burial, counted))
                }
            }
        }),
    }
}

fn say(queue: &Queue, burial: &Burial) {
    info!(
        reason = burial.note.reason.name(),
        attempts = burial.attempts,
        error = burial.note.error,
        dead_letter_queue = queue.options.dead_letter,
        "message is dead-lettered"
    );
}

/// The commit that settles the message, now that its dead letter is confirmed.
fn settling(queue: &Queue, burial: Burial, counted: CommitGuard) -> Commit {
    let Burial { message, recorded, note, attempts } = burial;
    let (records, rows) = if message.id.is_some() {
        (Records::new(), vec![Change::RemovePending(recorded)])
    } else {
        let record = commit::record(&message, recorded, attempts, Outcome::Dead(note));
        (Records::from_elem(record, 1), Vec::new())
    };
    let Admitted { identity, shared, .. } = *message;
    Commit {
        queue: queue.id,
        records,
        rows,
        submitted: Instant::now(),
        on_persisted: Box::new(move |proof| {
            counted.settle(|queue| queue.finish(identity, proof));
            drop(shared);
        }),
    }
}

/// What the dead letter is known by; that of a message without an id by its identity, which is random.
fn death_id(message: &Admitted, recorded: Identity, reason: Reason) -> String {
    match &message.id {
        Some((id, scope)) => {
            let is_conflict = reason == Reason::Conflict;
            identity::death_id(scope, id, &message.message, is_conflict)
        }
        None => identity::hex(recorded.as_bytes()),
    }
}

/// The message as it came, with the reason in its headers.
fn letter(queue: &Queue, burial: &Burial, which: Headers) -> Arc<Message> {
    let Burial { message, recorded, note, attempts } = burial;
    let letter = Letter {
        original: &message.message,
        dead_letter_queue: &queue.options.dead_letter,
        reason: note.reason.name(),
        error: &note.error,
        attempts: *attempts,
        queue: &queue.name,
        first_seen_ms: Some(note.first_seen_ms),
        outgoing_id: match planted::is(Bug::LetterIdChanges) {
            true => format!("dead-{}", fastrand::u64(..)),
            false => format!("dead-{}", death_id(message, *recorded, note.reason)),
        },
    };
    letter.make(which)
}
