//! The thread that writes, and the one that watches it: a write that never ends is a failure, not a silence.
//!
//! One write at a time; after the first that fails, none. An engine may lose the news of its own error and wait for
//! ever: it is nudged, and if that does not help, the write counts as failed and the thread is left behind. Knows
//! neither what is written nor by which engine.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use super::backend::Batch;

/// What an engine does with batches.
pub(super) trait Engine: Send + Sync + 'static {
    /// Makes a batch durable, or says why not.
    fn write(&self, batch: Batch) -> Result<(), String>;

    /// Makes a write end of which the engine has forgotten that it failed; may take as long as that one.
    fn nudge(&self);
}

/// How long a write may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// How often it is looked at.
    pub(super) tick: Duration,
    /// Looks after which the engine is nudged, at each one.
    pub(super) nudge_ticks: u32,
    /// Looks after which it is given up.
    pub(super) give_up_ticks: u32,
}

impl Patience {
    /// A disk that stalls for a minute is no disk: whoever starts the worker again does it on a sound one.
    pub(super) const OF_A_DISK: Self =
        Self { tick: Duration::from_secs(1), nudge_ticks: 5, give_up_ticks: 60 };
}

type Answer = oneshot::Sender<Result<(), String>>;

/// The handle; when it is dropped, the write under way ends first.
#[derive(Debug)]
pub(super) struct Writer {
    /// Dropped before the threads are joined, which ends them.
    writes: Option<SyncSender<(Batch, Answer)>>,
    turn: Arc<Turn>,
    writing: Option<JoinHandle<()>>,
    watching: Option<JoinHandle<()>>,
}

/// The write under way.
#[derive(Debug, Default)]
struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    number: u64,
    answer: Option<Answer>,
    given_up: bool,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// # Errors
    ///
    /// If the system gives no threads.
    pub(super) fn start(engine: Arc<impl Engine>, patience: Patience) -> io::Result<Self> {
        // One write at a time: the committer waits for each, the second place only saves it a wait.
        let (writes, waiting) = sync_channel(1);
        // Nothing is ever sent: its end is the news.
        let (alive, ended) = sync_channel(0);
        let turn = Arc::new(Turn::default());
        let mut writer = Self { writes: Some(writes), turn, writing: None, watching: None };
        writer.writing = Some(Builder::new().name("onceward-store".to_owned()).spawn({
            let (engine, turn) = (Arc::clone(&engine), Arc::clone(&writer.turn));
            move || write_until_closed(&*engine, &turn, &waiting, alive)
        })?);
        writer.watching = Some(Builder::new().name("onceward-watch".to_owned()).spawn({
            let turn = Arc::clone(&writer.turn);
            move || watch(&engine, &turn, &ended, patience)
        })?);
        Ok(writer)
    }

    /// Hands in a batch, and waits until it is durable.
    ///
    /// # Errors
    ///
    /// Why it is not; and nothing that is handed in later will be.
    pub(super) async fn write(&self, batch: Batch) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the writer thread has ended after an earlier error".to_owned();
        if self.turn.state().given_up {
            return Err(gone());
        }
        let writes = self.writes.as_ref().ok_or_else(gone)?;
        writes.send((batch, answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(watching) = self.watching.take() {
            // Ends with the writing thread, or gives it up. A panic has nothing to say here.
            let _ = watching.join();
        }
        if !self.turn.state().given_up
            && let Some(writing) = self.writing.take()
        {
            let _ = writing.join();
        }
    }
}

