//! A disk for tests: it keeps what was synced and forgets the rest when the power goes.
//!
//! A commit takes the sync delay; until it is over, its rows can be read but do not survive [`SimulatedDisk::cut`]. A
//! witness sees each commit at the end of that delay and may cut the power there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::backend::{Backend, Batch, Row, StoreError};
use super::described::{self, NameOf};
use super::record::{self, Meta};
use crate::failpoint::{self, Point};
use crate::identity::HashKey;

mod fate;

#[cfg(feature = "simulation")]
pub(crate) use self::fate::Script;
pub(crate) use self::fate::{Fate, Witness};

/// A disk in memory; clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

/// All rows of a disk.
pub(crate) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct State {
    durable: Rows,
    /// What reads see: the durable rows and those of a commit under way.
    current: Rows,
    /// Rises with every power cut; a handle of an earlier one is dead.
    life: u64,
    opened: bool,
    sync_delay: Duration,
    failing: bool,
    syncs: u64,
    note: Option<Vec<u8>>,
    witness: Option<Witness>,
    #[cfg(feature = "simulation")]
    script: Option<Arc<dyn Script>>,
    /// What a commit has applied and not synced.
    under_way: Option<Vec<Op>>,
    /// The random key that a new store gets.
    hash_key: Option<[u8; 32]>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("life", &self.life).field("syncs", &self.syncs).finish()
    }
}

/// A row written, or removed if it has no value.
pub(crate) type Op = (Vec<u8>, Option<Vec<u8>>);

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
        state.under_way = None;
        state.current = state.durable.clone();
        state.life += 1;
        state.opened = false;
    }

    /// Cuts the power in the last moment of a sync: what is under way is there afterwards. Says whether there was any.
    #[cfg(feature = "simulation")]
    pub(crate) fn cut_behind(&self) -> bool {
        let under_way = {
            let mut state = self.lock();
            let under_way = state.under_way.take();
            apply(&mut state.durable, under_way.as_deref().unwrap_or_default());
            under_way
        };
        self.cut();
        under_way.is_some()
    }

    /// Has every commit from now on decided by the script, or by none.
    #[cfg(feature = "simulation")]
    pub(crate) fn set_script(&self, script: Option<Arc<dyn Script>>) {
        self.lock().script = script;
    }

    /// Gives a new store on it this key, and not a random one.
    #[cfg(feature = "simulation")]
    pub(crate) fn give_hash_key(&self, key: [u8; 32]) {
        self.lock().hash_key = Some(key);
    }

    /// The key for a new store on it, if not a random one.
    pub(crate) fn given_hash_key(&self) -> Option<[u8; 32]> {
        self.lock().hash_key
    }

    /// Syncs that succeeded.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Has every commit from now on decided by the witness.
    pub(crate) fn set_witness(&self, witness: Witness) {
        self.lock().witness = Some(witness);
    }

    /// A disk of its own with what is durable on this one, as it would be found after a power cut now.
    pub(crate) fn fork(&self) -> Self {
        let state = self.lock();
        let durable = state.durable.clone();
        let forked = State {
            current: durable.clone(),
            durable,
            note: state.note.clone(),
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(forked)) }
    }

    /// The random key of the store on it; `None` while there is none.
    pub(crate) fn hash_key(&self) -> Option<HashKey> {
        let state = self.lock();
        let meta: Meta = record::unseal(state.current.get(record::META_KEY)?).ok()?;
        Some(HashKey::new(meta.hash_key))
    }

    /// What a commit says, in words.
    pub(crate) fn describe(ops: &[Op], name_of: NameOf<'_>) -> String {
        described::describe(ops, name_of)
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
                let delay = state.delay(&ops);
                apply(&mut state.current, &ops);
                state.under_way = Some(ops.clone());
                delay
            };
            failpoint::reached(Point::Applied);
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            // Without the lock: who decides may look at the disk.
            let decide = self.live()?.decide();
            let fate = decide(&ops);
            if self.disk.meet(self.life, fate, &ops)? {
                return std::future::pending().await;
            }
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

    fn disk_bytes(&self) -> Result<u64, StoreError> {
        let state = self.live()?;
        let size = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.len() + value.len()) as u64;
        let bytes = state.current.iter().map(size).sum();
        #[cfg(feature = "simulation")]
        if let Some(script) = &state.script {
            let is_block = |(key, _): &(&Vec<u8>, _)| key.starts_with(record::BLOCK_PREFIX);
            let blocks = state.current.iter().filter(is_block);
            script.sized(bytes, blocks.map(|(_, value)| value.len() as u64).sum());
        }
        Ok(bytes)
    }
}

fn apply(rows: &mut Rows, ops: &[Op]) {
    for (key, value) in ops {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn batch(key: &str) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.as_bytes().to_vec(), b"x".to_vec());
        batch
    }

    #[test]
    fn a_witness_decides_what_of_a_commit_a_power_cut_leaves() {
        for (fate, survives) in [(Fate::CutBefore, false), (Fate::CutAfter, true)] {
            let disk = SimulatedDisk::new();
            let seen = Arc::new(AtomicU32::new(0));
            disk.set_witness({
                let seen = Arc::clone(&seen);
                Arc::new(move |_| match seen.fetch_add(1, Ordering::Relaxed) {
                    1 => fate,
                    _ => Fate::Durable,
                })
            });
            let backend = disk.open().expect("nobody has it");
            assert!(matches!(backend.commit(batch("a")).now_or_never(), Some(Ok(()))));
            assert!(backend.commit(batch("b")).now_or_never().is_none(), "nobody is told");
            assert!(backend.get(b"a").now_or_never().expect("at once").is_err());
            let after = disk.fork().open().expect("a disk of its own");
            let read = |key: &'static str| {
                after.get(key.as_bytes()).now_or_never().expect("at once").expect("it works")
            };
            assert_eq!((read("a").is_some(), read("b").is_some()), (true, survives), "{fate:?}");
        }
    }
}
