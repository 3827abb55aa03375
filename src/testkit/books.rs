//! What a store on a simulated disk knows, read from a copy of what is durable on it.
//!
//! Reads as a restarted worker would, and changes nothing on the disk itself.

use bytes::Bytes;

use super::origin::Inbound;
use super::world::World;
use crate::effects::EncodedState;
use crate::message::Key;
use crate::options::QueueOptions;
use crate::store::{
    Committer, KeyState, Outcome, QueueIds, QueueRetention, Store, StoreError, StoreOptions,
    Watermark,
};

pub(super) struct Books {
    store: Store,
    /// A store without its committer answers nothing.
    _committer: Committer,
    queues: Vec<(String, QueueIds)>,
}

/// How a message ended, and what its handler returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// `done`, `dead: REASON`, `forgotten`, `unfinished after N attempts` or `unknown`.
    pub(super) outcome: String,
    pub(super) result: Option<Bytes>,
}

impl Books {
    pub(super) async fn open(world: &World) -> Result<Self, StoreError> {
        let mut options = StoreOptions::new("simulated");
        options.simulated = Some(world.disk.fork());
        options.clock = world.clock.clone();
        let retention = |options: &QueueOptions| QueueRetention {
            name: options.queue.clone(),
            retention: options.retention,
            classes: Vec::new(),
        };
        let queues: Vec<_> = world.queues.iter().map(|queue| retention(&queue.options)).collect();
        let (store, committer, ids) = Store::open(&options, &queues, &|_| {}).await?;
        let names = queues.into_iter().map(|queue| queue.name);
        Ok(Self { store, _committer: committer, queues: names.zip(ids).collect() })
    }

    pub(super) async fn state(
        &self,
        queue: &str,
        key: &Key,
    ) -> Result<Option<KeyState>, StoreError> {
        let Some((_, ids)) = self.queues.iter().find(|(name, _)| name == queue) else {
            return Ok(None);
        };
        let state = self.store.state(self.store.key_id(ids.own, key)).await?;
        Ok(state.as_deref().cloned())
    }

    pub(super) async fn ending(&self, message: &Inbound) -> Result<Ending, StoreError> {
        let identity = message.identity(self.store.hash_key());
        let Some(found) = self.store.lookup(identity).await? else {
            let sequence = message.sequence_id(self.store.hash_key());
            let outcome = match sequence.map(|sequence| self.store.watermark(sequence)) {
                Some(Watermark::Done(_)) => "done".to_owned(),
                Some(_) | None => match self.store.attempts(identity) {
                    Some(attempts) => format!("unfinished after {} attempts", attempts.started),
                    None => "unknown".to_owned(),
                },
            };
            return Ok(Ending { outcome, result: None });
        };
        let outcome = match &found.record.outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Dead(note) => format!("dead: {}", note.reason.name()),
            Outcome::Forgotten(_) => "forgotten".to_owned(),
        };
        let result = match &found.record.result {
            Some(result) => Some(self.store.fetch_result(result).await?),
            None => None,
        };
        Ok(Ending { outcome, result })
    }
}

/// The encoded value of a state, if it has one.
pub(super) fn value_of(state: KeyState) -> Option<EncodedState> {
    let value = state.value?;
    Some(EncodedState { name: value.name, version: value.version, bytes: value.bytes })
}
