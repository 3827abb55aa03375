//! What outlives the workers of a run, and the one place where a process dies.
//!
//! A crash comes in the middle of whatever runs, told by a failpoint or by the disk: from that moment on the broker
//! hears nothing of that life, the disk is cut, and nothing it does is in the history. The tasks are dropped by whoever
//! waits for [`Stage::crashed`]. Does not start anything.

mod script;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::broker::Network;
use super::history::{Event, Written};
use super::log::Log;
use super::names::Names;
use super::step::OtherSide;
use super::tally::Tally;
use crate::clock::{Clock, duration_ms};
use crate::failpoint::Point;
use crate::store::{Fate, SimulatedDisk};

/// What ends a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    /// A crash when the point is reached for this time, from 1.
    AtPoint(Point, u32),
    /// This commit of the life, from 1, ends like that.
    AtCommit(u32, Fate),
}

/// How slow the disk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskWeather {
    pub(super) sync_ms_max: u64,
    /// One of so many syncs takes seconds.
    pub(super) slow_one_in: u64,
    /// The size that a store may have.
    pub(super) size_bytes_max: u64,
}

/// Everything but the worker; clones are the same.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) log: Log,
    pub(super) names: Arc<Names>,
    pub(super) network: Network,
    pub(super) disk: SimulatedDisk,
    pub(super) clock: Clock,
    pub(super) other_side: OtherSide,
    inner: Arc<Mutex<Inner>>,
    crash: Arc<Notify>,
}

struct Inner {
    rng: fastrand::Rng,
    disk: DiskWeather,
    life: u32,
    strike: Option<Strike>,
    /// Of this life.
    commits: u32,
    /// Of all lives.
    commit: u64,
    written: Arc<Written>,
    has_opened: bool,
    /// The worker was told that its store has reached the limit.
    is_full: bool,
    has_failed: bool,
    has_crashed: bool,
    tally: Tally,
}

impl Stage {
    pub(super) fn new(
        log: Log,
        names: Arc<Names>,
        network: Network,
        clock: Clock,
        (disk, seed): (DiskWeather, u64),
    ) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(seed),
            disk,
            life: 0,
            strike: None,
            commits: 0,
            commit: 0,
            written: Arc::default(),
            has_opened: false,
            is_full: false,
            has_failed: false,
            has_crashed: false,
            tally: Tally::default(),
        };
        let stage = Self {
            log,
            names,
            network,
            disk: SimulatedDisk::new(),
            clock,
            other_side: OtherSide::default(),
            inner: Arc::new(Mutex::new(inner)),
            crash: Arc::default(),
        };
        stage.disk.set_script(Some(Arc::new(stage.clone())));
        stage
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new process begins, to be ended like that.
    pub(super) fn begin(&self, life: u32, strike: Option<Strike>) {
        let mut inner = self.lock();
        inner.life = life;
        inner.strike = strike;
        inner.commits = 0;
        inner.has_opened = false;
        inner.is_full = false;
        inner.has_failed = false;
        inner.has_crashed = false;
        inner.tally.lives += 1;
    }

    /// No strike any more, and a disk as it should be.
    pub(super) fn heal(&self) {
        let mut inner = self.lock();
        inner.strike = None;
        inner.disk.slow_one_in = u64::MAX;
        inner.disk.size_bytes_max = u64::MAX;
    }

    /// The size that the store of the next life may have.
    pub(super) fn size_bytes_max(&self) -> u64 {
        self.lock().disk.size_bytes_max
    }

    pub(super) fn tally<T>(&self, count: impl FnOnce(&mut Tally) -> T) -> T {
        count(&mut self.lock().tally)
    }

    /// Waits until the process is dead.
    pub(super) async fn crashed(&self) {
        while !self.lock().has_crashed {
            self.crash.notified().await;
        }
    }

    /// The process has ended by itself: its connections are closed and its disk is let go of.
    pub(super) fn end(&self) {
        let life = self.lock().life;
        self.network.crash(life, true, 0);
        self.log.end(life);
        self.disk.cut();
    }

    /// Whether nobody lives.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.lock();
        !inner.has_crashed && self.log.is_dead(inner.life)
    }

    /// Whether this life lives and has the store.
    pub(super) fn has_opened(&self) -> bool {
        let inner = self.lock();
        inner.has_opened && !inner.has_failed && !self.log.is_dead(inner.life)
    }

    /// Whether the disk has failed this life.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    /// The process of this life reaches a point.
    pub(super) fn reached(&self, point: Point) {
        let mut inner = self.lock();
        if self.log.is_dead(inner.life) {
            return;
        }
        inner.tally.reached(point);
        if let Some(Strike::AtPoint(at, hits)) = &mut inner.strike
            && *at == point
        {
            *hits -= 1;
            if *hits == 0 {
                inner.strike = None;
                inner.tally.struck(point);
                drop(inner);
                self.crash();
            }
        }
    }

    /// The process dies now.
    pub(super) fn crash(&self) {
        let (life, number, draws) = {
            let mut inner = self.lock();
            (inner.life, inner.commit, [inner.rng.u8(..), inner.rng.u8(..), inner.rng.u8(..)])
        };
        if self.log.is_dead(life) {
            return;
        }
        let [arrives, keeps, notices] = draws;
        let broker_after_ms = if notices < 128 { 0 } else { 30 * u64::from(notices) };
        self.network.crash(life, arrives < 128, broker_after_ms);
        self.log.put(Event::Crashed { life });
        self.log.end(life);
        if keeps < 128 && self.disk.cut_behind() {
            self.log.put(Event::Synced { number });
        } else {
            self.disk.cut();
        }
        let mut inner = self.lock();
        inner.has_crashed = true;
        inner.tally.crashes += 1;
        drop(inner);
        self.crash.notify_one();
    }
}

impl Stage {
    /// Lets go of the disk, which holds the stage as its script.
    pub(super) fn leave(&self) {
        self.disk.set_script(None);
    }

    /// How much virtual time has passed on the wall, of which only the store knows.
    pub(super) fn jump(&self, by_ms: i64) {
        let by = std::time::Duration::from_millis(by_ms.unsigned_abs());
        if by_ms < 0 {
            self.clock.set_back(by)
        } else {
            self.clock.advance(by)
        }
        self.tally(|tally| tally.clock_jumps += u64::from(duration_ms(by) > 0));
    }
}
