//! What one commit sends, on its way: which message is next, and what is tried when the broker does not take it.
//!
//! Pure. What an earlier process left unsent is read when its turn comes and forgotten while it is held, so that a long
//! backlog does not lie in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::letter::{Headers, Letter};
use super::{OnEnd, Otherwise, Outgoing, Sender};
use crate::backoff::Reconnect;
use crate::broker::{OUTGOING_ID_HEADER, PublishError};
use crate::identity::Identity;
use crate::message::{HeaderValue, Message, cut};
use crate::planted::{self, Bug};
use crate::store::{ERROR_BYTES_MAX, OutgoingRow, Stored};

pub(super) struct Entry {
    pub(super) sender: Arc<Sender>,
    /// What is left to send, if it is in memory.
    messages: VecDeque<Arc<Message>>,
    /// Set of what an earlier process left unsent.
    recovered: Option<Recovered>,
    attempt: Attempt,
    otherwise: Otherwise,
    pub(super) row: Option<Identity>,
    pub(super) returned: Option<CancellationToken>,
    /// Dropped with the entry: nobody watches its token any more.
    pub(super) watched: Option<oneshot::Sender<()>>,
    /// None of what an earlier process left unsent: those who wait for that are told.
    pub(super) on_end: Option<OnEnd>,
    /// Delays between tries, while the head cannot go on.
    pub(super) failing: Option<Reconnect>,
}

struct Recovered {
    stored: Stored,
    /// How many of its messages are confirmed.
    sent: usize,
    is_open: bool,
}

/// What is tried of the first message that is left.
#[derive(Default)]
struct Attempt {
    /// Not itself but this: a dead letter of it, or what its sender gave.
    instead: Option<(Arc<Message>, Headers)>,
    is_counted: bool,
}

/// What is to be done for an entry now.
pub(super) enum Next {
    Publish(Arc<Message>),
    /// Read its messages first.
    Open(Stored),
    End,
}

/// What a message gets that the broker did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Something else is to be tried in its place, now.
    Replaced,
    /// It is given up: the next one is to be sent.
    Dropped,
    /// It is to be tried again later.
    Held,
}

impl Entry {
    pub(super) fn new(outgoing: Outgoing) -> Self {
        let Outgoing { messages, sender, otherwise, row, returned, on_end, .. } = outgoing;
        Self {
            sender,
            messages: messages.into(),
            recovered: None,
            attempt: Attempt::default(),
            otherwise,
            row,
            returned,
            watched: None,
            on_end: Some(on_end),
            failing: None,
        }
    }

    pub(super) fn recovered(row: OutgoingRow, sender: Arc<Sender>, otherwise: Otherwise) -> Self {
        Self {
            sender,
            messages: VecDeque::new(),
            recovered: Some(Recovered { stored: row.messages, sent: 0, is_open: false }),
            attempt: Attempt::default(),
            otherwise,
            row: Some(row.identity),
            returned: None,
            watched: None,
            on_end: None,
            failing: None,
        }
    }

    pub(super) fn is_returned(&self) -> bool {
        self.returned.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    pub(super) fn next(&self) -> Next {
        if let Some(Recovered { stored, is_open: false, .. }) = &self.recovered {
            return Next::Open(stored.clone());
        }
        let instead = self.attempt.instead.as_ref().map(|(message, _)| message);
        match instead.or_else(|| self.messages.front()) {
            Some(message) => Next::Publish(Arc::clone(message)),
            None => Next::End,
        }
    }

    /// Bytes that it takes in memory while it is open, beyond what its row takes.
    pub(super) const fn open_bytes(&self) -> u64 {
        match &self.recovered {
            Some(Recovered { stored: Stored::Spilled(spilled), .. }) => spilled.bytes,
            Some(_) | None => 0,
        }
    }

    pub(super) fn open(&mut self, messages: Vec<Message>) {
        if let Some(recovered) = &mut self.recovered {
            self.messages = messages.into_iter().skip(recovered.sent).map(Arc::new).collect();
            recovered.is_open = true;
        }
    }

    /// Forgets what can be read again; gives the bytes that it was open with.
    pub(super) fn close(&mut self) -> u64 {
        match &mut self.recovered {
            Some(recovered) if recovered.is_open => recovered.is_open = false,
            Some(_) | None => return 0,
        }
        self.messages.clear();
        self.attempt.instead = None;
        self.open_bytes()
    }

    /// The first message is over: confirmed, replaced or dropped.
    pub(super) fn advance(&mut self) {
        self.messages.pop_front();
        self.attempt = Attempt::default();
        if let Some(recovered) = &mut self.recovered {
            recovered.sent += 1;
        }
    }

    pub(super) fn refused(&mut self, error: &PublishError) -> Refused {
        if planted::is(Bug::RefusalCountsAsSent) {
            return Refused::Dropped;
        }
        let for_ever = match error {
            PublishError::Unsendable { .. } => true,
            PublishError::Unroutable { .. } => false,
            // Nobody waits for a caller whose queue is full either.
            PublishError::Refused { .. } if matches!(self.otherwise, Otherwise::Drop) => false,
            PublishError::Refused { .. } | PublishError::Closed => return Refused::Held,
        };
        if !self.attempt.is_counted {
            self.attempt.is_counted = true;
            self.sender.metrics.unroutable.increment(1);
        }
        let tried = self.attempt.instead.as_ref().map(|(_, headers)| *headers);
        let replacement = match (&self.otherwise, tried) {
            (Otherwise::Drop, None) => return Refused::Dropped,
            (Otherwise::DeadLetter { queue }, None) => self.letter(queue, error, Headers::All),
            (Otherwise::DeadLetter { queue }, Some(Headers::All)) if for_ever => {
                self.letter(queue, error, Headers::OwnOnly)
            }
            (Otherwise::Instead(message), None) if for_ever => {
                Some((Arc::clone(message), Headers::OwnOnly))
            }
            _ => None,
        };
        match replacement {
            Some(replacement) => {
                self.attempt.instead = Some(replacement);
                Refused::Replaced
            }
            None => Refused::Held,
        }
    }

    /// The dead letter of a message of ours that no queue takes.
    fn letter(
        &self,
        dead_letter_queue: &str,
        error: &PublishError,
        which: Headers,
    ) -> Option<(Arc<Message>, Headers)> {
        let original = self.messages.front()?;
        let mut error = error.to_string();
        cut(&mut error, ERROR_BYTES_MAX);
        let own = original.properties.headers.get(OUTGOING_ID_HEADER);
        let id = own
            .and_then(HeaderValue::as_str)
            .or(original.properties.message_id.as_deref())
            .unwrap_or_default();
        let letter = Letter {
            original,
            dead_letter_queue,
            reason: "unroutable",
            error: &error,
            attempts: 0,
            queue: &self.sender.queue,
            first_seen_ms: None,
            outgoing_id: format!("dead-{id}"),
        };
        Some((letter.make(which), which))
    }
}
