//! Waiting for a token of the queue's rate and of the tenant's, in the order of arrival.
//!
//! Whoever waits holds its place in a line and nothing else: no handler's permit, and nothing that other tenants wait
//! for. A token is taken in the moment in which the run starts, so that none is spent by one who waits. A drain lets
//! everybody go. The arithmetic is that of `rate.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::draining::Draining;
use super::rate::{Bucket, TenantBuckets};
use crate::identity::Identity;
use crate::options::{QueueOptions, RateLimit};

/// The rates of one queue.
pub(crate) struct Pace {
    queue: Option<QueueLine>,
    tenants: Option<TenantLines>,
    draining: Draining,
}

struct QueueLine {
    limit: RateLimit,
    bucket: Mutex<Bucket>,
    /// Held by the one who waits for the next token.
    turn: Semaphore,
}

struct TenantLines {
    buckets: Mutex<TenantBuckets>,
    /// As [`QueueLine::turn`], for tenants somebody of whom waits or is about to start.
    turns: Mutex<HashMap<Identity, Arc<Semaphore>>>,
}

/// The turns of one who has found its tokens, until it takes them.
pub(crate) struct Turns<'a> {
    pace: &'a Pace,
    tenant: Option<TenantTurn<'a>>,
    queue: Option<SemaphorePermit<'a>>,
}

struct TenantTurn<'a> {
    lines: &'a TenantLines,
    tenant: Identity,
    turn: Option<OwnedSemaphorePermit>,
}

impl Pace {
    pub(crate) fn new(options: &QueueOptions, draining: Draining) -> Self {
        let queue = options.rate.map(|limit| QueueLine {
            limit,
            bucket: Mutex::default(),
            turn: Semaphore::new(1),
        });
        let tenants = options.tenant_rate.map(|limit| TenantLines {
            buckets: Mutex::new(TenantBuckets::new(limit)),
            turns: Mutex::default(),
        });
        Self { queue, tenants, draining }
    }

    pub(crate) const fn has_tenants(&self) -> bool {
        self.tenants.is_some()
    }

    pub(crate) const fn is_unlimited(&self) -> bool {
        self.queue.is_none() && self.tenants.is_none()
    }

    /// Waits until tenant and queue have a token each; `None` once the drain has begun.
    pub(crate) async fn wait(&self, tenant: Option<Identity>) -> Option<Turns<'_>> {
        let mut turns = Turns { pace: self, tenant: None, queue: None };
        if let (Some(lines), Some(tenant)) = (&self.tenants, tenant) {
            turns.tenant = Some(self.undrained(lines.turn(tenant)).await?);
            self.until(|now| locked(&lines.buckets).wait(&tenant, now)).await?;
        }
        if let Some(line) = &self.queue {
            turns.queue = self.undrained(line.turn.acquire()).await?.ok();
            self.until(|now| locked(&line.bucket).wait(&line.limit, now)).await?;
        }
        Some(turns)
    }

    async fn until(&self, wait: impl Fn(Instant) -> Duration) -> Option<()> {
        loop {
            let wait = wait(Instant::now());
            if wait.is_zero() {
                return Some(());
            }
            self.undrained(tokio::time::sleep(wait)).await?;
        }
    }

    async fn undrained<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.draining.begun() => None,
            done = future => Some(done),
        }
    }
}

impl Turns<'_> {
    /// The run starts now.
    pub(crate) fn take(self, tokens: u32) {
        let now = Instant::now();
        if let Some(TenantTurn { lines, tenant, .. }) = &self.tenant {
            locked(&lines.buckets).take(*tenant, tokens, now);
        }
        if let (Some(line), Some(_)) = (&self.pace.queue, &self.queue) {
            locked(&line.bucket).take(&line.limit, tokens, now);
        }
    }
}

impl TenantLines {
    /// Cancel-safe: a dropped wait leaves the line.
    async fn turn(&self, tenant: Identity) -> TenantTurn<'_> {
        let line = Arc::clone(
            locked(&self.turns).entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(1))),
        );
        // Made first: dropped while it waits, it leaves the map as it should be.
        let mut turn = TenantTurn { lines: self, tenant, turn: None };
        turn.turn = line.acquire_owned().await.ok();
        turn
    }
}

impl Drop for TenantTurn<'_> {
    fn drop(&mut self) {
        // The permit has a handle to the line, and so has everybody who waits.
        self.turn = None;
        let mut turns = locked(&self.lines.turns);
        if turns.get(&self.tenant).is_some_and(|line| Arc::strong_count(line) == 1) {
            turns.remove(&self.tenant);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
