//! The context of one attempt: what its handler sees of the message, and where it stages effects.
//!
//! Borrowed by the handler, so nothing can be staged after the attempt has ended. What is staged becomes durable with
//! the record of the message, or not at all.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::effects::{EffectError, Limits, StagedMessages, StagedState, State, StepStore};
use crate::identity::{self, Identity, ScopeName};
use crate::message::{Headers, Key, Message, MessageId, Properties};

/// One attempt at one message, as its handler sees it.
#[derive(Debug)]
pub struct Context {
    pub(crate) message: Arc<Message>,
    pub(crate) id: MessageId,
    pub(crate) scope: ScopeName,
    pub(crate) identity: Identity,
    pub(crate) key: Option<Key>,
    pub(crate) attempt: u32,
    pub(crate) redelivered: bool,
    pub(crate) deadline: Instant,
    pub(crate) limits: Limits,
    pub(crate) state: StagedState,
    pub(crate) messages: StagedMessages,
    /// The queue: all its actors share it, and nothing else here.
    pub(crate) steps: Arc<dyn StepStore>,
    /// Names of the steps of this attempt.
    pub(crate) steps_used: Vec<String>,
    /// Whether the state is the batch's.
    pub(crate) is_in_batch: bool,
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
        self.steps.queue()
    }

    /// Which attempt this is, counted from 1; survives restarts.
    ///
    /// A run cut short by a crash counts too, from the second delivery on. One that failed while the queue's breaker
    /// was open does not: the next has the same number.
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

    /// The state of the message's key, or `None` if there is none yet.
    ///
    /// It is what the last message of the key left behind, and what this attempt has set.
    ///
    /// ```
    /// async fn on_deposit(cx: &mut onceward::Context, cents: i64) -> onceward::Result {
    ///     let balance = cx.state::<i64>()?.unwrap_or(0) + cents;
    ///     cx.set_state(&balance)?; // } One atomic commit
    ///     cx.publish("billing", "balance.changed", &balance)?; // } with the record of the message.
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EffectError::NoKey`] for a message without an ordering key; [`EffectError::StateUnreadable`] if the stored
    /// state is of another type or version and `S` does not migrate it.
    pub fn state<S: State>(&self) -> Result<Option<S>, EffectError> {
        self.need_key()?;
        self.state.get()
    }

    /// Stages the state of the message's key: what the next message of the key finds if this attempt succeeds.
    ///
    /// # Errors
    ///
    /// [`EffectError::NoKey`] for a message without an ordering key; [`EffectError::StateTooLarge`] over `max_state`,
    /// which dead-letters the message.
    pub fn set_state<S: State>(&mut self, state: &S) -> Result<(), EffectError> {
        self.need_key()?;
        self.state.set(state, &self.limits)
    }

    /// Stages that the key has no state: nothing is kept of it but the version of [`is_stale`](Self::is_stale).
    ///
    /// # Errors
    ///
    /// [`EffectError::NoKey`] for a message without an ordering key.
    pub fn clear_state(&mut self) -> Result<(), EffectError> {
        self.need_key()?;
        self.state.clear();
        Ok(())
    }

    /// Whether a message of this key with this version or a later one is done already; if not, stages that this is the
    /// latest.
    ///
    /// For producers whose messages carry a rising version and may come late or out of order: the last write wins.
    ///
    /// ```
    /// #[derive(serde::Deserialize)]
    /// struct Price { version: u64, cents: i64 }
    ///
    /// async fn on_price(cx: &mut onceward::Context, price: Price) -> onceward::Result {
    ///     if cx.is_stale(price.version)? {
    ///         return Ok(()); // A later price is known: done, without an effect.
    ///     }
    ///     cx.set_state(&price.cents)?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EffectError::NoKey`] for a message without an ordering key.
    pub fn is_stale(&mut self, version: u64) -> Result<bool, EffectError> {
        self.need_key()?;
        Ok(self.state.is_stale(version))
    }

    /// Stages a message that goes out if this attempt succeeds, and gives its properties to add to.
    ///
    /// It is committed with the record of this message and then published until the broker confirms it, in the
    /// order of commits per key; this message is acknowledged after that. The body is encoded by the queue's codec.
    /// Its `message-id` is a function of this message's id and the number of messages staged before, so it is
    /// the same however often it is published.
    ///
    /// ```
    /// async fn on_order(cx: &mut onceward::Context, order: u64) -> onceward::Result {
    ///     let properties = cx.publish("events", "order.placed", &order)?;
    ///     properties.headers.insert("x-region".to_owned(), "eu".into());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EffectError::OutgoingTooLarge`] if all staged messages together are over `max_outgoing`,
    /// [`EffectError::Unsendable`] for names that AMQP cannot carry, [`EffectError::Unencodable`]. Properties that no
    /// broker can take are found when the handler returns, and dead-letter the message as `rejected`.
    pub fn publish<T: Serialize + ?Sized>(
        &mut self,
        exchange: &str,
        routing_key: &str,
        value: &T,
    ) -> Result<&mut Properties, EffectError> {
        self.messages.publish(exchange, routing_key, value, &self.limits)
    }

    /// Stages a message for a queue, by the default exchange; see [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub fn send<T: Serialize + ?Sized>(
        &mut self,
        queue: &str,
        value: &T,
    ) -> Result<&mut Properties, EffectError> {
        self.publish("", queue, value)
    }

    /// Stages a message as it is but for its `message-id` and its persistence; see [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub fn emit(&mut self, message: Message) -> Result<&mut Properties, EffectError> {
        self.messages.emit(message, &self.limits)
    }

    const fn need_key(&self) -> Result<(), EffectError> {
        match &self.key {
            _ if self.is_in_batch => Err(EffectError::InBatch),
            None => Err(EffectError::NoKey),
            Some(_) => Ok(()),
        }
    }

    /// The first attempt at `message`, from queue `orders`, with its message-id as the id.
    #[cfg(test)]
    pub(crate) fn for_tests(message: Message) -> Self {
        let id = message.properties.message_id.clone().unwrap_or_default();
        Self {
            message: Arc::new(message),
            id: MessageId::new(id),
            scope: ScopeName::queue("orders"),
            identity: Identity::from_bytes([1; 16]),
            key: None,
            attempt: 1,
            redelivered: false,
            deadline: tokio::time::Instant::now().into_std() + std::time::Duration::from_secs(30),
            limits: Limits {
                codec: crate::payload::Codec::default(),
                state_bytes_max: 1024,
                result_bytes_max: 1024,
                outgoing_bytes_max: 1024 * 1024,
            },
            state: StagedState::default(),
            messages: StagedMessages::default(),
            steps: Arc::new(NoSteps),
            steps_used: Vec::new(),
            is_in_batch: false,
        }
    }
}

/// Keeps nothing.
#[cfg(test)]
struct NoSteps;

#[cfg(test)]
impl StepStore for NoSteps {
    fn queue(&self) -> &str {
        "orders"
    }

    fn find<'a>(
        &'a self,
        _: Identity,
        _: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<crate::effects::StepFound, EffectError>> {
        Box::pin(std::future::ready(Ok(crate::effects::StepFound::New)))
    }

    fn put<'a>(
        &'a self,
        _: Identity,
        _: &'a str,
        _: Option<Vec<u8>>,
    ) -> futures_util::future::BoxFuture<'a, Result<(), EffectError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
