//! A disk for tests: it keeps what was synced and forgets the rest when the power goes.
//!
//! A commit takes the sync delay; until it is over, its rows can be read but do not survive [`SimulatedDisk::cut`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::backend::{Backend, Batch, Row, StoreError};

/// A disk in memory; clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What reads see: the durable rows and those of a commit under way.
    current: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Rises with every power cut; a handle of an earlier one is dead.
    life: u64,
    opened: bool,
    sync_delay: Duration,
    failing: bool,
    syncs: u64,
    note: Option<Vec<u8>>,
}

impl SimulatedDisk {
    /// An empty disk that syncs at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a sync takes from now on.
    pub fn set_sync_delay(&self, delay: Duration) {
        self.lock().sync_delay = delay;
    }

    /// Whether syncs fail from now on.
    pub fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// Cuts the power: what was not synced is gone, and what runs on this disk gets errors.
    pub fn cut(&self) {
        let mut state = self.lock();
        state.current = state.durable.clone();
        state.life += 1;
        state.opened = false;
    }

    /// Syncs that succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    pub(crate) fn open(&self) -> Result<SimulatedBackend, StoreError> {
        let mut state = self.lock();
        if state.opened {
            return Err(StoreError::InUse { path: disk_path() });
        }
        state.opened = true;
        Ok(SimulatedBackend { disk: self.clone(), life: state.life })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn disk_path() -> PathBuf {
    PathBuf::from("simulated")
}

#[derive(Debug)]
pub(crate) struct SimulatedBackend {
    disk: SimulatedDisk,
    life: u64,
}

impl SimulatedBackend {
    fn live(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.disk.lock();
        if state.life == self.life { Ok(state) } else { Err(failed("the power was cut")) }
    }
}

fn failed(reason: &str) -> StoreError {
    StoreError::Failed { path: disk_path(), reason: reason.into() }
}

impl Drop for SimulatedBackend {
    fn drop(&mut self) {
        if let Ok(mut state) = self.live() {
            state.opened = false;
        }
    }
}

impl Backend for SimulatedBackend {
    fn get<'a>(&'a self, key: &'a [u8]) -> BoxFuture<'a, Result<Option<Vec<u8>>, StoreError>> {
        let value = self.live().map(|state| state.current.get(key).cloned());
        std::future::ready(value).boxed()
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        let rows = self.live().map(|state| {
            let in_prefix = state.current.range(prefix.to_vec()..);
            in_prefix
                .take_while(|(key, _)| key.starts_with(prefix))
                .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
                .take(limit)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        });
        std::future::ready(rows).boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let ops = batch.into_ops();
            let delay = {
                let mut state = self.live()?;
                apply(&mut state.current, &ops);
                state.sync_delay
            };
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let mut state = self.live()?;
            if state.failing {
                return Err(failed("fdatasync: Input/output error"));
            }
            apply(&mut state.durable, &ops);
            state.syncs += 1;
            Ok(())
        }
        .boxed()
    }

    fn note(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StoreError>> {
        std::future::ready(self.live().map(|state| state.note.clone())).boxed()
    }

    fn leave_note(&self, note: Vec<u8>) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(self.live().map(|mut state| state.note = Some(note))).boxed()
    }

    fn disk_bytes(&self) -> u64 {
        let rows = self.disk.lock();
        rows.current.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

fn apply(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, ops: &[(Vec<u8>, Option<Vec<u8>>)]) {
    for (key, value) in ops {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}
