//! Steps of messages: begun, or ended with a result; mirrored in memory, as there are few.
//!
//! A step is known when it is durable, never before. Steps of a message that never comes back are collected as its
//! attempts are. Does not decide what an unfinished step means.

use super::record::QueueId;
use super::rows::StepRow;
use super::spill::Owner;
use super::{Change, Persisted, Records, Store};
use crate::identity::Identity;

pub(super) const STEP_PREFIX: &[u8] = b"t";

/// A name can be longer than a key may be, so its hash stands there.
pub(super) fn step_key(identity: Identity, name: &str) -> Vec<u8> {
    let hash = blake3::hash(name.as_bytes());
    let hash = hash.as_bytes().first_chunk::<16>().map_or(&[][..], |hash| hash);
    [STEP_PREFIX, identity.as_bytes(), hash].concat()
}

/// The message in the key of a step.
pub(super) fn identity_of_key(key: &[u8]) -> Option<Identity> {
    let key = key.strip_prefix(STEP_PREFIX)?;
    key.first_chunk::<16>().map(|identity| Identity::from_bytes(*identity))
}

/// Rows beside the record that a message may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) attempts: bool,
    pub(crate) steps: bool,
}

impl Store {
    /// What an unfinished run has left of a message.
    pub(crate) fn left_of(&self, identity: Identity) -> Left {
        let rows = self.shared.rows();
        Left {
            attempts: rows.attempts.contains_key(&identity),
            steps: rows.steps.contains_key(&identity),
        }
    }

    /// One step of a message.
    pub(crate) fn step(&self, identity: Identity, name: &str) -> Option<StepRow> {
        let rows = self.shared.rows();
        rows.steps.get(&identity)?.iter().find(|step| step.name == name).cloned()
    }

    /// Steps of a message, in no order.
    pub(crate) fn steps(&self, identity: Identity) -> Vec<StepRow> {
        self.shared.rows().steps.get(&identity).cloned().unwrap_or_default()
    }

    /// Makes the beginning or, with a result, the end of a step durable; `None` after a failure of the store.
    pub(crate) async fn put_step(
        &self,
        identity: Identity,
        queue: QueueId,
        name: &str,
        result: Option<Vec<u8>>,
    ) -> Option<Persisted> {
        let result = match result {
            None => None,
            Some(result) => {
                Some(self.stored(Owner::Step(identity), result.into(), name.len()).await?)
            }
        };
        let updated_at_ms = self.shared.clock.now_ms();
        let step = StepRow { queue, name: name.to_owned(), result, updated_at_ms };
        self.persist(queue, Records::new(), vec![Change::PutStep(identity, step)]).await
    }
}
