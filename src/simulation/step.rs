//! The steps of simulated handlers: each by one of the policies that a handler can choose, and the other side, which
//! knows what happened.
//!
//! The other side outlives workers, as whoever is called over a net does. Writes every call into the history.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::handler::Player;
use super::history::{Call, Event, Name};
use super::part::{Part, Policy};
use crate::context::Context;
use crate::effects::Asked;
use crate::handler::{HandleError, Result};

/// What steps call; clones are the same.
#[derive(Clone, Default)]
pub(super) struct OtherSide {
    /// Effect keys of what has happened.
    happened: Arc<Mutex<BTreeSet<String>>>,
}

impl OtherSide {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Player {
    /// Takes a step of a message.
    pub(super) async fn step(
        &self,
        cx: &mut Context,
        name: &Name,
        part: &Part,
        number: u64,
    ) -> Result {
        let (attempt, policy) = (cx.attempt(), part.policy(number));
        let step: Arc<str> = format!("step {number}").into();
        let put = |key: &str, call: Call| {
            let (life, name, step) = (self.life, Arc::clone(name), Arc::clone(&step));
            self.log.put_of(life, Event::Called { life, name, step, effect_key: key.into(), call });
        };
        let made = match policy {
            Policy::Repeat => Call::Repeatable,
            Policy::Ask | Policy::Undo | Policy::Park => Call::Guarded,
        };
        let call = async |key: String| {
            put(&key, made);
            tokio::time::sleep(part.call_takes / 2).await;
            self.other_side.lock().insert(key);
            tokio::time::sleep(part.call_takes / 2).await;
            if attempt <= part.call_failures && !self.is_over() {
                return Err(HandleError::from(std::io::Error::other("no answer")));
            }
            Ok(number)
        };
        let ask = async |key: String| {
            // It cannot tell at once.
            if attempt == 2 && !self.is_over() && part.call_takes.as_millis().is_multiple_of(2) {
                return Ok(Asked::Unknown);
            }
            if self.other_side.lock().contains(&key) {
                return Ok(Asked::Happened(number));
            }
            put(&key, Call::Clears);
            Ok::<_, HandleError>(Asked::DidNot)
        };
        let undo = async |key: String| {
            self.other_side.lock().remove(&key);
            put(&key, Call::Clears);
            Ok::<_, HandleError>(())
        };
        match policy {
            Policy::Repeat => cx.once(&step, call).await?,
            Policy::Ask => cx.once_or_ask(&step, ask, call).await?,
            Policy::Undo => cx.once_or_compensate(&step, undo, call).await?,
            Policy::Park => cx.once_or_park(&step, call).await?,
        };
        Ok(())
    }
}
