//! How many messages the broker may send ahead, by their size.
//!
//! Pure. The client buffers all that the prefetch lets through, so with large messages a smaller one is the only bound
//! on its memory. It is lowered when more is in flight than may be and more can come, and raised again when what comes
//! would long have fitted. Does not decide whether anything is taken in.

use std::num::NonZeroU16;

#[derive(Debug)]
pub(crate) struct Prefetch {
    /// What the options say.
    full: NonZeroU16,
    bytes_max: usize,
    lowered: Option<NonZeroU16>,
    /// What came since it was lowered, or since it was last found too much to raise it.
    messages: usize,
    bytes: usize,
}

impl Prefetch {
    pub(crate) const fn new(full: NonZeroU16, bytes_max: usize) -> Self {
        Self { full, bytes_max, lowered: None, messages: 0, bytes: 0 }
    }

    pub(crate) fn current(&self) -> NonZeroU16 {
        self.lowered.unwrap_or(self.full)
    }

    /// Whether it must be lower than it is, with so many messages of so many bytes in flight; then it is.
    pub(crate) fn lower(&mut self, messages: usize, bytes: usize) -> bool {
        // With as many as the prefetch lets through the broker sends no more.
        if bytes < self.bytes_max || messages >= usize::from(self.current().get()) {
            return false;
        }
        let mean = (bytes / messages.max(1)).max(1);
        let fitting = u16::try_from(self.bytes_max / mean).unwrap_or(u16::MAX);
        let fitting = NonZeroU16::new(fitting).unwrap_or(NonZeroU16::MIN);
        if fitting >= self.current() {
            return false;
        }
        self.lowered = Some(fitting);
        (self.messages, self.bytes) = (0, 0);
        true
    }

    /// A message of so many bytes came; whether the prefetch is in full again.
    pub(crate) fn took(&mut self, bytes: usize) -> bool {
        if self.lowered.is_none() {
            return false;
        }
        let full = usize::from(self.full.get());
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.messages < 2 * full {
            return false;
        }
        // Of twice as many messages as it lets through: so they take half of what may be.
        let fits = self.bytes <= self.bytes_max;
        (self.messages, self.bytes) = (0, 0);
        if fits {
            self.lowered = None;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefetch() -> Prefetch {
        Prefetch::new(NonZeroU16::new(500).unwrap(), 1000)
    }

    #[test]
    fn it_is_lowered_to_what_fits_and_never_to_nothing() {
        let mut prefetch = prefetch();
        assert!(!prefetch.lower(10, 999), "it fits");
        assert!(!prefetch.lower(500, 5_000), "no more can come");
        assert!(prefetch.lower(10, 1000));
        assert_eq!(prefetch.current().get(), 10);
        assert!(!prefetch.lower(10, 1000));
        assert!(prefetch.lower(1, 1_000_000));
        assert_eq!(prefetch.current().get(), 1);
        assert!(!prefetch.lower(0, 1_000_000) && !prefetch.lower(1, usize::MAX));
    }

    #[test]
    fn it_is_raised_when_small_messages_have_come_for_long() {
        let mut prefetch = prefetch();
        assert!(!prefetch.took(1), "it was never lowered");
        assert!(prefetch.lower(10, 1000));
        for _ in 0..2_000 {
            assert!(!prefetch.took(2), "they would take all that may be");
        }
        let raised = (0..1_000).filter(|_| prefetch.took(1)).count();
        assert_eq!((raised, prefetch.current().get()), (1, 500));
    }
}
