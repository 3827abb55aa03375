//! The one writer: everything that waits becomes one group, one batch, one sync; then, and only then, it is told.
//!
//! No timer and no window to tune: while one group syncs, the next one gathers, so groups grow with load. After a sync
//! the index learns of the records before anybody is told. After a failure nothing is told any more, and
//! the waiting commits are dropped. Collection of what has expired rides in the same batches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backend::StoreError;
use super::group::Group;
use super::journal::Journal;
use super::record;
use super::{Change, Commit, Persisted, Shared};
use crate::telemetry::StoreMetrics;

/// Commits that may wait: more than one group can ever hold, so that a sync never waits for work.
pub(super) const COMMITS_WAITING_MAX: usize = 16 * 1024;

/// How often expired blocks are looked for and the size is looked at when nothing is committed.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// How often the end of the journal is noted beside it.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// Size of sled's files over the rows in them, at worst; measured by `cargo bench --bench store`.
const DISK_OVERHEAD: u64 = 2;

/// Writes groups of commits.
pub(crate) struct Committer {
    pub(super) shared: Arc<Shared>,
    commits: mpsc::Receiver<Commit>,
    waiting: VecDeque<Commit>,
    buffer: Vec<Commit>,
    pub(super) journal: Journal,
    size_bytes_max: u64,
    looked_at_size: Instant,
    pub(super) looked_for_orphans: Instant,
    noted: Instant,
    pub(super) opened_at_ms: u64,
    pub(super) metrics: StoreMetrics,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("journal", &self.journal).finish_non_exhaustive()
    }
}

/// Says that the store has failed unless it is told that all went well.
///
/// Whoever lets go of a message because its commit was lost must find this said already: so it is declared after the
/// commits that it covers, and dropped before them, on an error, a panic or the end of the whole worker.
struct Unfinished(Option<Arc<Shared>>);

impl Unfinished {
    fn new(shared: &Arc<Shared>) -> Self {
        Self(Some(Arc::clone(shared)))
    }

    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.failed.store(true, Ordering::Release);
        }
    }
}

