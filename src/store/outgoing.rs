//! What messages send, from their commit until the broker has confirmed it: in blocks, in commit order.
//!
//! A block goes when all in it is confirmed; after a crash the whole block is sent again, under the same ids. Knows
//! nothing of brokers and of who sends.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::record::BlockBuilder;
use super::rows::{INLINE_BYTES_MAX, KeyId, OutgoingRow, Spilled};
use super::spill::Owner;
use super::{Change, Store};
use crate::identity::Identity;
use crate::message::Message;
use crate::planted::{self, Bug};

pub(super) const OUTGOING_PREFIX: &[u8] = b"o";

pub(super) fn outgoing_key(sequence: u64) -> Vec<u8> {
    [OUTGOING_PREFIX, &sequence.to_be_bytes()].concat()
}

pub(super) fn sequence_of_key(key: &[u8]) -> Option<u64> {
    let sequence = key.strip_prefix(OUTGOING_PREFIX)?.try_into().ok()?;
    Some(u64::from_be_bytes(sequence))
}

/// What became durable together; encoded by a [`BlockBuilder`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OutgoingBlock {
    pub(super) committed_at_ms: u64,
    pub(super) rows: Vec<OutgoingRow>,
}

/// A block that is being filled.
#[derive(Debug, Default)]
pub(super) struct OpenOutgoing {
    pub(super) builder: BlockBuilder,
    pub(super) entries: Vec<Entry>,
}

/// One message's part of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    identity: Identity,
    spilled: Option<Spilled>,
}

impl Entry {
    pub(super) fn new(row: &OutgoingRow) -> Self {
        Self { identity: row.identity, spilled: row.messages.spilled() }
    }
}

/// Blocks that are not confirmed as a whole.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    /// The blocks that a message has entries in, in commit order: one, unless it was forgotten and done again.
    messages: HashMap<Identity, SmallVec<[u64; 1]>>,
    blocks: HashMap<u64, Unfinished>,
    /// Left by the process before.
    unsent: Vec<OutgoingRow>,
}

#[derive(Debug)]
struct Unfinished {
    left: usize,
    spilled: Vec<Spilled>,
}

impl Unconfirmed {
    /// Takes a durable block in.
    pub(super) fn add(&mut self, sequence: u64, entries: &[Entry]) {
        for entry in entries {
            self.messages.entry(entry.identity).or_default().push(sequence);
        }
        let spilled = entries.iter().filter_map(|entry| entry.spilled).collect();
        self.blocks.insert(sequence, Unfinished { left: entries.len(), spilled });
    }

    /// Takes in a block that was read when the store opened; in order.
    pub(super) fn recover(&mut self, sequence: u64, block: OutgoingBlock) {
        let entries: Vec<Entry> = block.rows.iter().map(Entry::new).collect();
        self.add(sequence, &entries);
        self.unsent.extend(block.rows);
    }

    /// Whether something that the message sends is not confirmed.
    pub(super) fn is_of(&self, identity: Identity) -> bool {
        self.messages.contains_key(&identity)
    }

    /// Values that rows of the process before refer to.
    pub(super) fn unsent_spilled(&self) -> impl Iterator<Item = Spilled> {
        self.unsent.iter().filter_map(|row| row.messages.spilled())
    }

    /// One entry of the message is confirmed; gives its block and the values in it, if that was its last one.
    fn confirm(&mut self, identity: Identity) -> Option<(u64, Vec<Spilled>)> {
        let sequences = self.messages.get_mut(&identity)?;
        let sequence = sequences.first().copied()?;
        sequences.remove(0);
        if sequences.is_empty() {
            self.messages.remove(&identity);
        }
        let block = self.blocks.get_mut(&sequence)?;
        block.left = block.left.saturating_sub(1);
        if block.left > 0 && !planted::is(Bug::OutgoingRemovedUnsent) {
            return None;
        }
        self.blocks.remove(&sequence).map(|block| (sequence, block.spilled))
    }
}

impl Store {
    /// The row of what a message sends, to be committed with it; `None` after a failure of the store.
    ///
    /// Up to `inline_bytes_max` lie in the row itself.
    pub(crate) async fn stage_outgoing(
        &self,
        identity: Identity,
        key: KeyId,
        messages: &[Arc<Message>],
        inline_bytes_max: usize,
    ) -> Option<OutgoingRow> {
        let messages: Vec<&Message> = messages.iter().map(|message| &**message).collect();
        #[expect(clippy::expect_used, reason = "messages are plain data, which postcard encodes")]
        let encoded = postcard::to_stdvec(&messages).expect("messages are plain data");
        let taken = INLINE_BYTES_MAX.saturating_sub(inline_bytes_max);
        let owner = Owner::Outgoing(identity);
        let messages = self.stored(owner, Bytes::from(encoded), taken).await?;
        Some(OutgoingRow { identity, key, messages })
    }

    /// What was committed before this process and is not known to be confirmed, in commit order; once.
    pub(crate) fn take_unsent(&self) -> Vec<OutgoingRow> {
        let unsent = std::mem::take(&mut self.shared.unconfirmed().unsent);
        if planted::is(Bug::UnsentForgotten) { Vec::new() } else { unsent }
    }

    /// All that one commit of the message sends is confirmed: the rows to commit, if any can go now.
    pub(crate) fn sent(&self, identity: Identity) -> Vec<Change> {
        let Some((sequence, spilled)) = self.shared.unconfirmed().confirm(identity) else {
            return Vec::new();
        };
        let spilled = spilled.into_iter().map(Change::RemoveSpilled);
        std::iter::once(Change::RemoveOutgoing(sequence)).chain(spilled).collect()
    }
}
