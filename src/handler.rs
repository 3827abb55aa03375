//! Handlers: what runs for a message, and the error that decides what comes next.
//!
//! Silence is no success: only `Ok` makes a message Done. A handler's types are taken in here, so that the runtime
//! knows messages and bytes only.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::batch::ErasedBatchHandler;
use crate::context::Context;
use crate::effects::{EffectError, State};
use crate::message::cut;
use crate::payload::{Codec, DecodeError, FromMessage, Reply, encode_result};

/// What a handler returns.
pub type Result<T = (), E = HandleError> = std::result::Result<T, E>;

/// Handles messages of type `M`: an `async fn(&mut Context, M) -> Result`, or a struct that holds what it needs.
///
/// A value of type `R` that it returns is kept with the record of the message; see [`OnDuplicate`](crate::OnDuplicate).
///
/// The future must be `Send`. It is dropped when the attempt's timeout passes or the drain deadline ends,
/// so it must be safe to cancel at any await.
///
/// ```
/// use onceward::{Context, Handler};
///
/// struct Mailer { from: String }
///
/// #[derive(serde::Deserialize)]
/// struct Mail { to: String }
///
/// impl Handler<Mail> for Mailer {
///     async fn handle(&self, cx: &mut Context, mail: Mail) -> onceward::Result {
///         println!("{} -> {} with key {}", self.from, mail.to, cx.effect_key("mail"));
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle `{M}`",
    label = "needs `async fn(&mut onceward::Context, {M}) -> onceward::Result` or `impl Handler<{M}>`"
)]
pub trait Handler<M, R = ()>: Send + Sync + 'static {
    /// Runs once per attempt; never twice at a time for one message id or one key.
    ///
    /// # Errors
    ///
    /// Any `std::error::Error` by `?` retries with backoff; [`reject`] dead-letters now; [`retry_after`]
    /// sets the delay. A panic or a timeout is an attempt.
    fn handle(&self, cx: &mut Context, message: M) -> impl Future<Output = Result<R>> + Send;
}

/// An `async fn(&mut Context, M) -> Result<R>`; implemented for every such function.
pub trait HandlerFn<'a, M, R>: Fn(&'a mut Context, M) -> Self::Future {
    /// What the function returns.
    type Future: Future<Output = Result<R>> + Send + 'a;
}

impl<'a, M, R, F, Fut> HandlerFn<'a, M, R> for F
where
    F: Fn(&'a mut Context, M) -> Fut,
    Fut: Future<Output = Result<R>> + Send + 'a,
{
    type Future = Fut;
}

impl<M, R, F> Handler<M, R> for F
where
    F: for<'a> HandlerFn<'a, M, R> + Send + Sync + 'static,
{
    fn handle(&self, cx: &mut Context, message: M) -> impl Future<Output = Result<R>> + Send {
        self(cx, message)
    }
}

/// An `async fn(&mut S, &mut Context, M) -> Result<R>`; implemented for every such function.
pub trait StatefulFn<'a, S: 'a, M, R>: Fn(&'a mut S, &'a mut Context, M) -> Self::Future {
    /// What the function returns.
    type Future: Future<Output = Result<R>> + Send + 'a;
}

impl<'a, S: 'a, M, R, F, Fut> StatefulFn<'a, S, M, R> for F
where
    F: Fn(&'a mut S, &'a mut Context, M) -> Fut,
    Fut: Future<Output = Result<R>> + Send + 'a,
{
    type Future = Fut;
}

/// A handler in the form of an actor: it gets the state of its key to change, and what it leaves there is committed
/// with the message.
///
/// A key without a state has `S::default()`. The state is loaded and saved by [`Context::state`] and
/// [`Context::set_state`], with their errors.
///
/// ```no_run
/// # use onceward::{Context, Options, QueueOptions, Source, Worker, stateful};
/// async fn on_deposit(balance: &mut i64, cx: &mut Context, cents: i64) -> onceward::Result {
///     *balance += cents;
///     cx.publish("billing", "balance.changed", balance)?;
///     Ok(())
/// }
///
/// # async fn run(options: Options, deposits: QueueOptions) -> Result<(), onceward::RunError> {
/// Worker::new(options).queue_with(deposits, stateful(on_deposit)).run().await
/// # }
/// ```
pub const fn stateful<S, M, R, F>(handler: F) -> Stateful<F, S>
where
    F: for<'a> StatefulFn<'a, S, M, R> + Send + Sync + 'static,
    S: State + Default + Send + 'static,
{
    Stateful { handler, state: PhantomData }
}

/// What [`stateful`] makes of a function.
pub struct Stateful<F, S> {
    handler: F,
    state: PhantomData<fn(S)>,
}

impl<F, S> fmt::Debug for Stateful<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stateful { .. }")
    }
}

impl<M, R, F, S> Handler<M, R> for Stateful<F, S>
where
    F: for<'a> StatefulFn<'a, S, M, R> + Send + Sync + 'static,
    S: State + Default + Send + 'static,
    M: Send,
    R: Send,
{
    async fn handle(&self, cx: &mut Context, message: M) -> Result<R> {
        let mut state: S = cx.state()?.unwrap_or_default();
        let result = (self.handler)(&mut state, cx, message).await?;
        cx.set_state(&state)?;
        Ok(result)
    }
}

