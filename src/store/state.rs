//! The state of ordering keys: one row a key, and in memory what is handed in and not durable yet.
//!
//! Whoever reads a state sees the last commit of it that was handed in, durable or not: commits become durable in that
//! order, so nothing that builds on a state outlives it. Queues without state pay for none of this.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::backend::StoreError;
use super::record::{self, QueueId, UnsealError};
use super::rows::{KeyId, KeyState, SharedState, Spilled, StateValue, Stored};
use super::spill::Owner;
use super::{Change, StateChange, Store};
use crate::message::Key;

pub(super) const STATE_PREFIX: &[u8] = b"s";

pub(super) fn state_key(key: KeyId) -> Vec<u8> {
    [STATE_PREFIX, &key.queue.0.to_be_bytes(), &key.hash].concat()
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateRow {
    pub(super) latest: Option<u64>,
    pub(super) value: Option<ValueRow>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ValueRow {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) bytes: Stored,
}

/// The spilled value that a state's row refers to.
pub(super) fn spilled_in_row(row: &[u8]) -> Result<Option<Spilled>, UnsealError> {
    let row: StateRow = record::unseal(row)?;
    Ok(row.value.and_then(|value| value.bytes.spilled()))
}

/// The states that are not durable yet.
#[derive(Debug, Default)]
pub(super) struct States {
    /// Whether any queue has ever had a state: without, nobody looks for one.
    any: AtomicBool,
    handed_in: Mutex<HashMap<KeyId, HandedIn>>,
}

#[derive(Debug)]
struct HandedIn {
    latest: SharedState,
    /// Commits of this key that are on their way.
    commits: u32,
}

impl States {
    fn handed_in(&self) -> MutexGuard<'_, HashMap<KeyId, HandedIn>> {
        self.handed_in.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a state on disk.
    pub(super) fn exist(&self) {
        self.any.store(true, Ordering::Release);
    }

    /// Learns of a state before its commit goes to the committer.
    pub(super) fn hand_in(&self, change: &StateChange) {
        self.exist();
        let latest = change.state.clone();
        match self.handed_in().entry(change.key) {
            Entry::Vacant(vacant) => {
                vacant.insert(HandedIn { latest, commits: 1 });
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                *known = HandedIn { latest, commits: known.commits + 1 };
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_durable(&self) -> bool {
        self.handed_in().is_empty()
    }

    /// The oldest commit of the key that was on its way is durable.
    pub(super) fn persisted(&self, key: KeyId) {
        if let Entry::Occupied(mut known) = self.handed_in().entry(key) {
            known.get_mut().commits -= 1;
            if known.get().commits == 0 {
                known.remove();
            }
        }
    }
}

impl Store {
    /// Hash of an ordering key of a queue.
    pub(crate) fn key_id(&self, queue: QueueId, key: &Key) -> KeyId {
        KeyId { queue, hash: self.hash_key().key(queue.0, key.as_bytes()) }
    }

    /// Whether any key has a state: if not, nobody needs to look for one.
    pub(crate) fn has_states(&self) -> bool {
        self.shared.states.any.load(Ordering::Acquire)
    }

    /// The state of a key as of the last commit that was handed in.
    ///
    /// One task at a time may ask for a key and commit its states.
    pub(crate) async fn state(&self, key: KeyId) -> Result<SharedState, StoreError> {
        if !self.has_states() {
            return Ok(None);
        }
        if self.has_failed() {
            return Err(self.shared.failed_earlier());
        }
        if let Some(handed_in) = self.shared.states.handed_in().get(&key) {
            return Ok(handed_in.latest.clone());
        }
        let Some(row) = self.shared.backend.get(&state_key(key)).await? else {
            return Ok(None);
        };
        let row: StateRow = record::unseal(&row)
            .map_err(|error| self.shared.damaged(format!("the state of {key}: {error}")))?;
        let value = match row.value {
            None => None,
            Some(ValueRow { name, version, bytes: stored }) => {
                let (bytes, spilled) = (self.fetch(&stored).await?, stored.spilled());
                Some(StateValue { name, version, bytes, spilled })
            }
        };
        Ok(Some(Arc::new(KeyState { value, latest: row.latest })))
    }

    /// Adds to `rows` what replaces the state `old` by `new`; gives what is the state after the commit.
    ///
    /// A large value is made durable here, before the commit that refers to it; `None` after a failure of the store.
    pub(crate) async fn stage_state(
        &self,
        key: KeyId,
        old: &SharedState,
        mut new: Option<KeyState>,
        rows: &mut Vec<Change>,
    ) -> Option<SharedState> {
        if let Some(value) = new.as_mut().and_then(|new| new.value.as_mut())
            && value.spilled.is_none()
        {
            let owner = Owner::State(key);
            let stored = self.stored(owner, value.bytes.clone(), value.name.len()).await?;
            value.spilled = stored.spilled();
        }
        let spilled = |state: &KeyState| state.value.as_ref().and_then(|value| value.spilled);
        let kept = new.as_ref().and_then(spilled);
        if let Some(left) = old.as_deref().and_then(spilled)
            && kept != Some(left)
        {
            rows.push(Change::RemoveSpilled(left));
        }
        let row = new.as_ref().map(encode);
        let bytes = |row: &Option<Vec<u8>>| row.as_ref().map_or(0, |row| row.len() as i64);
        let grown_bytes = bytes(&row) - bytes(&old.as_deref().map(encode));
        let state = new.map(Arc::new);
        rows.push(Change::PutState(StateChange { key, state: state.clone(), row, grown_bytes }));
        Some(state)
    }
}

fn encode(state: &KeyState) -> Vec<u8> {
    let value = state.value.as_ref().map(|value| ValueRow {
        name: value.name.clone(),
        version: value.version,
        bytes: value.spilled.map_or_else(|| Stored::Inline(value.bytes.clone()), Stored::Spilled),
    });
    record::seal(&StateRow { latest: state.latest, value })
}
