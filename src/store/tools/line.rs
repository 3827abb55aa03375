//! The lines of an export, as docs/export.md describes them. Pure.
//!
//! A change of anything here that an older reader would take wrongly raises [`VERSION`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::ghosts::GhostRow;
use super::super::record::{Attempts, Location, QueueId, QueueRow};
use super::super::rows::{KeyId, OutgoingRow, Spilled, StepRow, Stored};
use super::super::state::{StateRow, ValueRow};
use super::super::watermark::MarksRow;
use super::record_line::RecordLine;
use super::text::{Base64, Hex};
use crate::identity::Identity;

/// What the first line says of itself.
pub(super) const FORMAT_NAME: &str = "onceward-export";

/// Of this format.
pub(super) const VERSION: u32 = 1;

/// Most bytes of a spilled value in one line; a multiple of what lies in one row.
pub(super) const CHUNK_BYTES: usize = 8 * super::super::spill::PIECE_BYTES_MAX;

/// Longest line that is read.
pub(super) const LINE_BYTES_MAX: u64 = 1 << 20;

pub(super) type Id = Hex<16>;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: String,
    pub(super) version: u32,
    /// Format of the store that it was made from.
    pub(super) store_format: u16,
    pub(super) created_at_ms: u64,
    /// Release of onceward that wrote it.
    pub(super) onceward: String,
    pub(super) epoch: u64,
    /// Secret: whoever has it can guess which ids the identities are of.
    pub(super) hash_key: Hex<32>,
}

