//! What the broker holds of a channel: its unacked deliveries, as the broker counts them.

use std::sync::Arc;

use super::world::{MessageId, World};

/// A delivery that is not acked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    pub(super) tag: u64,
    pub(super) message: MessageId,
    pub(super) copy: u64,
    /// Number of the entry of the delivery.
    pub(super) at: usize,
}

/// A channel on which a queue is consumed.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) number: u64,
    pub(super) queue: Arc<str>,
    pub(super) life: u32,
    pub(super) prefetch: u16,
    /// In order of tags.
    pub(super) unacked: Vec<Tag>,
    pub(super) tag_max: u64,
    pub(super) closed: Option<usize>,
}

impl Channel {
    /// Takes out what an ack covers: nothing if the named tag is not outstanding.
    pub(super) fn ack(&mut self, tag: u64, multiple: bool) -> Vec<Tag> {
        let Ok(place) = self.unacked.binary_search_by_key(&tag, |unacked| unacked.tag) else {
            return Vec::new();
        };
        let first = if multiple { 0 } else { place };
        self.unacked.drain(first..=place).collect()
    }
}

impl World<'_> {
    /// A delivery, for people: `tag 4 of channel 2 (orders/t1)`.
    pub(super) fn tag_text(&self, channel: u64, tag: &Tag) -> String {
        format!("tag {} of channel {channel} ({})", tag.tag, self.text(tag.message))
    }
}
