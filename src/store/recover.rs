//! What an opened store reads beside its blocks: the rows of queues and messages, and what a crash left over.
//!
//! A row that does not decode is damage, and is named. A spilled value whose row does not refer to it is no damage but
//! the trace of a crash: its pieces go.

use std::collections::HashSet;

use super::backend::StoreError;
use super::garbage::Garbage;
use super::ghosts::{self, GhostRow, GhostSet, OldestGhosts};
use super::index::Index;
use super::journal::Journal;
use super::mirror::Mirror;
use super::open::{Opening, SCAN_ROWS};
use super::outgoing::{self, OutgoingBlock, Unconfirmed};
use super::record::{self, Attempts, QueueId};
use super::rows::{Spilled, StepRow};
use super::spill::{self, Owner};
use super::state::{self, States};
use super::steps;
use super::watermark::{self, Marks, MarksRow, Watermarks};
use crate::identity::Identity;

/// What the committer goes on from.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) garbage: Garbage,
    pub(super) oldest_ghosts: OldestGhosts,
    /// Number of the next block of outgoing messages.
    pub(super) next_outgoing: u64,
}

impl Opening<'_> {
    pub(super) async fn rows(&self) -> Result<Mirror, StoreError> {
        let mut rows = Mirror::default();
        for (key, value) in self.scan_all(record::QUEUE_PREFIX).await? {
            let number = key.strip_prefix(record::QUEUE_PREFIX).and_then(|key| key.try_into().ok());
            let Some(number) = number else {
                return Err(self.damaged("a queue's key"));
            };
            rows.queues.insert(QueueId(u16::from_be_bytes(number)), self.read("a queue", &value)?);
        }
        for (key, value) in self.scan_all(record::ATTEMPTS_PREFIX).await? {
            let identity = record::identity_of_key(record::ATTEMPTS_PREFIX, &key)
                .ok_or_else(|| self.damaged("a key of attempts"))?;
            rows.attempts.insert(identity, self.read::<Attempts>("attempts", &value)?);
        }
        for (key, value) in self.scan_all(steps::STEP_PREFIX).await? {
            let identity =
                steps::identity_of_key(&key).ok_or_else(|| self.damaged("a key of a step"))?;
            let step: StepRow = self.read(&format!("a step of {identity:?}"), &value)?;
            rows.steps.entry(identity).or_default().push(step);
        }
        for (key, value) in self.scan_all(record::PENDING_PREFIX).await? {
            let identity = record::identity_of_key(record::PENDING_PREFIX, &key)
                .ok_or_else(|| self.damaged("a key of a pending dead letter"))?;
            self.read::<()>("a pending dead letter", &value)?;
            rows.pending.insert(identity, ());
        }
        Ok(rows)
    }

    /// Reads what is not confirmed; gives the number of the next block.
    pub(super) async fn outgoing(&self, into: &mut Unconfirmed) -> Result<u64, StoreError> {
        let mut next = 0;
        for (key, value) in self.scan_all(outgoing::OUTGOING_PREFIX).await? {
            let sequence = outgoing::sequence_of_key(&key)
                .ok_or_else(|| self.damaged("a key of outgoing messages"))?;
            let what = format!("block {sequence} of outgoing messages");
            let block: OutgoingBlock = self.read(&what, &value)?;
            into.recover(sequence, block);
            next = sequence + 1;
        }
        Ok(next)
    }

    /// Whether there are states; they are read when they are asked for.
    pub(super) async fn states(&self) -> Result<States, StoreError> {
        let states = States::default();
        if !self.backend.scan(state::STATE_PREFIX, None, 1).await?.is_empty() {
            states.exist();
        }
        Ok(states)
    }

    pub(super) async fn watermarks(&self) -> Result<Watermarks, StoreError> {
        let watermarks = Watermarks::default();
        for (key, value) in self.scan_all(watermark::WATERMARK_PREFIX).await? {
            let producer = record::identity_of_key(watermark::WATERMARK_PREFIX, &key)
                .ok_or_else(|| self.damaged("a key of a watermark"))?;
            let what = format!("the watermark of {producer:?}");
            let marks = Marks::from_row(self.read::<MarksRow>(&what, &value)?)
                .ok_or_else(|| self.damaged(format!("{what}: its runs are not in order")))?;
            watermarks.set([(producer, marks)]);
        }
        Ok(watermarks)
    }

    /// Reads all ghosts; gives when the first of each queue was committed.
    pub(super) async fn ghosts(
        &self,
        into: &GhostSet,
        journal: &mut Journal,
    ) -> Result<OldestGhosts, StoreError> {
        let mut oldest = OldestGhosts::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.backend.scan(ghosts::GHOST_PREFIX, after.as_deref(), SCAN_ROWS).await?;
            let Some((last, _)) = rows.last() else { return Ok(oldest) };
            after = Some(last.clone());
            for (key, value) in rows {
                let location = ghosts::location_of_key(&key)
                    .ok_or_else(|| self.damaged("a key of expired records"))?;
                let what = format!("the expired records of block {}", location.sequence());
                let row: GhostRow = self.read(&what, &value)?;
                let hashes =
                    row.hashes().ok_or_else(|| self.damaged(format!("{what}: half a hash")))?;
                hashes.for_each(|hash| into.insert(hash));
                oldest.entry(location.queue()).or_insert(row.committed_at_ms);
                journal.grow(value.len() as i64);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Looks at the beginning of every spilled value; gives those that no row refers to.
    pub(super) async fn spilled(
        &self,
        rows: &Mirror,
        unconfirmed: &Unconfirmed,
        (index, journal): (&Index, &mut Journal),
    ) -> Result<Garbage, StoreError> {
        let sent: HashSet<Spilled> = unconfirmed.unsent_spilled().collect();
        let mut garbage = Garbage::default();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let first = self.backend.scan(spill::PIECE_PREFIX, after.as_deref(), 1).await?;
            let Some((key, value)) = first.first() else { return Ok(garbage) };
            let (spilled, owner) =
                spill::read_head(key, value).map_err(|what| self.damaged(what))?;
            let is_needed = match owner {
                Owner::State(key) => self.state_refers_to(key, spilled).await?,
                Owner::Step(identity) => rows.refers_to(identity, spilled),
                Owner::Outgoing(_) => sent.contains(&spilled),
                Owner::Record(identity) => self.record_refers_to(identity, spilled, index).await?,
            };
            if !is_needed {
                garbage.add(spilled);
            }
            journal.grow(spilled.bytes as i64);
            after = Some(spill::after_value(spilled.id));
            tokio::task::yield_now().await;
        }
    }

    async fn state_refers_to(
        &self,
        key: super::KeyId,
        spilled: Spilled,
    ) -> Result<bool, StoreError> {
        let Some(row) = self.backend.get(&state::state_key(key)).await? else {
            return Ok(false);
        };
        let found = state::spilled_in_row(&row)
            .map_err(|error| self.damaged(format!("the state of {key}: {error}")))?;
        Ok(found == Some(spilled))
    }

    async fn record_refers_to(
        &self,
        identity: Identity,
        spilled: Spilled,
        index: &Index,
    ) -> Result<bool, StoreError> {
        let Some(location) = index.candidate(identity) else { return Ok(false) };
        let Some(block) = self.backend.get(&location.key()).await? else { return Ok(false) };
        let found = record::find_in_block(&block, identity)
            .map_err(|error| self.damaged(format!("block {}: {error}", location.sequence())))?;
        let result = found.and_then(|(_, record)| record.result);
        Ok(result.and_then(|result| result.body.spilled()) == Some(spilled))
    }
}
