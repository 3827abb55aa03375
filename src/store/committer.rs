//! The one writer: everything that waits becomes one group, one batch, one sync; then, and only then, it is told.
//!
//! No window to tune: while one group syncs, the next one gathers, so groups grow with load; where many commits come it
//! gathers a little longer (`gather.rs`). After a sync the index learns of the records before anybody is told. After a
//! failure nothing is told any more, and the waiting commits are dropped. Collection of what has expired rides in the
//! same batches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::backend::StoreError;
use super::garbage::Garbage;
use super::gather::Gathering;
use super::ghosts::OldestGhosts;
use super::group::Group;
use super::journal::{Journal, Note};
use super::outgoing::outgoing_key;
use super::pace::Paces;
use super::record;
use super::recover::Recovered;
use super::unfinished::Unfinished;
use super::{Change, Commit, Persisted, Shared};
use crate::failpoint::{self, Point};
use crate::planted::{self, Bug};
use crate::telemetry::StoreMetrics;

/// Commits that may wait: more than one group can ever hold, so that a sync never waits for work.
pub(super) const COMMITS_WAITING_MAX: usize = 16 * 1024;

/// How often expired blocks are looked for and the size is looked at when nothing is committed.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// How often the end of the journal is noted beside it.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// Writes groups of commits.
pub(crate) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) commits: mpsc::Receiver<Commit>,
    pub(super) gathering: Gathering,
    pub(super) waiting: VecDeque<Commit>,
    buffer: Vec<Commit>,
    pub(super) journal: Journal,
    pub(super) garbage: Garbage,
    pub(super) oldest_ghosts: OldestGhosts,
    pub(super) pace: Paces,
    next_outgoing: u64,
    pub(super) size_bytes_max: u64,
    pub(super) looked_at_size: Instant,
    pub(super) looked_for_orphans: Instant,
    noted: Instant,
    /// What was noted last.
    note: Note,
    pub(super) opened_at_ms: u64,
    pub(super) metrics: StoreMetrics,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("journal", &self.journal).finish_non_exhaustive()
    }
}

