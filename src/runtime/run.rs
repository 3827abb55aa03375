//! One run of a handler: in time, contained, and with what it leaves behind.
//!
//! All of the user's code runs in here and is dropped in here, destructors and `Display` of errors too: panic, hang or
//! error, it ends as a value. Decides nothing about what comes next.

use std::any::Any;
use std::future::{Future as _, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Span;

use super::admission::Admitted;
use super::queue::Queue;
use crate::batch::{BatchCalled, ErasedBatchHandler};
use crate::context::Context;
use crate::effects::{CurrentState, EffectError, StagedMessages, StagedState};
use crate::failpoint::{self, Point};
use crate::handler::{AnyHandler, CallError, HandleError, error_chain, reject};
use crate::message::cut;
use crate::payload::Reply;
use crate::store::{ERROR_BYTES_MAX, Reason, StoreError};

/// What a successful attempt leaves to commit.
pub(crate) struct Success {
    pub(crate) attempts: u32,
    /// The state of the key, if it was changed.
    pub(crate) state: Option<CurrentState>,
    pub(crate) messages: StagedMessages,
    /// The encoded result.
    pub(crate) result: Option<Reply>,
}

impl Success {
    pub(crate) fn of(cx: Context, state: StagedState, result: Option<Reply>) -> Box<Self> {
        let Context { attempt, messages, .. } = cx;
        Box::new(Self { attempts: attempt, state: state.into_change(), messages, result })
    }

    /// Whether there is more to commit than the record.
    pub(crate) const fn has_effects(&self) -> bool {
        self.state.is_some() || !self.messages.is_empty() || self.result.is_some()
    }
}

/// Why a run failed.
pub(crate) enum Failed {
    /// Worth another attempt, after this delay if the handler gave one.
    Transient(String, Option<Duration>),
    /// Worth another attempt, and no sign of what its handler calls.
    Panicked(String),
    Permanent(Reason, String),
    /// The store cannot be read: nothing of the worker may go on.
    Store(Box<StoreError>),
}

/// Runs the handler once for one message.
pub(crate) async fn one(
    queue: &Arc<Queue>,
    message: &Admitted,
    attempt: u32,
    state: &CurrentState,
) -> Result<Box<Success>, Failed> {
    Span::current().record("attempt", attempt);
    contained(queue, async |deadline| {
        // Made where it is used: handed from future to future, it would lie in each of them.
        let Some(mut cx) = context(queue, message, attempt, deadline) else {
            return Err(CallError::Handle(reject("the message has no id")));
        };
        match &queue.handler {
            AnyHandler::Single(handler) => {
                cx.state = StagedState::new(state.clone());
                let result = handler.call(&mut cx).await?;
                checked(&cx)?;
                let state = std::mem::take(&mut cx.state);
                Ok(Success::of(cx, state, result))
            }
            AnyHandler::Batch(handler) => Box::pin(batch_of_one(&**handler, cx, state)).await,
        }
    })
    .await
}

/// Whether what the handler stages can be sent at all.
pub(crate) fn checked(cx: &Context) -> Result<(), CallError> {
    cx.messages.check(&cx.limits).map_err(|error| CallError::Handle(error.into()))
}

async fn batch_of_one(
    handler: &dyn ErasedBatchHandler,
    cx: Context,
    state: &CurrentState,
) -> Result<Box<Success>, CallError> {
    let state = StagedState::new(state.clone());
    let BatchCalled { mut items, state, ended } = handler.call_batch(vec![cx], state).await;
    let Some((cx, item)) = items.pop() else {
        return Err(CallError::Handle(reject("the batch lost its message")));
    };
    item?;
    ended.map_err(CallError::Handle)?;
    checked(&cx)?;
    Ok(Success::of(cx, state, None))
}

/// Runs what calls the user's code, until the deadline at most, which it is told.
pub(crate) async fn contained<T>(
    queue: &Queue,
    call: impl AsyncFnOnce(Instant) -> Result<T, CallError>,
) -> Result<T, Failed> {
    let started = Instant::now();
    let deadline = started + queue.options.timeout;
    let run = async {
        let mut call = pin!(call(deadline));
        // Most handlers end at once, and then nothing has to be asked of the timer.
        let polled_once = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx)));
        if let Poll::Ready(ended) = polled_once.await {
            return ended.map_err(failed);
        }
        match tokio::time::timeout_at(deadline, call).await {
            Ok(ended) => ended.map_err(failed),
            Err(_) => {
                let text = format!("the attempt timed out after {:?}", queue.options.timeout);
                Err(Failed::Transient(text, None))
            }
        }
    };
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    failpoint::reached(Point::HandlerReturned);
    queue.metrics.handler_seconds.record(started.elapsed().as_secs_f64());
    if let Some(error) = queue.unreadable.get() {
        return Err(Failed::Store(Box::new(error.clone())));
    }
    ended.unwrap_or_else(|panic| Err(Failed::Panicked(panic_text(panic.as_ref()))))
}

/// What the handler sees of an attempt; `None` for a message without an id, which is dead before it runs.
pub(crate) fn context(
    queue: &Arc<Queue>,
    message: &Admitted,
    attempt: u32,
    deadline: Instant,
) -> Option<Context> {
    let (id, scope) = message.id.clone()?;
    Some(Context {
        message: Arc::clone(&message.message),
        id,
        scope,
        identity: message.identity,
        key: message.named_key().cloned(),
        attempt,
        redelivered: message.redelivered,
        deadline: deadline.into_std(),
        limits: queue.limits,
        state: StagedState::default(),
        messages: StagedMessages::default(),
        steps: Arc::<Queue>::clone(queue),
        steps_used: Vec::new(),
        is_in_batch: false,
    })
}

pub(crate) fn failed(error: CallError) -> Failed {
    match error {
        CallError::Decode(error) => {
            Failed::Permanent(Reason::Decode, error_chain(&error, ERROR_BYTES_MAX))
        }
        CallError::Handle(HandleError::Reject { error }) => {
            Failed::Permanent(Reason::Rejected, error_chain(error.as_ref(), ERROR_BYTES_MAX))
        }
        CallError::Handle(HandleError::Retry { error, after }) => {
            let text = error_chain(error.as_ref(), ERROR_BYTES_MAX);
            match EffectError::find(error.as_ref()) {
                Some(effect) if !effect.is_transient() => {
                    Failed::Permanent(reason_of(effect), text)
                }
                Some(_) | None => Failed::Transient(text, after),
            }
        }
    }
}

/// Why a message dies whose effects no attempt can have.
const fn reason_of(effect: &EffectError) -> Reason {
    match effect {
        EffectError::StateTooLarge { .. } => Reason::StateTooLarge,
        EffectError::InDoubt { .. } => Reason::InDoubt,
        _ => Reason::Rejected,
    }
}

/// What a panic says; the payload is text nearly always.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let mut text = format!("the handler panicked: {}", text.unwrap_or("no text"));
    cut(&mut text, ERROR_BYTES_MAX);
    text
}
