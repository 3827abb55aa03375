//! Steps: calls to other systems whose results are on record before the next step runs.
//!
//! A step whose result is on record is not called again. For a call whose end is unknown, because the process died in
//! it or it returned an error, each method has a policy of its own; all but [`Context::once`] make the intent durable
//! before the call, so that a call that may have happened is known as such.

use std::fmt;
use std::future::Future;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{EffectError, NAME_BYTES_MAX};
use crate::context::Context;
use crate::handler::{HandleError, Result};
use crate::identity::Identity;
use crate::payload::encode_json;

/// What the other side says of a call whose end is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<R> {
    /// It happened, with this result: it is not made again.
    Happened(R),
    /// It did not happen: it is made now.
    DidNot,
    /// Nobody can tell yet: the attempt fails, and the next one asks again.
    Unknown,
}

/// What is on record of a step.
#[derive(Debug)]
pub(crate) enum StepFound {
    New,
    /// Begun, and its end is not known.
    Begun,
    Done(Bytes),
}

/// Where the steps of one queue's messages are kept.
pub(crate) trait StepStore: Send + Sync {
    /// Name of the queue.
    fn queue(&self) -> &str;

    fn find<'a>(
        &'a self,
        identity: Identity,
        name: &'a str,
    ) -> BoxFuture<'a, std::result::Result<StepFound, EffectError>>;

    /// Makes the beginning of a step durable, or its end with its result.
    fn put<'a>(
        &'a self,
        identity: Identity,
        name: &'a str,
        result: Option<Vec<u8>>,
    ) -> BoxFuture<'a, std::result::Result<(), EffectError>>;
}

impl fmt::Debug for dyn StepStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepStore")
    }
}

impl Context {
    /// Calls another system, unless the result of this step is on record: then that is returned.
    ///
    /// The call gets the step's [effect key](Context::effect_key), the same in every attempt and after every
    /// restart. It is made again, with that key, if an earlier one ended with an error or with the process: use this
    /// where the other side does nothing the second time, such as one that takes an `Idempotency-Key`, and else
    /// [`once_or_ask`](Self::once_or_ask), [`once_or_compensate`](Self::once_or_compensate) or
    /// [`once_or_park`](Self::once_or_park). The result is kept as JSON until the message is done.
    ///
    /// ```
    /// # async fn pay(key: String, cents: i64) -> Result<String, std::io::Error> { Ok(key) }
    /// async fn on_charge(cx: &mut onceward::Context, cents: i64) -> onceward::Result {
    ///     let receipt: String = cx.once("card", async |key| pay(key, cents).await).await?;
    ///     cx.send("receipts", &receipt)?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The call's own error; an [`EffectError`] if the name was used before in this attempt or is longer than 255
    /// bytes, the result is over `max_result` or cannot be encoded or read, or the store has failed.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, by the timeout for one, the call may have happened: the next attempt makes it again.
    pub async fn once<R, E, Fut>(
        &mut self,
        name: &str,
        call: impl FnOnce(String) -> Fut + Send,
    ) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Send,
        E: Into<HandleError>,
        Fut: Future<Output = std::result::Result<R, E>> + Send,
    {
        match self.find_step(name).await? {
            Found::Done(result) => Ok(result),
            Found::New | Found::Begun => self.run_step(name, call).await,
        }
    }

    /// As [`once`](Self::once), for a call that must not be made twice and can be asked about.
    ///
    /// The intent is durable before the call. If an earlier call ended with an error or with the process, `ask` is
    /// called first, with the same key, and says whether it happened.
    ///
    /// # Errors
    ///
    /// As [`once`](Self::once); the error of `ask`; [`EffectError::StillUnknown`] if it cannot tell.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the call may have happened: the next attempt asks.
    pub async fn once_or_ask<R, E, F, Asking, Fut>(
        &mut self,
        name: &str,
        ask: impl FnOnce(String) -> Asking + Send,
        call: impl FnOnce(String) -> Fut + Send,
    ) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Send,
        E: Into<HandleError>,
        F: Into<HandleError>,
        Asking: Future<Output = std::result::Result<Asked<R>, F>> + Send,
        Fut: Future<Output = std::result::Result<R, E>> + Send,
    {
        match self.find_step(name).await? {
            Found::Done(result) => return Ok(result),
            Found::New => self.begin_step(name).await?,
            Found::Begun => match ask(self.effect_key(name)).await.map_err(Into::into)? {
                Asked::Happened(result) => return self.finish_step(name, result).await,
                Asked::DidNot => {}
                Asked::Unknown => {
                    let (step, key) = (name.to_owned(), self.effect_key(name));
                    return Err(EffectError::StillUnknown { step, key }.into());
                }
            },
        }
        self.run_step(name, call).await
    }

