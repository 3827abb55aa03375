//! Gives back memory that many messages at once took: maps and lines keep what they grew to.
//!
//! Not of small ones, and only of what is nearly empty, so that no map grows and shrinks in turn.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// Entries that have room in any case.
const KEPT: usize = 4096;

/// Of how many places one is taken at most in what is nearly empty.
const PLACES: usize = 8;

pub(super) fn give_back<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if is_nearly_empty(map.len(), map.capacity()) {
        map.shrink_to(room_for(map.len()));
    }
}

pub(super) fn give_back_line<T>(line: &mut VecDeque<T>) {
    if is_nearly_empty(line.len(), line.capacity()) {
        line.shrink_to(room_for(line.len()));
    }
}

const fn is_nearly_empty(len: usize, capacity: usize) -> bool {
    // A map has up to twice the room that it was asked for.
    capacity > 2 * KEPT && len <= capacity / PLACES
}

fn room_for(len: usize) -> usize {
    KEPT.max(2 * len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_empty_gives_back_its_room_and_keeps_what_it_has() {
        let full = 100_000;
        let mut map: HashMap<usize, usize> = (0..full).map(|number| (number, number)).collect();
        let mut line: VecDeque<usize> = (0..full).collect();
        let room = (map.capacity(), line.capacity());
        give_back(&mut map);
        give_back_line(&mut line);
        assert_eq!((map.capacity(), line.capacity()), room, "they are full");
        map.retain(|number, _| number % 100 == 0);
        line.retain(|number| number % 100 == 0);
        give_back(&mut map);
        give_back_line(&mut line);
        assert!(map.capacity() <= 2 * KEPT && line.capacity() <= 2 * KEPT, "{}", map.capacity());
        assert_eq!((map.len(), line.len()), (full / 100, full / 100));
        let room = map.capacity();
        map.clear();
        give_back(&mut map);
        assert_eq!(map.capacity(), room, "it is small");
    }
}
