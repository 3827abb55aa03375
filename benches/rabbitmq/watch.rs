//! What a drain took: time, CPU of everybody in it, memory and syncs.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::child::Drain;
use crate::support::machine;

/// From the first delivery to the last ack.
pub(crate) struct Watch<'a> {
    task: &'a Drain,
    started: Instant,
    worker_us: u64,
    broker_us: Option<u64>,
    redis_us: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) elapsed_s: f64,
    pub(crate) worker_cpu_us: u64,
    pub(crate) broker_cpu_us: Option<u64>,
    pub(crate) redis_cpu_us: Option<u64>,
    pub(crate) rss_peak_bytes: u64,
    /// Syncs of the store, if the subject has one and counts them.
    pub(crate) syncs: Option<u64>,
}

fn broker_us(task: &Drain) -> Option<u64> {
    machine::cpu_us(task.node.pid.as_deref()?).ok()
}

fn redis_us(task: &Drain) -> Option<u64> {
    machine::cpu_us(&task.redis.as_ref()?.pid).ok()
}

impl<'a> Watch<'a> {
    pub(crate) fn start(task: &'a Drain) -> Result<Self> {
        Ok(Self {
            task,
            started: Instant::now(),
            worker_us: machine::own_cpu_us()?,
            broker_us: broker_us(task),
            redis_us: redis_us(task),
        })
    }

    pub(crate) fn stop(&self, syncs: Option<u64>) -> Result<Drained> {
        let elapsed_s = self.started.elapsed().as_secs_f64();
        let since = |now: Option<u64>, before: Option<u64>| Some(now? - before?);
        Ok(Drained {
            elapsed_s,
            worker_cpu_us: machine::own_cpu_us()? - self.worker_us,
            broker_cpu_us: since(broker_us(self.task), self.broker_us),
            redis_cpu_us: since(redis_us(self.task), self.redis_us),
            rss_peak_bytes: machine::rss_peak_bytes()?,
            syncs,
        })
    }
}
