//! What the disk and sled can do without a runtime: as many records as a run of the pipeline wrote, by as many syncs.
//!
//! Groups are of equal size, give or take one record. Theirs were not, but what a group costs is a part for the sync
//! and a part for each record, so the same sums cost the same.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use tokio::time::Instant;

use crate::subject::Figures;
use crate::support::machine;

/// What a record takes in a block: identity, fingerprint, attempts, outcome, no result.
const RECORD_BYTES: usize = 16 + 8 + 1 + 1 + 1;
/// Format, time, count and checksum of a block.
const BLOCK_OVERHEAD_BYTES: usize = 20;
const BLOCK_BYTES: usize = 4096;
/// Prefix, queue and sequence number.
const KEY_BYTES: usize = 1 + 4 + 8;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Raw {
    /// Blocks through sled, and its fdatasync.
    Journal,
    /// An append of one block to a file, and its fdatasync.
    Sync,
}

impl Raw {
    pub(crate) const ALL: [Self; 2] = [Self::Journal, Self::Sync];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Journal => "raw-journal",
            Self::Sync => "raw-sync",
        }
    }

    /// Does again what the pipeline has done.
    pub(crate) fn repeat(self, pipeline: &Figures) -> Result<Figures> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let (records, syncs) = (pipeline.records, pipeline.syncs.max(1));
        let groups = (1..=syncs)
            .map(|group| (records * group / syncs - records * (group - 1) / syncs) as usize);
        let (started, cpu_before_us) = (Instant::now(), machine::own_cpu_us()?);
        match self {
            Self::Journal => journal(directory.path(), groups)?,
            Self::Sync => sync(directory.path(), groups)?,
        }
        Ok(Figures {
            messages_per_s: records as f64 / started.elapsed().as_secs_f64(),
            cpu_us: (machine::own_cpu_us()? - cpu_before_us) as f64 / records as f64,
            records,
            syncs,
            p50_ms: f64::NAN,
            p99_ms: f64::NAN,
        })
    }
}

fn journal(directory: &Path, groups: impl Iterator<Item = usize>) -> Result<()> {
    let db =
        sled::Config::new().path(directory).cache_capacity(64 << 20).flush_every_ms(None).open()?;
    let log = OpenOptions::new().write(true).open(directory.join("db"))?;
    let mut random = fastrand::Rng::with_seed(17);
    let per_block = (BLOCK_BYTES - BLOCK_OVERHEAD_BYTES) / RECORD_BYTES;
    let mut sequence = 0_u64;
    for group in groups {
        let mut batch = sled::Batch::default();
        for first in (0..group).step_by(per_block) {
            let records = per_block.min(group - first);
            let mut block = vec![0; records * RECORD_BYTES + BLOCK_OVERHEAD_BYTES];
            random.fill(&mut block);
            sequence += 1;
            let mut key = [0; KEY_BYTES - 8].to_vec();
            key.extend(sequence.to_be_bytes());
            batch.insert(key, block);
        }
        db.apply_batch(batch)?;
        db.flush()?;
        log.sync_data()?;
    }
    Ok(())
}

fn sync(directory: &Path, groups: impl Iterator<Item = usize>) -> Result<()> {
    let mut file = OpenOptions::new().create_new(true).append(true).open(directory.join("log"))?;
    let mut block = [0; BLOCK_BYTES];
    fastrand::Rng::with_seed(17).fill(&mut block);
    for _ in groups {
        file.write_all(&block)?;
        file.sync_data()?;
    }
    Ok(())
}
