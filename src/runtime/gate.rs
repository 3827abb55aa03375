//! What stands before every attempt of a queue: its breaker, its rates, and the permits of `concurrency`.
//!
//! A queue whose breaker is closed and that has no rate passes with one atomic load beside its permit. Whoever has to
//! wait waits in line and holds no permit. Reports of ended attempts come back here; what they mean is decided in
//! `breaker.rs`. Does not count attempts.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::{info, warn};

use super::admission::Admitted;
use super::attempt::permit;
use super::breaker::{Breaker, Failure, Start};
use super::pace::Pace;
use super::queue::Queue;
use super::run::Failed;
use crate::identity::Identity;
use crate::message::{cut, escape};
use crate::options::QueueOptions;
use crate::store::Reason;
use crate::telemetry::Health;

/// Most bytes of an error that health shows.
const ERROR_BYTES_MAX: usize = 200;

/// Closed, and nothing has failed since the last success.
const CALM: u8 = 0;
/// Closed, and something has failed.
const DOUBTFUL: u8 = 1;
const OPEN: u8 = 2;

pub(crate) struct Gate {
    /// What [`Self::state`] says, for those who need no more.
    phase: AtomicU8,
    /// `None` if the queue has no breaker.
    state: Option<Mutex<State>>,
    /// Held by the probe, or by the one who waits to be it.
    turn: Semaphore,
    closed: Notify,
    pub(crate) pace: Pace,
    health: Health,
    /// Name in [`Health`].
    part: String,
}

struct State {
    breaker: Breaker,
    last_error: String,
}

/// What a run holds while it goes on.
pub(crate) struct Pass<'a> {
    /// Boxed: it lies in every actor's task, and few runs are one.
    probe: Option<Box<Probe<'a>>>,
    _permit: SemaphorePermit<'a>,
}

/// The one attempt that runs while the breaker is open.
struct Probe<'a> {
    gate: &'a Gate,
    _turn: SemaphorePermit<'a>,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Some(mut state) = self.gate.lock() {
            state.breaker.probe_is_over();
        }
    }
}

impl Gate {
    pub(crate) fn new(options: &QueueOptions, pace: Pace, health: Health) -> Self {
        let state = |options| State { breaker: Breaker::new(options), last_error: String::new() };
        Self {
            phase: AtomicU8::new(CALM),
            state: options.breaker.map(|options| Mutex::new(state(options))),
            turn: Semaphore::new(1),
            closed: Notify::new(),
            pace,
            health,
            part: format!("queue {} breaker", options.queue),
        }
    }

    pub(crate) fn breaker_is_open(&self) -> bool {
        self.phase.load(Ordering::Acquire) == OPEN
    }

