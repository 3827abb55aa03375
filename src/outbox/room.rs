//! How much of what an earlier process left unsent lies in memory at once.
//!
//! Pure. One value of any size always has room. A lane that finds none waits for one that is done, in order.

use std::collections::VecDeque;

use super::lanes::LaneId;

/// Most bytes that are open at once, one value of any size excepted.
const OPEN_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Room {
    open_bytes: u64,
    waiting: VecDeque<(LaneId, u64)>,
}

impl Room {
    /// Takes room for a lane; `false` if it has to wait until [`Room::free`] names it.
    pub(super) fn take(&mut self, lane: LaneId, bytes: u64) -> bool {
        let has_room = self.has_room(bytes);
        if has_room {
            self.open_bytes += bytes;
        } else {
            self.waiting.push_back((lane, bytes));
        }
        has_room
    }

    /// Gives room back: the lanes that may ask again.
    pub(super) fn free(&mut self, bytes: u64) -> Vec<LaneId> {
        self.open_bytes -= bytes;
        let (mut lanes, mut asked_bytes) = (Vec::new(), 0);
        while let Some((lane, bytes)) = self.waiting.front().copied()
            && self.has_room(asked_bytes + bytes)
        {
            asked_bytes += bytes;
            lanes.push(lane);
            self.waiting.pop_front();
        }
        lanes
    }

    const fn has_room(&self, bytes: u64) -> bool {
        self.open_bytes == 0 || self.open_bytes.saturating_add(bytes) <= OPEN_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;
    use crate::store::{KeyId, QueueId};

    fn lane(number: u8) -> LaneId {
        (KeyId { queue: QueueId(0), hash: [number; 16] }, Kind::Message)
    }

    #[test]
    fn a_value_of_any_size_has_room_alone_and_the_others_wait_in_order() {
        let mut room = Room::default();
        assert!(room.take(lane(0), 3 * OPEN_BYTES_MAX));
        assert!(!room.take(lane(1), 1) && !room.take(lane(2), OPEN_BYTES_MAX));
        assert_eq!(room.free(3 * OPEN_BYTES_MAX), [lane(1), lane(2)]);
        assert!(room.take(lane(1), 1) && !room.take(lane(2), OPEN_BYTES_MAX));
        assert_eq!(room.free(1), [lane(2)]);
    }
}