    /// As [`once`](Self::once), for a call that must not be made twice and can be undone.
    ///
    /// The intent is durable before the call. If an earlier call ended with an error or with the process, `undo` is
    /// called first, with the same key, and then the call is made again. `undo` must do nothing where nothing
    /// happened, and may itself be repeated.
    ///
    /// # Errors
    ///
    /// As [`once`](Self::once), and the error of `undo`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the call may have happened: the next attempt undoes it.
    pub async fn once_or_compensate<R, E, F, Undoing, Fut>(
        &mut self,
        name: &str,
        undo: impl FnOnce(String) -> Undoing + Send,
        call: impl FnOnce(String) -> Fut + Send,
    ) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Send,
        E: Into<HandleError>,
        F: Into<HandleError>,
        Undoing: Future<Output = std::result::Result<(), F>> + Send,
        Fut: Future<Output = std::result::Result<R, E>> + Send,
    {
        match self.find_step(name).await? {
            Found::Done(result) => return Ok(result),
            Found::New => self.begin_step(name).await?,
            Found::Begun => undo(self.effect_key(name)).await.map_err(Into::into)?,
        }
        self.run_step(name, call).await
    }

    /// As [`once`](Self::once), for a call that must not be made twice and that only an operator can find out about.
    ///
    /// The intent is durable before the call. If an earlier call ended with an error or with the process, the message
    /// is dead-lettered as `in-doubt`.
    ///
    /// # Errors
    ///
    /// As [`once`](Self::once), and [`EffectError::InDoubt`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the call may have happened: the next attempt dead-letters the message.
    pub async fn once_or_park<R, E, Fut>(
        &mut self,
        name: &str,
        call: impl FnOnce(String) -> Fut + Send,
    ) -> Result<R>
    where
        R: Serialize + DeserializeOwned + Send,
        E: Into<HandleError>,
        Fut: Future<Output = std::result::Result<R, E>> + Send,
    {
        match self.find_step(name).await? {
            Found::Done(result) => return Ok(result),
            Found::New => self.begin_step(name).await?,
            Found::Begun => {
                let (step, key) = (name.to_owned(), self.effect_key(name));
                return Err(EffectError::InDoubt { step, key }.into());
            }
        }
        self.run_step(name, call).await
    }

    async fn find_step<R: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Found<R>, EffectError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(EffectError::StepNameTooLong { bytes: name.len() });
        }
        if self.steps_used.iter().any(|used| used == name) {
            return Err(EffectError::StepTwice { step: name.to_owned() });
        }
        self.steps_used.push(name.to_owned());
        match self.steps.find(self.identity, name).await? {
            StepFound::New => Ok(Found::New),
            StepFound::Begun => Ok(Found::Begun),
            StepFound::Done(result) => {
                let result = serde_json::from_slice(&result).map_err(|error| {
                    EffectError::StepUnreadable { step: name.to_owned(), source: error.into() }
                })?;
                Ok(Found::Done(result))
            }
        }
    }

    async fn begin_step(&self, name: &str) -> Result<(), EffectError> {
        self.steps.put(self.identity, name, None).await
    }

    async fn run_step<R, E, Fut>(
        &self,
        name: &str,
        call: impl FnOnce(String) -> Fut + Send,
    ) -> Result<R>
    where
        R: Serialize + Send,
        E: Into<HandleError>,
        Fut: Future<Output = std::result::Result<R, E>> + Send,
    {
        let result = call(self.effect_key(name)).await.map_err(Into::into)?;
        self.finish_step(name, result).await
    }

    async fn finish_step<R: Serialize>(&self, name: &str, result: R) -> Result<R> {
        let bytes_max = self.limits.result_bytes_max;
        let what = || format!("the result of step {name:?}");
        let bytes = encode_json(&result, bytes_max).map_err(|error| {
            EffectError::of_encoding(error, what(), || EffectError::ResultTooLarge {
                what: what(),
                bytes_max,
            })
        })?;
        self.steps.put(self.identity, name, Some(bytes)).await?;
        Ok(result)
    }
}

/// What is on record of a step, decoded.
enum Found<R> {
    New,
    Begun,
    Done(R),
}
