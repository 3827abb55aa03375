//! What a handler sees and says: the context of one attempt, and the error that decides what comes next.
//!
//! A handler gets a borrowed [`Context`], so nothing can be staged after its commit. Silence is no success:
//! only `Ok(())` makes a message Done.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::identity::{self, ScopeName};
use crate::message::{Headers, Key, Message, MessageId, Properties, cut};
use crate::payload::{Codec, DecodeError, FromMessage};

/// What a handler returns.
pub type Result<T = (), E = HandleError> = std::result::Result<T, E>;

/// Handles messages of type `M`: an `async fn(&mut Context, M) -> Result`, or a struct that holds what it needs.
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
pub trait Handler<M>: Send + Sync + 'static {
    /// Runs once per attempt; never twice at a time for one message id or one key.
    ///
    /// # Errors
    ///
    /// Any `std::error::Error` by `?` retries with backoff; [`reject`] dead-letters now; [`retry_after`]
    /// sets the delay. A panic or a timeout is an attempt.
    fn handle(&self, cx: &mut Context, message: M) -> impl Future<Output = Result> + Send;
}

/// An `async fn(&mut Context, M) -> Result`; implemented for every such function.
pub trait HandlerFn<'a, M>: Fn(&'a mut Context, M) -> Self::Future {
    /// What the function returns.
    type Future: Future<Output = Result> + Send + 'a;
}

impl<'a, M, F, Fut> HandlerFn<'a, M> for F
where
    F: Fn(&'a mut Context, M) -> Fut,
    Fut: Future<Output = Result> + Send + 'a,
{
    type Future = Fut;
}

impl<M, F> Handler<M> for F
where
    F: for<'a> HandlerFn<'a, M> + Send + Sync + 'static,
{
    fn handle(&self, cx: &mut Context, message: M) -> impl Future<Output = Result> + Send {
        self(cx, message)
    }
}

/// One attempt at one message, as its handler sees it.
#[derive(Debug)]
pub struct Context {
    pub(crate) message: Arc<Message>,
    pub(crate) queue: Arc<str>,
    pub(crate) id: MessageId,
    pub(crate) scope: ScopeName,
    pub(crate) key: Option<Key>,
    pub(crate) attempt: u32,
    pub(crate) redelivered: bool,
    pub(crate) deadline: Instant,
}

impl Context {
    /// The id of the message.
    #[must_use]
    pub const fn id(&self) -> &MessageId {
        &self.id
    }

    /// The ordering key; `None` if the message has none and is ordered with no other.
    #[must_use]
    pub const fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The queue that it was consumed from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Which attempt this is, counted from 1; survives restarts.
    ///
    /// A run cut short by a crash counts too, from the second delivery on.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the broker says that it delivered the message before; says nothing about producers' twins.
    #[must_use]
    pub const fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// The application headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.message.properties.headers
    }

    /// All properties.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.message.properties
    }

    /// The whole message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The key by which another system can dedupe the effect `name` of this message.
    ///
    /// 32 hexadecimal digits, the same in every attempt, after every restart, and on another store. Send it as
    /// `Idempotency-Key`, or make it a unique column.
    #[must_use]
    pub fn effect_key(&self, name: &str) -> String {
        identity::effect_key(&self.scope, &self.id, name)
    }

    /// When this attempt is cut off.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The first attempt at `message`, from queue `orders`, with its message-id as the id.
    #[cfg(test)]
    pub(crate) fn for_tests(message: Message) -> Self {
        let id = message.properties.message_id.clone().unwrap_or_default();
        Self {
            message: Arc::new(message),
            queue: "orders".into(),
            id: MessageId::new(id),
            scope: ScopeName::queue("orders"),
            key: None,
            attempt: 1,
            redelivered: false,
            deadline: tokio::time::Instant::now().into_std() + Duration::from_secs(30),
        }
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
    fn call<'a>(&'a self, cx: &'a mut Context)
    -> BoxFuture<'a, std::result::Result<(), CallError>>;
}

/// Why a call did not finish.
pub(crate) enum CallError {
    Decode(DecodeError),
    Handle(HandleError),
}

pub(crate) struct Erased<H, M> {
    handler: H,
    codec: Codec,
    message: std::marker::PhantomData<fn(M)>,
}

impl<H, M> Erased<H, M> {
    pub(crate) const fn new(handler: H, codec: Codec) -> Self {
        Self { handler, codec, message: std::marker::PhantomData }
    }
}

impl<H: Handler<M>, M: FromMessage + Send + 'static> ErasedHandler for Erased<H, M> {
    fn call<'a>(
        &'a self,
        cx: &'a mut Context,
    ) -> BoxFuture<'a, std::result::Result<(), CallError>> {
        Box::pin(async move {
            let message = M::from_message(&cx.message, self.codec).map_err(CallError::Decode)?;
            self.handler.handle(cx, message).await.map_err(CallError::Handle)
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

    fn accepts<M>(_: impl Handler<M>) {}

    #[test]
    fn functions_closures_and_structs_are_handlers() {
        accepts(plain);
        accepts(Ledger);
        accepts(async |_: &mut Context, _: u8| Ok(()));
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