    fn lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.as_ref().map(|state| state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits while the breaker is open, unless it is this one's turn to probe; `None` once the drain has begun.
    async fn pass_breaker(&self, queue: &Queue) -> Option<Option<Box<Probe<'_>>>> {
        if !self.breaker_is_open() {
            return Some(None);
        }
        let turn = tokio::select! {
            biased;
            () = queue.draining.begun() => return None,
            turn = self.turn.acquire() => turn.ok()?,
        };
        loop {
            let start =
                self.lock().map_or(Start::Run, |mut state| state.breaker.start(Instant::now()));
            let due = match start {
                Start::Run => return Some(None),
                Start::Probe => return Some(Some(Box::new(Probe { gate: self, _turn: turn }))),
                // Without a time a probe runs: it has the turn that this one has, so that never is.
                Start::Wait(due) => due.unwrap_or_else(Instant::now),
            };
            tokio::select! {
                biased;
                () = queue.draining.begun() => return None,
                () = self.closed.notified() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Hears how an attempt ended; says whether it is one of the message's attempts.
    pub(crate) fn heard<T>(
        &self,
        queue: &Queue,
        pass: &Pass<'_>,
        identity: Identity,
        ended: &Result<T, Failed>,
    ) -> bool {
        match ended {
            Ok(_) => self.succeeded(queue),
            Err(Failed::Permanent(Reason::Rejected, _)) => self.rejected(),
            Err(Failed::Transient(error, after)) => {
                let is_probe = pass.probe.is_some();
                return self.failed(queue, identity, is_probe, &Failing { error, after: *after });
            }
            // Of these nobody knows whether anything was called.
            Err(Failed::Panicked(_) | Failed::Permanent(..) | Failed::Store(_)) => {}
        }
        true
    }

    fn succeeded(&self, queue: &Queue) {
        if self.phase.load(Ordering::Acquire) == CALM {
            return;
        }
        let Some(mut state) = self.lock() else { return };
        let was_open = state.breaker.succeeded();
        self.phase.store(CALM, Ordering::Release);
        if let Some(since) = was_open {
            queue.metrics.breaker_open.set(0.0);
            self.health.clear(&self.part);
            drop(state);
            self.closed.notify_one();
            let open_s = since.elapsed().as_secs();
            info!(queue = &*queue.name, open_s, "the breaker is closed: an attempt succeeded");
        }
    }

    fn rejected(&self) {
        if self.phase.load(Ordering::Acquire) != CALM
            && let Some(mut state) = self.lock()
        {
            state.breaker.rejected();
            if state.breaker.is_calm() {
                self.phase.store(CALM, Ordering::Release);
            }
        }
    }

    /// Whether it is one of the message's attempts.
    fn failed(
        &self,
        queue: &Queue,
        identity: Identity,
        is_probe: bool,
        failing: &Failing<'_>,
    ) -> bool {
        let Some(mut state) = self.lock() else { return true };
        let now = Instant::now();
        let failure = state.breaker.failed(identity, is_probe, failing.after, now);
        if failure == Failure::Counts {
            self.phase.store(DOUBTFUL, Ordering::Release);
            return true;
        }
        self.phase.store(OPEN, Ordering::Release);
        let mut error = escape(failing.error.as_bytes());
        cut(&mut error, ERROR_BYTES_MAX);
        state.last_error = error;
        self.show(&state, now);
        if failure == Failure::Opens {
            queue.metrics.breaker_open.set(1.0);
            queue.metrics.breaker_opened.increment(1);
            warn!(
                queue = &*queue.name,
                error = state.last_error,
                "the breaker is open: message after message failed; one at a time is tried, and no attempt is counted, \
                 until one succeeds"
            );
        }
        false
    }

    /// Brings what health shows of an open breaker up to date.
    pub(crate) fn look(&self, now: Instant) {
        if self.breaker_is_open()
            && let Some(state) = self.lock()
        {
            self.show(&state, now);
        }
    }

    fn show(&self, state: &State, now: Instant) {
        if let Some(since) = state.breaker.open_since() {
            let open_s = now.saturating_duration_since(since).as_secs();
            let error = &state.last_error;
            self.health.fault(&self.part, format!("open for {open_s} s, last error: {error}"));
        }
    }
}

/// What is known of a failed attempt.
struct Failing<'a> {
    error: &'a str,
    /// The delay that the handler asks for.
    after: Option<Duration>,
}

impl Queue {
    /// Waits until a run may start of so many messages, of which this is the first; `None` once the drain has begun or
    /// the store has failed.
    pub(crate) async fn pass(&self, first: &Admitted, messages: u32) -> Option<Pass<'_>> {
        let gate = &self.gate;
        if gate.pace.is_unlimited() && !gate.breaker_is_open() {
            let permit = permit(self, &self.permits).await?;
            // It may have opened while this one waited.
            if !gate.breaker_is_open() {
                return Some(Pass { probe: None, _permit: permit });
            }
        }
        // Boxed: it would make every actor's task larger.
        Box::pin(self.pass_in_line(first, messages)).await
    }

    async fn pass_in_line(&self, first: &Admitted, messages: u32) -> Option<Pass<'_>> {
        let tenant = self.tenant(first);
        loop {
            // The tokens first: a probe that waited for one would keep all others from being it.
            let turns = self.gate.pace.wait(tenant).await?;
            let probe = self.gate.pass_breaker(self).await?;
            let permit = permit(self, &self.permits).await?;
            if probe.is_none() && self.gate.breaker_is_open() {
                continue;
            }
            turns.take(messages);
            return Some(Pass { probe, _permit: permit });
        }
    }

    /// Whose rate the message counts for.
    pub(crate) fn tenant(&self, message: &Admitted) -> Option<Identity> {
        let (_, scope) = message.id.as_ref()?;
        self.gate.pace.has_tenants().then(|| self.store.hash_key().identity(scope, b""))
    }
}
