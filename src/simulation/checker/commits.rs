//! Commits as the disk saw them: what they made, what became durable, and what is gone with a crash.
//!
//! Part of the world, and judges as little.

use super::super::history::{Ended, Written};
use super::outbox::OutId;
use super::world::{CommitId, MessageId, NameId, RecordId, World};

/// A record that a commit made.
pub(super) struct Record<'h> {
    pub(super) name: NameId,
    /// `None` of a message that a watermark passed: whatever its body is.
    pub(super) message: Option<MessageId>,
    pub(super) ended: &'h Ended,
    pub(super) attempts: u32,
    pub(super) is_conflict: bool,
    /// Written once more because it was still needed when its block expired.
    pub(super) is_carried: bool,
    /// A watermark passes its message: what is known of it stays when the record goes.
    pub(super) is_numbered: bool,
    pub(super) commit: CommitId,
    pub(super) collected_by: Option<CommitId>,
}

/// What was given to the disk.
pub(super) struct Commit<'h> {
    pub(super) life: u32,
    pub(super) number: u64,
    pub(super) at: usize,
    pub(super) clock_ms: u64,
    pub(super) written: &'h Written,
    pub(super) records: std::ops::Range<RecordId>,
    pub(super) outs: std::ops::Range<OutId>,
    pub(super) collected: Vec<RecordId>,
    pub(super) synced_at: Option<usize>,
    pub(super) is_lost: bool,
}

impl<'h> World<'h> {
    pub(super) fn commit(
        &mut self,
        at: usize,
        life: u32,
        number: u64,
        clock_ms: u64,
        written: &'h Written,
    ) -> CommitId {
        // Its row first: records of one commit may be compared with each other.
        let id = self.commits.push(Commit {
            life,
            number,
            at,
            clock_ms,
            written,
            records: 0..0,
            outs: 0..0,
            collected: Vec::new(),
            synced_at: None,
            is_lost: false,
        });
        self.pending.push(id);
        let mut collected = Vec::new();
        for name in &written.collected {
            let name = self.name(name);
            if let Some(record) = self.to_collect(name, clock_ms) {
                self.records[record].collected_by = Some(id);
                collected.push(record);
            }
        }
        let first = self.records.len();
        for recorded in &written.records {
            let message = self.message(&recorded.name, recorded.fingerprint);
            let mut record = Record {
                name: self.messages[message].name_id,
                message: Some(message),
                ended: &recorded.ended,
                attempts: recorded.attempts,
                is_conflict: recorded.is_conflict,
                is_carried: false,
                is_numbered: written.numbered.contains(&recorded.name),
                commit: id,
                collected_by: None,
            };
            record.is_carried = self.is_carried(&record, clock_ms);
            self.record(record);
        }
        for name in &written.passed {
            let name = self.name(name);
            self.record(Record {
                name,
                message: None,
                ended: &Ended::Done,
                attempts: 1,
                is_conflict: false,
                is_carried: false,
                is_numbered: true,
                commit: id,
                collected_by: None,
            });
        }
        let first_out = self.outbox.outs.len();
        for (sender, ids) in &written.outgoing {
            let sender = self.name(sender);
            ids.iter().for_each(|out| self.outbox.commit(id, sender, out));
        }
        let row = &mut self.commits[id];
        row.records = first..self.records.len();
        row.outs = first_out..self.outbox.outs.len();
        row.collected = collected;
        id
    }

    fn record(&mut self, record: Record<'h>) {
        let name = record.name;
        let id = self.records.push(record);
        self.names[name].records.push(id);
    }

    /// How long a record is kept, as its message says.
    fn retention_ms(&self, record: &Record<'_>) -> Option<u64> {
        self.messages[record.message?].retention_ms()
    }

    /// Which record of a name is removed: the oldest that may be, or the oldest.
    fn to_collect(&self, name: NameId, clock_ms: u64) -> Option<RecordId> {
        let kept = self.names[name].records.iter().copied().filter(|id| self.is_kept(*id));
        let kept: Vec<RecordId> = kept.collect();
        let may_leave = |id: &&RecordId| {
            let record = &self.records[**id];
            let retention_ms = self.retention_ms(record);
            let committed_ms = self.commits[record.commit].clock_ms;
            let is_old =
                retention_ms.is_none_or(|retention_ms| committed_ms + retention_ms <= clock_ms);
            is_old && !self.is_needed(**id)
        };
        kept.iter().find(may_leave).or_else(|| kept.first()).copied()
    }

    /// Whether a record must stay because what its message sends is not confirmed, and no later copy has been carried.
    pub(super) fn is_needed(&self, id: RecordId) -> bool {
        let record = &self.records[id];
        if record.is_conflict || *record.ended != Ended::Done {
            return false;
        }
        let mut later = self.names[record.name].records.iter().filter(|other| **other > id);
        let is_carried = later.any(|other| {
            let other = &self.records[*other];
            other.is_carried && other.message == record.message && other.collected_by.is_none()
        });
        let mut outs = self.outbox.outs_of(record.name);
        let mut unsent = outs.any(|out| !out.is_lost && out.confirmed.is_none());
        unsent &= !is_carried && self.rules.sees.confirms;
        unsent
    }

    /// Whether this is a record that is there already and old enough to be written once more instead of collected.
    fn is_carried(&self, record: &Record<'_>, clock_ms: u64) -> bool {
        let name = &self.names[record.name];
        let mut kept = name.records.iter().filter(|id| self.is_kept(**id));
        kept.any(|id| {
            let older = &self.records[*id];
            let commit = &self.commits[older.commit];
            let retention_ms = self.retention_ms(record).unwrap_or(0);
            older.message == record.message
                && older.is_conflict == record.is_conflict
                && older.ended == record.ended
                && older.attempts == record.attempts
                && name.last_run.is_none_or(|run| run < commit.at)
                && clock_ms >= commit.clock_ms.saturating_add(retention_ms)
        })
    }

    pub(super) fn synced(&mut self, at: usize, number: u64) -> Vec<CommitId> {
        let named = self.pending.iter().find(|id| self.commits[**id].number == number);
        let Some(life) = named.map(|id| self.commits[*id].life) else {
            return Vec::new();
        };
        let commits = &self.commits;
        let is_synced = |id: &CommitId| {
            let commit = &commits[*id];
            commit.life == life && commit.number <= number
        };
        let (synced, pending) = self.pending.drain(..).partition(is_synced);
        self.pending = pending;
        for id in &synced {
            self.commits[*id].synced_at = Some(at);
        }
        synced
    }

    pub(super) fn lose_others(&mut self, life: u32) -> Vec<CommitId> {
        let commits = &self.commits;
        let is_lost = |id: &CommitId| commits[*id].life != life;
        let (lost, pending): (Vec<CommitId>, _) = self.pending.drain(..).partition(is_lost);
        self.pending = pending;
        for id in &lost {
            self.commits[*id].is_lost = true;
            for record in std::mem::take(&mut self.commits[*id].collected) {
                self.records[record].collected_by = None;
            }
            for (sender, _) in &self.commits[*id].written.outgoing {
                if let Some(sender) = self.name_ids.get(&**sender) {
                    self.outbox.lose(*sender, *id);
                }
            }
        }
        lost
    }
}