/// Why a handler did not finish, by what is done about it.
pub enum HandleError {
    /// Run again after the queue's backoff, or after exactly `after`; dead-lettered as `exhausted` in the end.
    Retry {
        /// What went wrong.
        error: Box<dyn Error + Send + Sync>,
        /// The delay, if the handler knows better than the backoff.
        after: Option<Duration>,
    },
    /// Dead-letter now as `rejected`: no attempt will ever succeed.
    Reject {
        /// What is wrong with the message.
        error: Box<dyn Error + Send + Sync>,
    },
}

impl fmt::Debug for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry { error, after } => {
                f.debug_struct("Retry").field("error", error).field("after", after).finish()
            }
            Self::Reject { error } => f.debug_struct("Reject").field("error", error).finish(),
        }
    }
}

/// Every error that reaches a handler's `?` is worth another attempt, unless the handler says otherwise.
impl<E: Error + Send + Sync + 'static> From<E> for HandleError {
    fn from(error: E) -> Self {
        Self::Retry { error: Box::new(error), after: None }
    }
}

/// The error that dead-letters the message now, as `rejected`.
pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> HandleError {
    HandleError::Reject { error: error.into() }
}

/// The error that runs the message again after `delay` instead of the queue's backoff; it counts as an attempt.
pub fn retry_after(delay: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> HandleError {
    HandleError::Retry { error: error.into(), after: Some(delay) }
}

/// A handler with its message type and codec taken in, as the runtime holds it.
pub(crate) trait ErasedHandler: Send + Sync {
    fn call<'a>(&'a self, cx: &'a mut Context) -> BoxFuture<'a, Called>;
}

/// The encoded result, if the handler returned a value.
pub(crate) type Called = std::result::Result<Option<Reply>, CallError>;

/// A handler of either kind.
#[derive(Clone)]
pub(crate) enum AnyHandler {
    Single(Arc<dyn ErasedHandler>),
    Batch(Arc<dyn ErasedBatchHandler>),
}

/// Why a call did not finish.
pub(crate) enum CallError {
    Decode(DecodeError),
    Handle(HandleError),
}

pub(crate) struct Erased<H, M, R> {
    handler: H,
    codec: Codec,
    types: PhantomData<fn(M) -> R>,
}

impl<H, M, R> Erased<H, M, R> {
    pub(crate) const fn new(handler: H, codec: Codec) -> Self {
        Self { handler, codec, types: PhantomData }
    }
}

impl<H, M, R> ErasedHandler for Erased<H, M, R>
where
    H: Handler<M, R>,
    M: FromMessage + Send + 'static,
    R: Serialize + Send + 'static,
{
    fn call<'a>(&'a self, cx: &'a mut Context) -> BoxFuture<'a, Called> {
        Box::pin(async move {
            let message = M::from_message(&cx.message, self.codec).map_err(CallError::Decode)?;
            let result = self.handler.handle(cx, message).await.map_err(CallError::Handle)?;
            let bytes_max = cx.limits.result_bytes_max;
            let what = || "the result of the handler".to_owned();
            let encoded = encode_result(result, self.codec, bytes_max).map_err(|error| {
                EffectError::of_encoding(error, what(), || EffectError::ResultTooLarge {
                    what: what(),
                    bytes_max,
                })
            });
            encoded.map_err(|error| CallError::Handle(error.into()))
        })
    }
}

/// The error and its causes in one line, cut to `bytes_max`: for records, headers and logs.
pub(crate) fn error_chain(error: &(dyn Error + 'static), bytes_max: usize) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    cut(&mut text, bytes_max);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ledger;

    impl Handler<u32> for Ledger {
        async fn handle(&self, _: &mut Context, _: u32) -> Result {
            Err(reject("no"))
        }
    }

    async fn plain(cx: &mut Context, number: String) -> Result {
        let _: u32 = number.parse()?;
        let _ = cx.id();
        Ok(())
    }

    async fn answers(_: &mut Context, number: u32) -> Result<String> {
        Ok(number.to_string())
    }

    async fn adds(sum: &mut i64, cx: &mut Context, number: i64) -> Result<i64> {
        let _ = cx.id();
        *sum += number;
        Ok(*sum)
    }

    fn accepts<M, R>(_: impl Handler<M, R>) {}

    #[test]
    fn functions_closures_and_structs_are_handlers() {
        accepts(plain);
        accepts(Ledger);
        accepts(async |_: &mut Context, _: u8| Ok(()));
        accepts(answers);
        accepts(stateful(adds));
    }

    #[test]
    fn an_error_is_shown_with_its_causes_and_cut() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::num::ParseIntError);
        let Err(inner) = "x".parse::<u8>() else { unreachable!() };
        assert_eq!(error_chain(&Outer(inner), 16), "outer: invalid d");
    }
}