/// As [`Unfinished`] for the commits that wait.
impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.failed.store(true, Ordering::Release);
    }
}

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        commits: mpsc::Receiver<Commit>,
        recovered: Recovered,
        size_bytes_max: u64,
    ) -> Self {
        let Recovered { journal, garbage, oldest_ghosts, next_outgoing } = recovered;
        let now = Instant::now();
        let opened_at_ms = shared.clock.now_ms();
        Self {
            shared,
            commits,
            gathering: Gathering::new(now),
            waiting: VecDeque::new(),
            buffer: Vec::new(),
            journal,
            garbage,
            oldest_ghosts,
            pace: Paces::default(),
            next_outgoing,
            size_bytes_max,
            looked_at_size: now,
            looked_for_orphans: now,
            noted: now,
            note: Note::default(),
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
        self.look_at_size()?;
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
        self.shared.backend.leave_note(record::seal(&note)).await?;
        self.note = note;
        Ok(())
    }

    async fn write_groups(&mut self, stopping: &CancellationToken) -> Result<(), StoreError> {
        loop {
            let is_behind = self.pace.is_behind() || self.garbage.is_due(Instant::now());
            if self.waiting.is_empty() && (!is_behind || stopping.is_cancelled()) {
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
                self.gather(stopping).await;
            }
            while self.waiting.len() < COMMITS_WAITING_MAX
                && let Ok(commit) = self.commits.try_recv()
            {
                self.waiting.push_back(commit);
            }
            if self.pace.owes() {
                self.write(Group::default()).await?;
            } else {
                self.write_group().await?;
            }
            if self.noted.elapsed() >= NOTE_INTERVAL {
                self.leave_note().await?;
            }
        }
    }

    async fn write_group(&mut self) -> Result<(), StoreError> {
        let mut group = Group::default();
        let gathering = Unfinished::new(&self.shared);
        if planted::is(Bug::CommitsReordered) {
            self.waiting.make_contiguous().reverse();
        }
        while let Some(commit) = self.waiting.pop_front() {
            if let Err(commit) = group.add(commit, &self.shared.watermarks) {
                self.waiting.push_front(*commit);
                break;
            }
        }
        gathering.finished();
        self.write(group).await
    }

    /// Writes the group with what collection adds, and tells.
    async fn write(&mut self, mut group: Group) -> Result<(), StoreError> {
        let now_ms = self.shared.clock.now_ms();
        let gathering = Unfinished::new(&self.shared);
        // Ghosts first: those of this group are not on disk yet.
        self.collect_ghosts(&mut group, now_ms).await?;
        self.collect(&mut group, now_ms).await?;
        // Before they are gone: if the clock is set back, the note would want to see them again.
        if self.journal.has_lost_what_is_in(&self.note) {
            self.leave_note().await?;
        }
        self.collect_orphans(&mut group, now_ms);
        self.garbage.collect(&mut group, Instant::now());
        let marks = group.finish_marks();
        self.journal.grow_states(group.grown_states);
        self.journal.grow(group.grown_values);
        if group.given_up > 0 {
            self.metrics.gaps_given_up.increment(group.given_up);
            warn!(
                numbers = group.given_up,
                "a producer's numbers have too many gaps: of the lowest it is no longer known whether they were done"
            );
        }
        let Group { mut batch, blocks, outgoing, mut told, changes, .. } = group;
        let writing = Unfinished::new(&self.shared);
        gathering.finished();
        let mut records = Vec::with_capacity(told.len());
        let blocks_written = blocks.values().map(Vec::len).sum();
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
        self.pace.blocks.wrote(blocks_written);
        let mut unconfirmed = Vec::with_capacity(outgoing.len());
        for block in outgoing {
            batch.put(outgoing_key(self.next_outgoing), block.builder.finish(now_ms));
            unconfirmed.push((self.next_outgoing, block.entries));
            self.next_outgoing += 1;
        }
        if batch.is_empty() && told.is_empty() {
            writing.finished();
            self.pace.pause();
            return self.look_at_size();
        }

        let started = Instant::now();
        self.gathering.begin(started, told.len());
        if planted::is(Bug::AckBeforeSync) {
            told.drain(..).for_each(|(_, on_persisted)| on_persisted(Persisted(())));
        }
        // Without rows there is nothing to wait for: what was handed in before is durable.
        if !batch.is_empty() {
            let synced = self.shared.backend.commit(batch).await;
            if !planted::is(Bug::FailedSyncIgnored) {
                synced?;
            }
            failpoint::reached(Point::Synced);
        }
        let synced = Instant::now();

        // The index first: whoever is told lets go of its claim, and the next twin must find the record.
        for (identity, location) in records {
            if let Some(known) = self.shared.index.insert(identity, location) {
                self.shared.supersede(identity, known, location).await?;
            }
        }
        for (sequence, entries) in unconfirmed {
            self.shared.unconfirmed().add(sequence, &entries);
        }
        if !marks.is_empty() {
            self.shared.watermarks.set(marks);
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
            self.look_at_size()?;
        }
        Ok(())
    }

    /// The rows are durable: memory learns of them.
    fn apply(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut rows = self.shared.rows();
        for change in changes {
            match &change {
                Change::PutState(change) => self.shared.states.persisted(change.key),
                Change::RemoveOutgoing(_) => failpoint::reached(Point::OutgoingRemoved),
                _ => {}
            }
            if let Some(spilled) = rows.apply(change) {
                self.garbage.add(spilled);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures_util::FutureExt as _;
    use tempfile::TempDir;

    use super::super::group::COLLECT_BLOCKS_MAX;
    use super::super::outcome::Outcome;
    use super::super::record;
    use super::super::rows::{ResultRow, Spilled, Stored};
    use super::super::spill::{Owner, PIECE_PREFIX};
    use super::super::tests::{dead_record, record};
    use super::super::{QueueId, QueueRetention, Record, Records, Store, StoreOptions};
    use super::*;
    use crate::clock::Clock;
    use crate::identity::{Identity, SequenceId};

    const RETENTION: Duration = Duration::from_secs(60);

    /// A store whose groups are written one by one.
    struct Fixture {
        store: Store,
        committer: Committer,
        queue: QueueId,
        clock: Clock,
        dir: TempDir,
    }

    impl Fixture {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            Self::open(dir, Clock::manual(1_700_000_000_000)).await
        }

        async fn open(dir: TempDir, clock: Clock) -> Self {
            let mut options = StoreOptions::new(dir.path());
            options.clock = clock.clone();
            let name = "orders".to_owned();
            let queue = QueueRetention { name, retention: RETENTION, classes: Vec::new() };
            let opened = Store::open(&options, &[queue], &|_| ()).await;
            let (store, committer, queues) = opened.expect("it opens");
            Self { store, committer, queue: queues[0].own, clock, dir }
        }

        async fn write(&mut self, records: impl Iterator<Item = Record>) {
            let commits = records.map(|record| commit(self.queue, Some(record), Vec::new()));
            self.committer.waiting.extend(commits);
            while !self.committer.waiting.is_empty() {
                self.committer.write_group().await.expect("the disk is sound");
            }
        }

        /// Writes these rows and all that was handed in, in one group.
        async fn rows(&mut self, rows: Vec<Change>) {
            while let Ok(commit) = self.committer.commits.try_recv() {
                self.committer.waiting.push_back(commit);
            }
            self.committer.waiting.push_back(commit(self.queue, None, rows));
            self.committer.write_group().await.expect("the disk is sound");
        }

        async fn pieces(&self) -> usize {
            let pieces = self.store.shared.backend.scan(PIECE_PREFIX, None, usize::MAX).await;
            pieces.expect("it can be read").len()
        }

        /// As the next process finds it.
        async fn reopened(self) -> Self {
            let Self { store, committer, clock, dir, .. } = self;
            drop((store, committer));
            Self::open(dir, clock).await
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
        let records = record.into_iter().collect();
        Commit { queue, records, rows, submitted: Instant::now(), on_persisted: Box::new(drop) }
    }

    #[tokio::test]
    async fn blocks_leave_after_their_retention_and_take_index_and_bytes_with_them() {
        const PER_SECOND: u64 = 1000;
        let mut fixture = Fixture::new().await;
        let mut disk_bytes_max = [0; 2];
        for second in 0..480 {
            let first = second * PER_SECOND;
            fixture.write((first..first + PER_SECOND).map(record)).await;
            fixture.clock.advance(Duration::from_secs(1));
            let (ids, ..) = fixture.contents().await;
            assert!(ids as u64 <= 61 * PER_SECOND, "{ids} ids after {second} s");
            let half = &mut disk_bytes_max[second as usize / 240];
            *half = fixture.store.shared.backend.disk_bytes().expect("a size").max(*half);
        }
        let [early, late] = disk_bytes_max;
        println!("disk {early} {late}");
        assert!(late <= early * 3 / 2, "the files grow: {early}, later {late} bytes");

        fixture.clock.advance(RETENTION * 2);
        for _ in 0..400 {
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
        let (ids, ghost_bytes, blocks) = fixture.contents().await;
        assert_eq!((ids, blocks), (0, 0));
        assert!(ghost_bytes < 20_000 * 7, "{ghost_bytes} bytes of ghosts");
        fixture.clock.advance(RETENTION);
        for _ in 0..20_000_usize.div_ceil(600 * COLLECT_BLOCKS_MAX) {
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
        for _ in 0..2 {
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
        for _ in 0..2 {
            fixture.clock.advance(RETENTION);
            for _ in 0..20 {
                fixture.committer.write_group().await.expect("the disk is sound");
            }
        }
        assert_eq!(fixture.contents().await, (0, 0, 0));
    }

    #[tokio::test]
    async fn a_value_that_is_given_up_twice_counts_once() {
        let mut fixture = Fixture::new().await;
        fixture.write((0..1000).map(record)).await;
        let (_, before, _) = fixture.contents().await;
        let spilled = Spilled { id: 7, bytes: 8000 };
        let pieces = (0..2).map(|number| {
            let bytes = vec![1; 4000].into();
            Change::PutPiece(spilled, number, Owner::Record(record(1).identity), bytes)
        });
        fixture.rows(pieces.collect()).await;
        fixture.rows(vec![Change::RemoveSpilled(spilled), Change::RemoveSpilled(spilled)]).await;
        for _ in 0..3 {
            fixture.rows(Vec::new()).await;
        }
        assert_eq!(fixture.contents().await.1, before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_result_of_a_record_that_another_replaced_counts_once_before_and_after_an_open() {
        let mut fixture = Fixture::new().await;
        let spilled = Spilled { id: 7, bytes: 8000 };
        let body = Stored::Spilled(spilled);
        let result = ResultRow { signature: 1, checksum: [0; 8], content_type: None, body };
        let first = Record { result: Some(Box::new(result)), ..record(1) };
        let pieces = (0..2).map(|number| {
            Change::PutPiece(spilled, number, Owner::Record(first.identity), vec![1; 4000].into())
        });
        fixture.rows(pieces.collect()).await;
        fixture.write([first].into_iter()).await;
        fixture.write([record(1)].into_iter()).await;
        let mut fixture = fixture.reopened().await;
        fixture.rows(Vec::new()).await;
        fixture.clock.advance(RETENTION / 2);
        fixture.write((2..1000).map(record)).await;
        let (_, before, _) = fixture.contents().await;
        fixture.clock.advance(RETENTION / 2);
        fixture.rows(Vec::new()).await;
        tokio::time::advance(Duration::from_secs(61)).await;
        fixture.rows(Vec::new()).await;
        let (_, after, _) = fixture.contents().await;
        assert!(before - after < 500, "two records are gone: {before}, then {after}");
    }

    #[tokio::test]
    async fn a_large_value_that_is_cut_off_while_it_is_written_goes_and_does_not_count() {
        for groups in 0..4 {
            let mut fixture = Fixture::new().await;
            fixture.write((0..1000).map(record)).await;
            let (_, before, _) = fixture.contents().await;
            let store = fixture.store.clone();
            let body = vec![3; 200_000].into();
            let mut staged = Box::pin(store.stage_result(record(1).identity, None, body));
            for _ in 0..groups {
                assert!((&mut staged).now_or_never().is_none());
                fixture.rows(Vec::new()).await;
            }
            assert!((&mut staged).now_or_never().is_none());
            drop(staged);
            let pieces = fixture.pieces().await;
            assert_eq!(pieces, 6 * groups);
            for _ in 0..5 {
                // A message that ends: without any, nobody needs the room.
                let gone = Change::RemoveAttempts(record(2).identity);
                let submitted = Instant::now();
                let (queue, records) = (fixture.queue, Records::new());
                let on_persisted = Box::new(drop);
                let rows = vec![gone];
                store.commit(Commit { queue, records, rows, submitted, on_persisted }).await;
                fixture.rows(Vec::new()).await;
            }
            assert_eq!(fixture.pieces().await, 0);
            assert_eq!(fixture.contents().await.1, before);
        }
    }

    #[tokio::test]
    async fn producers_are_counted_from_the_start() {
        let mut fixture = Fixture::new().await;
        let numbers = (0..30_u64).map(|number| SequenceId {
            producer: Identity::from_bytes(u128::from(number % 10).to_le_bytes()),
            number,
        });
        fixture.rows(numbers.map(Change::Advance).collect()).await;
        let mut fixture = fixture.reopened().await;
        let gauge = Arc::new(AtomicU64::new(0));
        fixture.committer.metrics.producers = metrics::Gauge::from_arc(Arc::clone(&gauge));
        fixture.committer.look_at_size().expect("a size");
        assert_eq!(f64::from_bits(gauge.load(Ordering::Relaxed)), 10.0);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_after_a_collection_damages_nothing() {
        let mut fixture = Fixture::new().await;
        fixture.write((0..1).map(record)).await;
        fixture.committer.leave_note().await.expect("the disk is sound");
        fixture.clock.advance(RETENTION);
        fixture.committer.write_group().await.expect("the disk is sound");
        fixture.clock.set_back(RETENTION);
        fixture.reopened().await;
    }
}
