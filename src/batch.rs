//! Batches: several waiting messages of one key in one run of a handler and one commit.
//!
//! Every message keeps an outcome and effects of its own; the state of the key is the batch's. Borrowed by the handler,
//! so nothing can be staged after the run.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::effects::{EffectError, Limits, StagedState, State};
use crate::handler::{CallError, HandleError, Result};
use crate::message::Key;
use crate::payload::{Codec, FromMessage};

/// Handles messages of type `M` by the batch: an `async fn(&mut Batch<M>) -> Result`, or a struct that holds what it
/// needs.
///
/// `Ok` makes every message Done that was not [failed](BatchItem::fail), in one commit. One that was failed with
/// [`reject`](crate::reject) is dead-lettered alone. If the run fails, panics or times out, or fails a message with
/// another error, nothing of it is committed: its messages then run one at a time, in order, each in a batch of one, so
/// that the bad one fails alone and holds back those behind it.
///
/// ```
/// use onceward::{Batch, reject};
///
/// async fn on_readings(batch: &mut Batch<f64>) -> onceward::Result {
///     let mut sum = batch.state::<f64>()?.unwrap_or(0.0);
///     for item in batch.iter_mut() {
///         if item.value < -273.15 {
///             item.fail(reject("colder than cold"));
///         } else {
///             sum += item.value;
///             item.cx.send("readings.clean", &item.value)?;
///         }
///     }
///     batch.set_state(&sum)?;
///     Ok(())
/// }
/// ```
pub trait BatchHandler<M>: Send + Sync + 'static {
    /// Runs once per attempt; never twice at a time for one message id or one key.
    ///
    /// # Errors
    ///
    /// Any `std::error::Error` by `?` has the messages run one at a time.
    fn handle(&self, batch: &mut Batch<M>) -> impl Future<Output = Result> + Send;
}

/// An `async fn(&mut Batch<M>) -> Result`; implemented for every such function.
pub trait BatchFn<'a, M: 'a>: Fn(&'a mut Batch<M>) -> Self::Future {
    /// What the function returns.
    type Future: Future<Output = Result> + Send + 'a;
}

impl<'a, M: 'a, F, Fut> BatchFn<'a, M> for F
where
    F: Fn(&'a mut Batch<M>) -> Fut,
    Fut: Future<Output = Result> + Send + 'a,
{
    type Future = Fut;
}

impl<M, F> BatchHandler<M> for F
where
    F: for<'a> BatchFn<'a, M> + Send + Sync + 'static,
{
    fn handle(&self, batch: &mut Batch<M>) -> impl Future<Output = Result> + Send {
        self(batch)
    }
}

/// Waiting messages of one key, in delivery order.
#[derive(Debug)]
pub struct Batch<M> {
    items: Vec<BatchItem<M>>,
    key: Option<Key>,
    limits: Limits,
    state: StagedState,
}

/// One message of a batch.
pub struct BatchItem<M> {
    /// The decoded body.
    pub value: M,
    /// The message, its id, and where its outgoing messages and steps are staged; the state is the batch's.
    pub cx: Context,
    failed: Option<HandleError>,
}

impl<M: fmt::Debug> fmt::Debug for BatchItem<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchItem").field("value", &self.value).finish_non_exhaustive()
    }
}

impl<M> BatchItem<M> {
    /// This message fails, whatever becomes of the others: [`reject`](crate::reject) dead-letters it alone, any
    /// other error has the batch run again one message at a time.
    pub fn fail(&mut self, error: impl Into<HandleError>) {
        self.failed = Some(error.into());
    }
}

