//! What an actor remembers of its key from one message to the next: the state, as of the last commit it handed in.
//!
//! Read from the store when the actor runs its first message, and then kept: commits are durable in the order in which
//! they are handed in, so the state here is never older than what the store will have.

use super::admission::Admitted;
use super::queue::Queue;
use crate::effects::{CurrentState, EncodedState};
use crate::planted::{self, Bug};
use crate::store::{Change, KeyId, KeyState, SharedState, StateValue, StoreError};

/// The state of one key.
#[derive(Debug, Default)]
pub(crate) struct KeyMemory {
    id: Option<KeyId>,
    /// Boxed: it lies in every actor's task, and few keys have a state.
    known: Option<Box<Known>>,
}

#[derive(Debug)]
struct Known {
    stored: SharedState,
    current: CurrentState,
}

impl KeyMemory {
    /// Reads the state of the message's key, if it has one and it was not read before.
    pub(crate) async fn load(
        &mut self,
        queue: &Queue,
        message: &Admitted,
    ) -> Result<(), StoreError> {
        if self.id.is_none()
            && let Some(key) = message.named_key()
            && queue.store.has_states()
        {
            let id = queue.store.key_id(queue.id, key);
            let stored = Box::pin(queue.store.state(id)).await?;
            self.id = Some(id);
            self.known = stored.is_some().then(|| {
                let current = stored.as_deref().map(current).unwrap_or_default();
                Box::new(Known { stored, current })
            });
        }
        Ok(())
    }

    /// What the next attempt finds.
    pub(crate) fn current(&self) -> &CurrentState {
        static NONE: CurrentState = CurrentState { value: None, latest: None };
        self.known.as_ref().map_or(&NONE, |known| &known.current)
    }

    /// Whose order the message's effects follow.
    pub(crate) fn key_id(&mut self, queue: &Queue, message: &Admitted) -> KeyId {
        *self.id.get_or_insert_with(|| queue.key_of(message))
    }

    /// Adds what makes `state` the key's to the rows of a commit that follows; `None` after a failure of the store.
    pub(crate) async fn stage(
        &mut self,
        queue: &Queue,
        message: &Admitted,
        state: CurrentState,
        rows: &mut Vec<Change>,
    ) -> Option<()> {
        let id = self.key_id(queue, message);
        let has_any = state.value.is_some() || state.latest.is_some();
        let before = self.known.as_ref().and_then(|known| known.stored.clone());
        let next = has_any.then(|| stored(&state, before.as_deref()));
        let stored = queue.store.stage_state(id, &before, next, rows).await?;
        if !planted::is(Bug::StateNotRemembered) {
            self.known = Some(Box::new(Known { stored, current: state }));
        }
        Some(())
    }
}

fn current(state: &KeyState) -> CurrentState {
    let value = state.value.as_ref().map(|value| EncodedState {
        name: value.name.clone(),
        version: value.version,
        bytes: value.bytes.clone(),
    });
    CurrentState { value, latest: state.latest }
}

/// A value that is the same as before stays where it lies.
fn stored(state: &CurrentState, before: Option<&KeyState>) -> KeyState {
    let before = before.and_then(|before| before.value.as_ref());
    let value = state.value.as_ref().map(|value| StateValue {
        name: value.name.clone(),
        version: value.version,
        bytes: value.bytes.clone(),
        spilled: before
            .filter(|before| before.bytes == value.bytes)
            .and_then(|before| before.spilled),
    });
    KeyState { value, latest: state.latest }
}