/// The same for the commits that wait.
impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.failed.store(true, Ordering::Release);
    }
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        commits: mpsc::Receiver<Commit>,
        journal: Journal,
        size_bytes_max: u64,
    ) -> Self {
        let now = Instant::now();
        let opened_at_ms = shared.clock.now_ms();
        Self {
            shared,
            commits,
            waiting: VecDeque::new(),
            buffer: Vec::new(),
            journal,
            size_bytes_max,
            looked_at_size: now,
            looked_for_orphans: now,
            noted: now,
            opened_at_ms,
            metrics: StoreMetrics::new(),
        }
    }

    /// Runs until `stopping`, and until all that was handed in before is durable.
    ///
    /// # Errors
    ///
    /// The first failure of the engine: nothing more is durable from then on.
    pub(crate) async fn run(mut self, stopping: CancellationToken) -> Result<(), StoreError> {
        self.look_at_size();
        self.write_and_note(&stopping).await
    }

    /// Leaves a note before the first group, each minute, and at the end.
    async fn write_and_note(&mut self, stopping: &CancellationToken) -> Result<(), StoreError> {
        self.leave_note().await?;
        self.write_groups(stopping).await?;
        self.leave_note().await
    }

    async fn leave_note(&mut self) -> Result<(), StoreError> {
        self.noted = Instant::now();
        let note = {
            let rows = self.shared.rows();
            let retention_ms = |queue| rows.queues.get(&queue).map_or(0, |row| row.retention_ms);
            self.journal.note(retention_ms)
        };
        self.shared.backend.leave_note(record::seal(&note)).await
    }

    async fn write_groups(&mut self, stopping: &CancellationToken) -> Result<(), StoreError> {
        loop {
            if self.waiting.is_empty() {
                tokio::select! {
                    biased;
                    // Cancel-safe: what it received is in the buffer only if it returned.
                    received = self.commits.recv_many(&mut self.buffer, COMMITS_WAITING_MAX) => {
                        if received == 0 {
                            return Ok(());
                        }
                    }
                    () = stopping.cancelled() => return Ok(()),
                    () = tokio::time::sleep(IDLE_INTERVAL) => {}
                }
                self.waiting.extend(self.buffer.drain(..));
            }
            while self.waiting.len() < COMMITS_WAITING_MAX
                && let Ok(commit) = self.commits.try_recv()
            {
                self.waiting.push_back(commit);
            }
            self.write_group().await?;
            if self.noted.elapsed() >= NOTE_INTERVAL {
                self.leave_note().await?;
            }
        }
    }

    async fn write_group(&mut self) -> Result<(), StoreError> {
        let now_ms = self.shared.clock.now_ms();
        let mut group = Group::default();
        let gathering = Unfinished::new(&self.shared);
        while let Some(commit) = self.waiting.pop_front() {
            if let Err(commit) = group.add(commit) {
                self.waiting.push_front(*commit);
                break;
            }
        }
        self.collect(&mut group, now_ms).await?;
        self.collect_orphans(&mut group, now_ms);
        let Group { mut batch, blocks, told, changes, .. } = group;
        let writing = Unfinished::new(&self.shared);
        gathering.finished();
        let mut records = Vec::with_capacity(told.len());
        for (queue, block) in blocks
            .into_iter()
            .flat_map(|(queue, blocks)| blocks.into_iter().map(move |block| (queue, block)))
        {
            let location = self.journal.next(queue);
            let value = block.builder.finish(now_ms);
            self.journal.add(queue, now_ms, value.len());
            batch.put(location.key(), value);
            records.extend(block.identities.into_iter().map(|identity| (identity, location)));
        }
        if batch.is_empty() {
            writing.finished();
            self.look_at_size();
            return Ok(());
        }

        let started = Instant::now();
        self.shared.backend.commit(batch).await?;
        let synced = Instant::now();

        // The index first: whoever is told lets go of its claim, and the next twin must find the record.
        for (identity, location) in records {
            self.shared.index.insert(identity, location);
        }
        self.apply(changes);
        self.metrics.sync_seconds.record(synced.duration_since(started).as_secs_f64());
        self.metrics.records_per_sync.record(told.len() as f64);
        for (submitted, on_persisted) in told {
            self.metrics.commit_seconds.record(synced.duration_since(submitted).as_secs_f64());
            on_persisted(Persisted(()));
        }
        writing.finished();
        if synced.duration_since(self.looked_at_size) >= IDLE_INTERVAL {
            self.look_at_size();
        }
        Ok(())
    }

    fn apply(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut rows = self.shared.rows();
        for change in changes {
            match change {
                Change::PutAttempts(identity, attempts) => {
                    rows.attempts.insert(identity, attempts);
                }
                Change::RemoveAttempts(identity) => {
                    rows.attempts.remove(&identity);
                }
                Change::PutPending(identity) => {
                    rows.pending.insert(identity, ());
                }
                Change::RemovePending(identity) => {
                    rows.pending.remove(&identity);
                }
            }
        }
    }

    /// Stops intake before the files pass the limit, and lets it go on when there is room.
    ///
    /// sled's files do not shrink, they are filled again; so room is counted by what lives in them.
    fn look_at_size(&mut self) {
        self.looked_at_size = Instant::now();
        let disk_bytes = self.shared.backend.disk_bytes();
        let limit = self.size_bytes_max;
        self.metrics.store_bytes.set(disk_bytes as f64);
        self.metrics.index_ids.set(self.shared.index.len() as f64);
        let live_bytes = self.journal.live_bytes().saturating_mul(DISK_OVERHEAD);
        let was_full = *self.shared.full.borrow();
        let percent = |percent: u64| limit / 100 * percent;
        let is_full = if was_full {
            disk_bytes >= percent(95) && live_bytes >= percent(80)
        } else {
            disk_bytes >= percent(95) && live_bytes >= percent(90)
        };
        if is_full != was_full {
            self.metrics.store_full.set(if is_full { 1.0 } else { 0.0 });
            if is_full {
                warn!(
                    store_bytes = disk_bytes,
                    max_size_bytes = limit,
                    "the store is full, intake is stopped until records expire: raise max_size or shorten retention"
                );
            } else {
                info!(store_bytes = disk_bytes, "the store has room again, intake goes on");
            }
            self.shared.full.send_replace(is_full);
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::group::COLLECT_BLOCKS_MAX;
    use super::super::record;
    use super::super::record::Outcome;
    use super::super::tests::{dead_record, record};
    use super::super::{QueueId, QueueRetention, Record, Store, StoreOptions};
    use super::*;
    use crate::clock::Clock;

    const RETENTION: Duration = Duration::from_secs(60);

    /// A store whose groups are written one by one.
    struct Fixture {
        store: Store,
        committer: Committer,
        queue: QueueId,
        clock: Clock,
        _dir: TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let clock = Clock::manual(1_700_000_000_000);
            let mut options = StoreOptions::new(dir.path());
            options.clock = clock.clone();
            let queue = QueueRetention { name: "orders".to_owned(), retention: RETENTION };
            let opened = Store::open(&options, &[queue], &|_| ()).await;
            let (store, committer, queues) = opened.expect("it opens");
            Self { store, committer, queue: queues[0], clock, _dir: dir }
        }

        async fn write(&mut self, records: impl Iterator<Item = Record>) {
            let commits = records.map(|record| commit(self.queue, Some(record), Vec::new()));
            self.committer.waiting.extend(commits);
            while !self.committer.waiting.is_empty() {
                self.committer.write_group().await.expect("the disk is sound");
            }
        }

        /// Ids in the index, bytes that count as live, and blocks on disk.
        async fn contents(&self) -> (usize, u64, usize) {
            let backend = &self.store.shared.backend;
            let blocks = backend.scan(record::BLOCK_PREFIX, None, usize::MAX).await;
            (
                self.store.shared.index.len(),
                self.committer.journal.live_bytes(),
                blocks.expect("it can be read").len(),
            )
        }
    }

    fn commit(queue: QueueId, record: Option<Record>, rows: Vec<Change>) -> Commit {
        Commit { queue, record, rows, submitted: Instant::now(), on_persisted: Box::new(drop) }
    }

    #[tokio::test]
    async fn blocks_leave_after_their_retention_and_take_index_and_bytes_with_them() {
        const PER_SECOND: u64 = 250;
        let mut fixture = Fixture::new().await;
        let mut disk_bytes_max = [0; 2];
        for second in 0..480 {
            let first = second * PER_SECOND;
            fixture.write((first..first + PER_SECOND).map(record)).await;
            fixture.clock.advance(Duration::from_secs(1));
            let (ids, ..) = fixture.contents().await;
            assert!(ids as u64 <= 61 * PER_SECOND, "{ids} ids after {second} s");
            let half = &mut disk_bytes_max[second as usize / 240];
            *half = fixture.store.shared.backend.disk_bytes().max(*half);
        }
        let [early, late] = disk_bytes_max;
        println!("disk {early} {late}");
        assert!(late <= early * 3 / 2, "the files grow: {early}, later {late} bytes");

        fixture.clock.advance(RETENTION);
        for _ in 0..100 {
            fixture.committer.write_group().await.expect("the disk is sound");
        }
        assert_eq!(fixture.contents().await, (0, 0, 0));
        assert_eq!(fixture.committer.journal.oldest().count(), 0);
    }

    #[tokio::test]
    async fn a_burst_of_20_000_records_leaves_within_few_groups() {
        let mut fixture = Fixture::new().await;
        fixture.write((0..20_000).map(record)).await;
        fixture.clock.advance(RETENTION.saturating_sub(Duration::from_millis(1)));
        fixture.committer.write_group().await.expect("the disk is sound");
        let (ids, _, blocks) = fixture.contents().await;
        assert_eq!(ids, 20_000, "nothing leaves before its retention");
        fixture.clock.advance(Duration::from_millis(1));
        for _ in 0..blocks.div_ceil(COLLECT_BLOCKS_MAX) {
            fixture.committer.write_group().await.expect("the disk is sound");
        }
        assert_eq!(fixture.contents().await, (0, 0, 0));
    }

    #[tokio::test]
    async fn a_dead_letter_that_is_not_confirmed_outlives_its_block_and_holds_back_no_other() {
        let mut fixture = Fixture::new().await;
        let mut dead = dead_record(7);
        if let Outcome::Dead(note) = &mut dead.outcome {
            note.first_seen_ms = fixture.clock.now_ms();
        }
        let rows = vec![Change::PutPending(dead.identity)];
        fixture.committer.waiting.push_back(commit(fixture.queue, Some(dead.clone()), rows));
        fixture.write((1000..3000).map(record)).await;
        for _ in 0..3 {
            fixture.clock.advance(RETENTION);
            for _ in 0..20 {
                fixture.committer.write_group().await.expect("the disk is sound");
                let found = fixture.store.lookup(dead.identity).await.expect("it is sound");
                assert_eq!(found.map(|found| found.record), Some(dead.clone()));
            }
            assert!(fixture.store.is_pending(dead.identity));
            assert!(fixture.contents().await.0 <= 2, "only the dead one is left");
        }
        let rows = vec![Change::RemovePending(dead.identity)];
        fixture.committer.waiting.push_back(commit(fixture.queue, None, rows));
        fixture.committer.write_group().await.expect("the disk is sound");
        fixture.clock.advance(RETENTION);
        for _ in 0..20 {
            fixture.committer.write_group().await.expect("the disk is sound");
        }
        assert_eq!(fixture.contents().await, (0, 0, 0));
    }
}
