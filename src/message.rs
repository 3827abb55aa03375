//! The vocabulary of a message: body, properties, headers, id and ordering key.
//!
//! Owns the broker-neutral shape of what is delivered and published. Ids and header values may be any
//! bytes; they are escaped wherever they are shown. Knows nothing of brokers, stores or handlers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A message as a broker delivers or accepts it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The exchange it was published to; empty for the default exchange.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Properties and headers.
    pub properties: Properties,
    /// The body, shared and never copied on its way through the runtime.
    pub body: Bytes,
}

/// What a header takes in memory beside its bytes: its place in the map and its strings' allocations.
const HEADER_BYTES: usize = 128;

impl Message {
    /// About how many bytes of memory it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.body.len() + headers_bytes(&self.properties.headers)
    }
}

fn headers_bytes(headers: &Headers) -> usize {
    let each = headers.iter().map(|(name, value)| name.len() + value_bytes(value));
    each.fold(0, usize::saturating_add)
}

/// Recurses no deeper than [`HEADER_DEPTH_MAX`].
fn value_bytes(value: &HeaderValue) -> usize {
    HEADER_BYTES
        + match value {
            HeaderValue::Bytes(bytes) => bytes.len(),
            HeaderValue::Array(values) => {
                values.iter().map(value_bytes).fold(0, usize::saturating_add)
            }
            HeaderValue::Table(headers) => headers_bytes(headers),
            _ => 0,
        }
}

/// The properties of AMQP 0-9-1's basic class, all optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Properties {
    /// MIME type of the body; chooses the codec.
    pub content_type: Option<String>,
    /// MIME encoding of the body.
    pub content_encoding: Option<String>,
    /// Application headers.
    pub headers: Headers,
    /// 2 is persistent; anything else may be lost by the broker.
    pub delivery_mode: Option<u8>,
    /// Priority, 0 to 9.
    pub priority: Option<u8>,
    /// Correlation id of request and reply.
    pub correlation_id: Option<String>,
    /// Queue that a reply goes to.
    pub reply_to: Option<String>,
    /// Time to live, in milliseconds, as text.
    pub expiration: Option<String>,
    /// Id that the producer gave.
    pub message_id: Option<String>,
    /// Seconds since 1970 by the producer's clock; never used for decisions.
    pub timestamp: Option<u64>,
    /// Application's name for the kind of message; part of the fingerprint.
    pub kind: Option<String>,
    /// User, checked by the broker if set.
    pub user_id: Option<String>,
    /// Name of the producing application.
    pub app_id: Option<String>,
}

/// Application headers by name; of repeated names the last one counts, as in lapin.
pub type Headers = BTreeMap<String, HeaderValue>;

/// Header that carries the id of a message that we publish and whose `message-id` is somebody else's.
///
/// Stable over restarts, so whoever reads a dead-letter queue can dedupe by it.
pub const OUTGOING_ID_HEADER: &str = "x-onceward-outgoing-id";

/// How deep tables and arrays may nest in a header before it is cut off.
///
/// A producer can nest them by the thousand, and whoever walks or drops them recurses.
pub const HEADER_DEPTH_MAX: usize = 32;

/// The value of one header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HeaderValue {
    /// No value.
    Void,
    /// True or false.
    Bool(bool),
    /// Any of AMQP's signed integers.
    Int(i64),
    /// Any of AMQP's unsigned integers.
    UInt(u64),
    /// Single or double precision.
    Float(f64),
    /// A decimal: digits and the number of places after the point.
    Decimal {
        /// Places after the decimal point.
        scale: u8,
        /// All digits as one number.
        value: u32,
    },
    /// A string, which AMQP allows to be any bytes.
    Bytes(Bytes),
    /// Seconds since 1970.
    Timestamp(u64),
    /// Values in order.
    Array(Vec<Self>),
    /// Values by name.
    Table(Headers),
}

impl HeaderValue {
    /// The string's text, if this is a string and its bytes are UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Name of the type, for error messages.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Void => "void",
            Self::Bool(_) => "boolean",
            Self::Int(_) | Self::UInt(_) => "integer",
            Self::Float(_) => "float",
            Self::Decimal { .. } => "decimal",
            Self::Bytes(_) => "string",
            Self::Timestamp(_) => "timestamp",
            Self::Array(_) => "array",
            Self::Table(_) => "table",
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Bytes(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Bytes(Bytes::from(text))
    }
}

impl From<u32> for HeaderValue {
    fn from(number: u32) -> Self {
        Self::Int(i64::from(number))
    }
}

/// The id that says which deliveries are the same message: any bytes, escaped when shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Arc<[u8]>);

impl MessageId {
    /// Wraps the bytes as they are; nothing is trimmed or normalized.
    #[must_use]
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(bytes.as_ref().into())
    }

    /// The bytes as the producer sent them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// The ordering key: messages of one key run one after the other, in delivery order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// Wraps the bytes as they are.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes as the producer sent them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0))
    }
}

/// Text that is safe in a terminal, a log line and a header: printable UTF-8 as it is, the rest as `\x1b`.
///
/// A producer chooses these bytes, so an escape sequence in an id must not reach an operator's terminal, and nothing
/// in it may be unseen or turn the rest of the line around.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() || is_unseen(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Whether a character shows nothing itself and changes how others are shown or told apart: of no width, or one that
/// ends a line or sets the direction of writing.
const fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Cuts text to at most `bytes_max`, between characters.
pub(crate) fn cut(text: &mut String, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_ids_are_escaped_when_shown() {
        let id = MessageId::new(&b"a\x1b[31m\xff\n\\\xe2\x82\xac"[..]);
        assert_eq!(id.to_string(), "a\\u{1b}[31m\\xff\\n\\\\\u{20ac}");
    }

    #[test]
    fn headers_count_as_memory_as_bodies_do() {
        let plain = Message { body: vec![0; 1000].into(), ..Message::default() };
        assert!((1000..2000).contains(&plain.memory_bytes()));
        let mut many = Message::default();
        for number in 0..9_000 {
            many.properties.headers.insert(number.to_string(), HeaderValue::Int(number));
        }
        assert!(many.memory_bytes() > 9_000 * 100);
        let table = HeaderValue::Table(many.properties.headers);
        let mut nested = Message::default();
        nested.properties.headers.insert("t".to_owned(), HeaderValue::Array(vec![table]));
        assert!(nested.memory_bytes() > 9_000 * 100);
    }

    #[test]
    fn what_is_unseen_or_turns_a_line_around_is_escaped_too() {
        let id = MessageId::new("in\u{202e}gnp\u{200b}\u{2066}\u{2028}\u{feff}é");
        assert_eq!(id.to_string(), "in\\u{202e}gnp\\u{200b}\\u{2066}\\u{2028}\\u{feff}é");
    }

    #[test]
    fn a_header_that_is_not_text_has_no_text() {
        assert_eq!(HeaderValue::Bytes(Bytes::from_static(b"\xff")).as_str(), None);
        assert_eq!(HeaderValue::from("x").as_str(), Some("x"));
    }
}
