//! What the disk of a run does with each commit, and what the history learns of it.

use std::sync::Arc;
use std::time::Duration;

use super::super::history::Event;
use super::{Stage, Strike};
use crate::store::{self, Decoded, Fate, Op, Rows, Script};

impl Script for Stage {
    fn written(&self, rows: &Rows, ops: &[Op]) -> Duration {
        let decoded = store::decode(rows, ops);
        let collects = decoded.iter().any(|said| matches!(said, Decoded::Collected(_)));
        let written = Arc::new(self.names.written(decoded));
        let mut inner = self.lock();
        inner.tally.collections += u64::from(collects);
        inner.commits += 1;
        inner.commit += 1;
        inner.written = Arc::clone(&written);
        let (life, number, clock_ms) = (inner.life, inner.commit, self.clock.now_ms());
        self.log.put_of(life, Event::Commit { life, number, clock_ms, written });
        let is_slow = inner.disk.slow_one_in < u64::MAX && {
            let one_in = inner.disk.slow_one_in;
            inner.rng.u64(0..one_in) == 0
        };
        let sync_ms = if is_slow {
            inner.tally.slow_syncs += 1;
            inner.rng.u64(500..4000)
        } else {
            let max = inner.disk.sync_ms_max;
            inner.rng.u64(0..=max)
        };
        Duration::from_millis(sync_ms)
    }

    fn sized(&self, bytes: u64, in_blocks: u64) {
        let mut inner = self.lock();
        let max = inner.disk.size_bytes_max;
        // Files that are large and nearly empty are filled again.
        let (life, is_full) = (inner.life, bytes >= max && in_blocks.saturating_mul(2) >= max);
        if std::mem::replace(&mut inner.is_full, is_full) != is_full {
            self.log.put_of(life, Event::Full { life, is_full });
        }
    }

    fn fate(&self) -> Fate {
        let mut inner = self.lock();
        if inner.has_failed {
            return Fate::Failed { is_durable: false };
        }
        match inner.strike {
            Some(Strike::AtCommit(at, fate)) if at <= inner.commits => {
                inner.strike = None;
                fate
            }
            Some(_) | None => Fate::Durable,
        }
    }

    fn ended(&self, fate: Fate) {
        let (life, number, written) = {
            let inner = self.lock();
            (inner.life, inner.commit, Arc::clone(&inner.written))
        };
        if matches!(fate, Fate::Durable | Fate::CutAfter | Fate::Failed { is_durable: true }) {
            self.log.put_of(life, Event::Synced { number });
            if let Some(epoch) = written.epoch {
                self.log.put_of(life, Event::Opened { life, epoch });
                self.lock().has_opened = true;
            }
        }
        match fate {
            Fate::Durable => {}
            Fate::CutBefore | Fate::CutAfter => {
                self.tally(|tally| tally.power_cuts += 1);
                self.crash();
            }
            Fate::Failed { .. } => {
                self.log.put_of(life, Event::DiskFailed { life });
                let mut inner = self.lock();
                inner.has_failed = true;
                inner.tally.disk_failures += 1;
            }
        }
    }
}
