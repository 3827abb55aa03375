//! The end of what a command wrote: bounded in memory, whatever is written.
//!
//! The end and not the start, because there a program says why it gives up. Shows bytes escaped only.

use std::fmt;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::message::escape;

/// Most bytes of stderr that go into an error text.
const ERROR_BYTES_MAX: usize = 512;

/// Most lines of stderr that go into an error text.
const ERROR_LINES_MAX: usize = 3;

/// Bytes read from a pipe at a time.
const CHUNK_BYTES: usize = 8 * 1024;

/// The last bytes of a stream; in memory at most twice `bytes_max` of them and a chunk.
pub(super) struct Tail {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Tail {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max }
    }

    /// Reads to the end; an error of a pipe is its end.
    pub(super) async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else {
            return;
        };
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            self.bytes.extend(chunk.iter().take(read));
            if self.bytes.len() > self.bytes_max.saturating_mul(2) {
                self.cut();
            }
        }
    }

    pub(super) fn cut(&mut self) {
        let dropped = self.bytes.len().saturating_sub(self.bytes_max);
        self.bytes.drain(..dropped);
    }

    /// The last lines that are not blank, in order, escaped, short enough for an error text.
    pub(super) fn last_lines(&self) -> String {
        let from = self.bytes.len().saturating_sub(ERROR_BYTES_MAX);
        let tail = self.bytes.get(from..).unwrap_or_default();
        let lines: Vec<&[u8]> = tail
            .split(|&byte| byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .collect();
        let first = lines.len().saturating_sub(ERROR_LINES_MAX);
        let last: Vec<String> = lines.iter().skip(first).map(|line| escape(line)).collect();
        last.join("; ")
    }
}

/// A whole tail, escaped when, and only if, it is printed.
impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_keeps_the_end() {
        let mut tail = Tail::new(4);
        tail.bytes.extend_from_slice(b"0123456789");
        tail.cut();
        assert_eq!(tail.to_string(), "6789");
    }
}