impl<M> Batch<M> {
    /// How many messages there are, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub const fn len(&self) -> usize {
        self.items.len()
    }

    /// The messages, in delivery order.
    pub fn iter(&self) -> std::slice::Iter<'_, BatchItem<M>> {
        self.items.iter()
    }

    /// The messages, in delivery order.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, BatchItem<M>> {
        self.items.iter_mut()
    }

    /// The ordering key that all of them have; `None` for one message without a key.
    #[must_use]
    pub const fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The state of the key; see [`Context::state`].
    ///
    /// # Errors
    ///
    /// As [`Context::state`].
    pub fn state<S: State>(&self) -> Result<Option<S>, EffectError> {
        self.need_key()?;
        self.state.get()
    }

    /// Stages the state of the key, committed with the messages that are done; see [`Context::set_state`].
    ///
    /// # Errors
    ///
    /// As [`Context::set_state`].
    pub fn set_state<S: State>(&mut self, state: &S) -> Result<(), EffectError> {
        self.need_key()?;
        self.state.set(state, &self.limits)
    }

    /// Stages that the key has no state; see [`Context::clear_state`].
    ///
    /// # Errors
    ///
    /// As [`Context::clear_state`].
    pub fn clear_state(&mut self) -> Result<(), EffectError> {
        self.need_key()?;
        self.state.clear();
        Ok(())
    }

    const fn need_key(&self) -> Result<(), EffectError> {
        if self.key.is_some() { Ok(()) } else { Err(EffectError::NoKey) }
    }
}

impl<'a, M> IntoIterator for &'a mut Batch<M> {
    type Item = &'a mut BatchItem<M>;
    type IntoIter = std::slice::IterMut<'a, BatchItem<M>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<'a, M> IntoIterator for &'a Batch<M> {
    type Item = &'a BatchItem<M>;
    type IntoIter = std::slice::Iter<'a, BatchItem<M>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A batch handler with its message type and codec taken in, as the runtime holds it.
pub(crate) trait ErasedBatchHandler: Send + Sync {
    /// Runs the messages together; all of them find `state`.
    fn call_batch(&self, messages: Vec<Context>, state: StagedState) -> BoxFuture<'_, BatchCalled>;
}

/// What became of a batch.
pub(crate) struct BatchCalled {
    /// Each message with its error, in delivery order.
    pub(crate) items: Vec<(Context, std::result::Result<(), CallError>)>,
    pub(crate) state: StagedState,
    pub(crate) ended: Result,
}

pub(crate) struct ErasedBatch<H, M> {
    handler: H,
    codec: Codec,
    message: PhantomData<fn(M)>,
}

impl<H, M> ErasedBatch<H, M> {
    pub(crate) const fn new(handler: H, codec: Codec) -> Self {
        Self { handler, codec, message: PhantomData }
    }
}

impl<H: BatchHandler<M>, M: FromMessage + Send + 'static> ErasedBatchHandler for ErasedBatch<H, M> {
    fn call_batch(&self, messages: Vec<Context>, state: StagedState) -> BoxFuture<'_, BatchCalled> {
        Box::pin(async move {
            let mut called = Vec::with_capacity(messages.len());
            let mut items = Vec::with_capacity(messages.len());
            let (mut key, mut limits) = (None, None);
            for mut cx in messages {
                cx.is_in_batch = true;
                match M::from_message(&cx.message, self.codec) {
                    Ok(value) => {
                        key = cx.key.clone();
                        limits = Some(cx.limits);
                        called.push(None);
                        items.push(BatchItem { value, cx, failed: None });
                    }
                    Err(error) => called.push(Some((cx, Err(CallError::Decode(error))))),
                }
            }
            let Some(limits) = limits else {
                let items = called.into_iter().flatten().collect();
                return BatchCalled { items, state, ended: Ok(()) };
            };
            let mut batch = Batch { items, key, limits, state };
            let ended = self.handler.handle(&mut batch).await;
            let Batch { items, state, .. } = batch;
            let mut handled = items.into_iter().map(|item| {
                let ended = item.failed.map_or(Ok(()), |error| Err(CallError::Handle(error)));
                (item.cx, ended)
            });
            // What did not decode takes its place between the others again.
            let items = called.into_iter().filter_map(|item| item.or_else(|| handled.next()));
            BatchCalled { items: items.collect(), state, ended }
        })
    }
}
