//! The key that a store is encrypted with.
//!
//! Shown in no text, and wiped from memory when the last copy goes. Knows nothing of rows and of where a key comes
//! from.

use std::fmt;

use zeroize::Zeroizing;

/// The key of an encrypted store: 32 bytes that nobody can guess; `Debug` shows nothing of it.
///
/// Without it nothing in the store can be read: keep a copy where the store's backup is not.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreKey(Zeroizing<[u8; Self::BYTES]>);

impl StoreKey {
    /// Length of a key.
    pub const BYTES: usize = 32;

    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads what a key file holds: 32 bytes, or 64 hexadecimal digits with or without blanks around them.
    ///
    /// # Errors
    ///
    /// If it is neither; the text says how to make one and repeats nothing of it.
    pub fn parse(contents: &[u8]) -> Result<Self, StoreKeyError> {
        if let Ok(bytes) = contents.try_into() {
            return Ok(Self::new(bytes));
        }
        let digits = contents.trim_ascii();
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        let pairs = digits.chunks_exact(2);
        if digits.len() != 2 * Self::BYTES || !digits.is_ascii() {
            return Err(StoreKeyError { bytes: contents.len() });
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
            let read = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = read.ok_or(StoreKeyError { bytes: contents.len() })?;
        }
        Ok(Self(bytes))
    }

    /// The bytes, for the cipher.
    pub(super) fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

/// Why a text is no key; says nothing of what it holds but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes are no key: it must have 32 bytes, or 64 hexadecimal digits; make one by `openssl rand -hex 32`"
)]
pub struct StoreKeyError {
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_64_digits_and_shown_nowhere() {
        let bytes = [0xab; 32];
        let key = StoreKey::new(bytes);
        assert_eq!(StoreKey::parse(&bytes), Ok(key.clone()));
        let digits = "aB".repeat(32);
        assert_eq!(StoreKey::parse(digits.as_bytes()), Ok(key.clone()));
        assert_eq!(StoreKey::parse(format!("{digits}\n").as_bytes()), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), "StoreKey(..)");
        for bad in
            ["", "short", &"g".repeat(64), &"+a".repeat(32), &"é".repeat(32), &"a".repeat(66)]
        {
            let problem = StoreKey::parse(bad.as_bytes()).expect_err(bad).to_string();
            assert!(problem.contains("openssl rand -hex 32"), "{problem}");
        }
    }
}
