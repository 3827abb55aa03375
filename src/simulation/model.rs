//! What simulated handlers make of a key's state: the sequential model that the checker runs again.
//!
//! Pure. A state says how many messages made it, and carries a hash over all of them in order: a message that is lost,
//! counted twice or out of order shows in it. Which messages touch it is decided by what they are.

use serde::{Deserialize, Serialize};

/// The state of a key, kept by handlers as JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many messages made it.
    pub count: u64,
    /// Hash over all of them, in order.
    pub chain: u64,
}

/// What a message does to the state of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Leaves it as it is.
    Keeps,
    /// Makes a new one of it.
    Sets,
    /// Removes it: the next message finds none.
    Removes,
}

impl Touch {
    /// What a message with this fingerprint does: most set the state, one of eight keeps and one of sixteen removes it.
    #[must_use]
    pub const fn of(fingerprint: u64) -> Self {
        match fingerprint % 16 {
            0 | 1 => Self::Keeps,
            2 => Self::Removes,
            _ => Self::Sets,
        }
    }
}

impl State {
    /// The state after a message that sets it.
    #[must_use]
    pub fn after(before: Option<Self>, name: &str, fingerprint: u64) -> Self {
        let Self { count, chain } = before.unwrap_or_default();
        Self {
            count: count + 1,
            chain: hash(&[&chain.to_le_bytes(), name.as_bytes(), &fingerprint.to_le_bytes()]),
        }
    }

    /// As a handler's state lies in the store.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let Self { count, chain } = self;
        format!("{{\"count\":{count},\"chain\":{chain}}}").into_bytes()
    }

    /// `None` if these are no bytes of a state.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// A hash that is the same everywhere, for histories and not for keys: FNV-1a, mixed at the end.
#[must_use]
pub fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_tells_what_was_lost_repeated_or_exchanged() {
        let of = |messages: &[&str]| {
            messages.iter().fold(None, |state, name| Some(State::after(state, name, 7)))
        };
        let right = of(&["a", "b", "c"]);
        for wrong in [&["a", "c"][..], &["a", "b", "b", "c"], &["b", "a", "c"], &["a", "b", "d"]] {
            assert_ne!(of(wrong), right, "{wrong:?}");
        }
    }

    #[test]
    fn its_bytes_are_the_json_that_a_handler_writes() {
        let state = State::after(None, "orders/t1", 3);
        assert_eq!(state.to_bytes(), serde_json::to_vec(&state).expect("it is JSON"));
        assert_eq!(State::from_bytes(&state.to_bytes()), Some(state));
        assert_eq!(State::from_bytes(b"other"), None);
    }
}
