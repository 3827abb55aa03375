//! One row of the engine, decoded by its key's prefix. Pure; what rows mean together is checked elsewhere.

use serde::de::DeserializeOwned;

use super::super::ghosts::{self, GHOST_PREFIX, GhostRow};
use super::super::outgoing::{self, OUTGOING_PREFIX, OutgoingBlock};
use super::super::record::{
    self, ATTEMPTS_PREFIX, Attempts, BLOCK_PREFIX, Block, Location, META_KEY, Meta, PENDING_PREFIX,
    QUEUE_PREFIX, QueueId, QueueRow,
};
use super::super::rows::{KeyId, StepRow};
use super::super::spill::{PIECE_PREFIX, PieceRow};
use super::super::state::{STATE_PREFIX, StateRow};
use super::super::steps::{self, STEP_PREFIX};
use super::super::watermark::{Marks, MarksRow, WATERMARK_PREFIX};
use crate::identity::{Identity, hex};

/// A row, with what its key says.
#[derive(Debug)]
pub(super) enum Row {
    Meta,
    Queue(QueueId, QueueRow),
    Block(Location, Block),
    Ghosts(Location, GhostRow),
    Attempts(Identity, Attempts),
    Pending(Identity),
    State(KeyId, StateRow),
    Step(Identity, StepRow),
    Outgoing(u64, OutgoingBlock),
    Watermark(Identity, MarksRow),
    Piece(PieceId, PieceRow),
}

/// Where a piece of a spilled value belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceId {
    pub(super) value: u64,
    pub(super) number: u32,
}

/// Decodes a row, or says what is wrong with it.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Row, String> {
    const BAD_KEY: &str = "its key is none that this version writes";
    let keyed = match key.get(..1).unwrap_or_default() {
        META_KEY if key.len() == 1 => unseal::<Meta>(value).map(|_| Some(Row::Meta))?,
        QUEUE_PREFIX => match queue_of_key(key) {
            Some(queue) => Some(Row::Queue(queue, unseal(value)?)),
            None => None,
        },
        BLOCK_PREFIX => match Location::from_key(key) {
            Some(location) => Some(Row::Block(location, unseal(value)?)),
            None => None,
        },
        GHOST_PREFIX => match ghosts::location_of_key(key) {
            Some(location) => Some(Row::Ghosts(location, ghosts_of(value)?)),
            None => None,
        },
        ATTEMPTS_PREFIX => match record::identity_of_key(ATTEMPTS_PREFIX, key) {
            Some(identity) => Some(Row::Attempts(identity, unseal(value)?)),
            None => None,
        },
        PENDING_PREFIX => match record::identity_of_key(PENDING_PREFIX, key) {
            Some(identity) => unseal::<()>(value).map(|()| Some(Row::Pending(identity)))?,
            None => None,
        },
        STATE_PREFIX => match key_of_state(key) {
            Some(key) => Some(Row::State(key, unseal(value)?)),
            None => None,
        },
        STEP_PREFIX => match steps::identity_of_key(key) {
            Some(identity) => Some(Row::Step(identity, step(key, identity, value)?)),
            None => None,
        },
        OUTGOING_PREFIX => match outgoing::sequence_of_key(key) {
            Some(sequence) => Some(Row::Outgoing(sequence, unseal(value)?)),
            None => None,
        },
        WATERMARK_PREFIX => match record::identity_of_key(WATERMARK_PREFIX, key) {
            Some(producer) => Some(Row::Watermark(producer, marks(value)?)),
            None => None,
        },
        PIECE_PREFIX => match piece_of_key(key) {
            Some(piece) => Some(Row::Piece(piece, unseal(value)?)),
            None => None,
        },
        _ => None,
    };
    keyed.ok_or_else(|| BAD_KEY.to_owned())
}

fn unseal<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    record::unseal(value).map_err(|error| error.to_string())
}

fn step(key: &[u8], identity: Identity, value: &[u8]) -> Result<StepRow, String> {
    let step: StepRow = unseal(value)?;
    if steps::step_key(identity, &step.name) != key {
        return Err(format!("it holds step {:?}, whose key is another", step.name));
    }
    Ok(step)
}

fn ghosts_of(value: &[u8]) -> Result<GhostRow, String> {
    let row: GhostRow = unseal(value)?;
    let is_whole = row.hashes().is_some();
    if is_whole { Ok(row) } else { Err("it ends in half a hash".to_owned()) }
}

fn marks(value: &[u8]) -> Result<MarksRow, String> {
    let marks = Marks::from_row(unseal(value)?).ok_or("its runs are not in order")?;
    Ok(marks.to_row())
}

fn queue_of_key(key: &[u8]) -> Option<QueueId> {
    let number = key.strip_prefix(QUEUE_PREFIX)?.try_into().ok()?;
    Some(QueueId(u16::from_be_bytes(number)))
}

fn key_of_state(key: &[u8]) -> Option<KeyId> {
    let (queue, hash) = key.strip_prefix(STATE_PREFIX)?.split_first_chunk::<2>()?;
    Some(KeyId { queue: QueueId(u16::from_be_bytes(*queue)), hash: hash.try_into().ok()? })
}

fn piece_of_key(key: &[u8]) -> Option<PieceId> {
    let (value, number) = key.strip_prefix(PIECE_PREFIX)?.split_first_chunk::<8>()?;
    let number = u32::from_be_bytes(number.try_into().ok()?);
    Some(PieceId { value: u64::from_be_bytes(*value), number })
}

/// The row in words.
pub(super) fn name(key: &[u8]) -> String {
    let rest = hex(key.get(1..).unwrap_or_default());
    match key.get(..1).unwrap_or_default() {
        META_KEY => "the store's own row".to_owned(),
        QUEUE_PREFIX => match queue_of_key(key) {
            Some(queue) => format!("queue {}", queue.0),
            None => format!("queue {rest}"),
        },
        BLOCK_PREFIX => match Location::from_key(key) {
            Some(at) => format!("block {} of queue {}", at.sequence(), at.queue().0),
            None => format!("block {rest}"),
        },
        GHOST_PREFIX => match ghosts::location_of_key(key) {
            Some(at) => {
                format!("expired records up to block {} of queue {}", at.sequence(), at.queue().0)
            }
            None => format!("expired records {rest}"),
        },
        ATTEMPTS_PREFIX => format!("attempts of message {rest}"),
        PENDING_PREFIX => format!("dead letter of message {rest}"),
        STATE_PREFIX => match key_of_state(key) {
            Some(key) => format!("state of {key}"),
            None => format!("state of {rest}"),
        },
        STEP_PREFIX => match steps::identity_of_key(key) {
            Some(identity) => format!("step of message {}", hex(identity.as_bytes())),
            None => format!("step {rest}"),
        },
        OUTGOING_PREFIX => match outgoing::sequence_of_key(key) {
            Some(sequence) => format!("block {sequence} of outgoing messages"),
            None => format!("block {rest} of outgoing messages"),
        },
        WATERMARK_PREFIX => format!("watermark of producer {rest}"),
        PIECE_PREFIX => match piece_of_key(key) {
            Some(PieceId { value, number }) => format!("piece {number} of value {value:x}"),
            None => format!("piece {rest}"),
        },
        _ => format!("row {}", hex(key)),
    }
}