/// Every other line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Line {
    Queue {
        queue: u16,
        name: String,
        class: Option<String>,
        retention_ms: u64,
    },
    Record(RecordLine),
    /// Numbers below this were given to blocks of the queue.
    NextBlock {
        queue: u16,
        block: u64,
    },
    /// Expired records, of blocks up to this one.
    Ghosts {
        queue: u16,
        block: u64,
        at_ms: u64,
        hashes: Base64,
    },
    Attempts(AttemptsLine),
    Pending {
        identity: Id,
    },
    State {
        queue: u16,
        key: Id,
        latest: Option<u64>,
        value: Option<StateLine>,
    },
    Step(StepLine),
    Outgoing(OutgoingLine),
    Watermark {
        producer: Id,
        low: u64,
        unsure_below: u64,
        runs: Vec<(u64, u64)>,
    },
    /// A part of the value that the line before announced.
    Chunk(Base64),
    /// What the export should have, and what damage made it leave out.
    Counts {
        records: u64,
        left_out: u64,
    },
    End(End),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttemptsLine {
    identity: Id,
    queue: u16,
    started: u32,
    unfinished: bool,
    alone: bool,
    first_seen_ms: u64,
    updated_at_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StateLine {
    name: String,
    version: u32,
    bytes: Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepLine {
    identity: Id,
    queue: u16,
    name: String,
    result: Option<Value>,
    updated_at_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutgoingLine {
    pub(super) block: u64,
    pub(super) at_ms: u64,
    identity: Id,
    queue: u16,
    key: Id,
    messages: Value,
}

/// A value of any size.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Value {
    Base64(Base64),
    /// In as many chunks as it takes, in the lines that follow.
    Chunked {
        bytes: u64,
    },
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// Lines before this one, the first included.
    pub(super) lines: u64,
    /// BLAKE3 of all bytes before this line.
    pub(super) blake3: Hex<32>,
}

/// Gives a spilled value its place in the store that is written.
pub(super) type Place<'a> = &'a mut dyn FnMut(u64) -> Spilled;

/// Gives a value this id, and says so.
pub(super) fn placer(id: u64, placed: &mut Option<Spilled>) -> impl FnMut(u64) -> Spilled {
    move |bytes| *placed.insert(Spilled { id, bytes })
}

impl Value {
    pub(super) fn new(stored: &Stored) -> Self {
        match stored {
            Stored::Inline(bytes) => Self::Base64(Base64(bytes.clone())),
            Stored::Spilled(spilled) => Self::Chunked { bytes: spilled.bytes },
        }
    }

    pub(super) fn stored(self, place: Place<'_>) -> Stored {
        match self {
            Self::Base64(bytes) => Stored::Inline(bytes.0),
            Self::Chunked { bytes } => Stored::Spilled(place(bytes)),
        }
    }
}

impl Line {
    pub(super) fn queue(id: QueueId, row: QueueRow) -> Self {
        let QueueRow { name, class, retention_ms } = row;
        Self::Queue { queue: id.0, name, class, retention_ms }
    }

    pub(super) fn ghosts(at: Location, row: GhostRow) -> Self {
        let GhostRow { committed_at_ms: at_ms, hashes } = row;
        let (queue, block) = (at.queue().0, at.sequence());
        Self::Ghosts { queue, block, at_ms, hashes: Base64(hashes) }
    }

    pub(super) fn attempts(identity: Identity, attempts: Attempts) -> Self {
        let Attempts { queue, started, unfinished, alone, first_seen_ms, updated_at_ms } = attempts;
        let (identity, queue) = (Hex(*identity.as_bytes()), queue.0);
        let line = AttemptsLine {
            identity,
            queue,
            started,
            unfinished,
            alone,
            first_seen_ms,
            updated_at_ms,
        };
        Self::Attempts(line)
    }

    pub(super) fn pending(identity: Identity) -> Self {
        Self::Pending { identity: Hex(*identity.as_bytes()) }
    }

    pub(super) fn state(key: KeyId, row: StateRow) -> Self {
        let value = row.value.map(|ValueRow { name, version, bytes }| StateLine {
            name,
            version,
            bytes: Value::new(&bytes),
        });
        Self::State { queue: key.queue.0, key: Hex(key.hash), latest: row.latest, value }
    }

    pub(super) fn step(identity: Identity, row: StepRow) -> Self {
        let StepRow { queue, name, result, updated_at_ms } = row;
        let (identity, queue) = (Hex(*identity.as_bytes()), queue.0);
        let result = result.as_ref().map(Value::new);
        Self::Step(StepLine { identity, queue, name, result, updated_at_ms })
    }

    pub(super) fn outgoing(block: u64, at_ms: u64, row: &OutgoingRow) -> Self {
        Self::Outgoing(OutgoingLine {
            block,
            at_ms,
            identity: Hex(*row.identity.as_bytes()),
            queue: row.key.queue.0,
            key: Hex(row.key.hash),
            messages: Value::new(&row.messages),
        })
    }

    pub(super) fn watermark(producer: Identity, row: MarksRow) -> Self {
        let MarksRow { low, unsure_below, runs } = row;
        Self::Watermark { producer: Hex(*producer.as_bytes()), low, unsure_below, runs }
    }

    pub(super) const fn chunk(bytes: Bytes) -> Self {
        Self::Chunk(Base64(bytes))
    }
}

impl AttemptsLine {
    pub(super) const fn attempts(self) -> (Identity, Attempts) {
        let Self { identity, queue, started, unfinished, alone, first_seen_ms, updated_at_ms } =
            self;
        let queue = QueueId(queue);
        let attempts = Attempts { queue, started, unfinished, alone, first_seen_ms, updated_at_ms };
        (Identity::from_bytes(identity.0), attempts)
    }
}

impl StateLine {
    pub(super) fn value(self, place: Place<'_>) -> ValueRow {
        ValueRow { name: self.name, version: self.version, bytes: self.bytes.stored(place) }
    }
}

impl StepLine {
    pub(super) const fn identity(&self) -> Identity {
        Identity::from_bytes(self.identity.0)
    }

    pub(super) fn step(self, place: Place<'_>) -> StepRow {
        StepRow {
            queue: QueueId(self.queue),
            name: self.name,
            result: self.result.map(|result| result.stored(place)),
            updated_at_ms: self.updated_at_ms,
        }
    }
}

impl OutgoingLine {
    pub(super) fn row(self, place: Place<'_>) -> OutgoingRow {
        OutgoingRow {
            identity: Identity::from_bytes(self.identity.0),
            key: KeyId { queue: QueueId(self.queue), hash: self.key.0 },
            messages: self.messages.stored(place),
        }
    }
}