/// `_alive` is dropped at the end, which the watching thread sees.
fn write_until_closed(
    engine: &impl Engine,
    turn: &Turn,
    writes: &Receiver<(Batch, Answer)>,
    _alive: SyncSender<()>,
) {
    while let Ok((batch, answer)) = writes.recv() {
        {
            let mut state = turn.state();
            state.number += 1;
            state.answer = Some(answer);
        }
        let written = catch_unwind(AssertUnwindSafe(|| engine.write(batch)))
            .unwrap_or_else(|_| Err("the engine panicked".to_owned()));
        // Given up, it has failed whatever it says now.
        let Some(answer) = turn.state().answer.take() else { return };
        let failed = written.is_err();
        // Whoever asked may be gone with the runtime: then nothing is acknowledged.
        let _ = answer.send(written);
        if failed {
            // What a failed sync left on disk is unknown, and a second one would lie: no more writes.
            return;
        }
    }
}

fn watch(engine: &Arc<impl Engine>, turn: &Turn, ended: &Receiver<()>, patience: Patience) {
    let (mut seen, mut ticks) = (0, 0);
    let mut nudge: Option<JoinHandle<()>> = None;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(patience.tick) {
        let under_way = {
            let state = turn.state();
            state.answer.is_some().then_some(state.number)
        };
        let Some(number) = under_way else { continue };
        ticks = if number == seen { ticks + 1 } else { 0 };
        seen = number;
        let waited = patience.tick * ticks;
        if ticks == patience.nudge_ticks {
            warn!(waited = ?waited, "the disk has not answered yet: nothing is acknowledged meanwhile");
        }
        if ticks >= patience.nudge_ticks && nudge.as_ref().is_none_or(JoinHandle::is_finished) {
            // On a thread of its own: it may wait as long as what it is to wake.
            let engine = Arc::clone(engine);
            nudge = Builder::new().spawn(move || engine.nudge()).ok();
        }
        if ticks >= patience.give_up_ticks {
            let mut state = turn.state();
            let Some(answer) = state.answer.take() else { continue };
            state.given_up = true;
            let _ = answer.send(Err(format!("no answer from the disk within {waited:?}")));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const PATIENCE: Patience =
        Patience { tick: Duration::from_millis(20), nudge_ticks: 2, give_up_ticks: 10 };

    /// Its second write hangs, until it is nudged if that helps it.
    #[derive(Default)]
    struct Hanging {
        writes: AtomicU32,
        nudged: Mutex<bool>,
        woken: Condvar,
        is_deaf: bool,
    }

    impl Engine for Hanging {
        fn write(&self, _: Batch) -> Result<(), String> {
            if self.writes.fetch_add(1, Ordering::Relaxed) == 0 {
                return Ok(());
            }
            let nudged = self.nudged.lock().expect("nobody panics under it");
            let nudged = self.woken.wait_while(nudged, |nudged| !*nudged);
            drop(nudged);
            Err("what the engine forgot".to_owned())
        }

        fn nudge(&self) {
            if !self.is_deaf {
                *self.nudged.lock().expect("nobody panics under it") = true;
                self.woken.notify_all();
            }
        }
    }

    #[tokio::test]
    async fn an_engine_that_forgets_its_error_is_woken_and_fails() {
        let writer = Writer::start(Arc::new(Hanging::default()), PATIENCE).expect("threads");
        assert_eq!(writer.write(Batch::default()).await, Ok(()));
        let failed = writer.write(Batch::default()).await;
        assert_eq!(failed, Err("what the engine forgot".to_owned()));
        let after = writer.write(Batch::default()).await.expect_err("it has failed");
        assert!(after.contains("earlier error"), "{after}");
    }

    #[tokio::test]
    async fn a_write_that_never_ends_is_given_up_and_so_is_its_thread() {
        let engine = Arc::new(Hanging { is_deaf: true, ..Hanging::default() });
        let writer = Writer::start(engine, PATIENCE).expect("threads");
        assert_eq!(writer.write(Batch::default()).await, Ok(()));
        let failed = writer.write(Batch::default()).await.expect_err("it never ends");
        assert!(failed.contains("no answer from the disk"), "{failed}");
        assert!(writer.write(Batch::default()).await.is_err());
        // Returns.
        drop(writer);
    }
}
