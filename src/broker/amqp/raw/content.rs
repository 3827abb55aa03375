//! What can be read of a raw message's content header, and what of it a client library cannot parse.
//!
//! Pure. Any bytes are legal input: nothing is trusted, recursion ends at [`HEADER_DEPTH_MAX`], and every string is
//! escaped. Says "readable" only of what lapin parses as well; a test holds the two together.

use serde_json::{Map, Value, json};

use super::RawMessage;
use crate::message::{HEADER_DEPTH_MAX, escape};

/// Most defects that are told of one message.
const DEFECTS_MAX: usize = 16;

/// A property and how it is encoded, in the order of the flags from the highest bit.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content-type", Kind::Text),
    ("content-encoding", Kind::Text),
    ("headers", Kind::Table),
    ("delivery-mode", Kind::Number),
    ("priority", Kind::Number),
    ("correlation-id", Kind::Text),
    ("reply-to", Kind::Text),
    ("expiration", Kind::Text),
    ("message-id", Kind::Text),
    ("timestamp", Kind::Time),
    ("type", Kind::Text),
    ("user-id", Kind::Text),
    ("app-id", Kind::Text),
    ("cluster-id", Kind::Text),
];

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Table,
    Number,
    Time,
}

/// What a message says, as far as it can be read.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// By name; strings are escaped.
    pub(crate) properties: Map<String, Value>,
    /// Why a client library cannot parse it; empty if it can.
    pub(crate) defects: Vec<String>,
}

/// Reads what can be read.
pub(crate) fn contents(message: &RawMessage) -> Contents {
    let mut reader = Reader::default();
    reader.text("exchange", &message.exchange);
    reader.text("routing key", &message.routing_key);
    let mut cursor = Cursor::new(&message.header);
    let mut properties = Map::new();
    match reader.properties(&mut cursor, &mut properties) {
        Ok(()) if cursor.rest().is_empty() => {}
        Ok(()) => reader.defect("bytes are left behind the properties".to_owned()),
        Err(CutOff) => reader.defect("the properties are cut off or malformed".to_owned()),
    }
    Contents { properties, defects: reader.defects }
}

/// The bytes end before the value does, or are no value.
struct CutOff;

#[derive(Default)]
struct Reader {
    defects: Vec<String>,
}

impl Reader {
    fn properties(
        &mut self,
        cursor: &mut Cursor<'_>,
        properties: &mut Map<String, Value>,
    ) -> Result<(), CutOff> {
        // Class, weight and body size, which the connection has looked at.
        cursor.take(12).ok_or(CutOff)?;
        let flags = cursor.u16().ok_or(CutOff)?;
        for (at, (name, kind)) in PROPERTIES.into_iter().enumerate() {
            if flags & (1 << (15 - at)) == 0 {
                continue;
            }
            let value = match kind {
                Kind::Text => self.text(name, cursor.short().ok_or(CutOff)?).into(),
                Kind::Number => cursor.u8().ok_or(CutOff)?.into(),
                Kind::Time => cursor.u64().ok_or(CutOff)?.into(),
                Kind::Table => {
                    let entries = cursor.long().ok_or(CutOff)?;
                    Value::Object(self.table(entries, HEADER_DEPTH_MAX)?)
                }
            };
            properties.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// `room` is how many levels of tables and arrays may still follow.
    fn table(&mut self, entries: &[u8], room: usize) -> Result<Map<String, Value>, CutOff> {
        let mut cursor = Cursor::new(entries);
        let mut table = Map::new();
        while !cursor.rest().is_empty() {
            let name = cursor.short().ok_or(CutOff)?;
            let name = self.text("a header name", name);
            let value = self.value(&mut cursor, room)?;
            table.insert(name, value);
        }
        Ok(table)
    }

    fn array(&mut self, values: &[u8], room: usize) -> Result<Value, CutOff> {
        let mut cursor = Cursor::new(values);
        let mut array = Vec::new();
        while !cursor.rest().is_empty() {
            array.push(self.value(&mut cursor, room)?);
        }
        Ok(Value::Array(array))
    }

    fn value(&mut self, cursor: &mut Cursor<'_>, room: usize) -> Result<Value, CutOff> {
        let kind = cursor.u8().ok_or(CutOff)?;
        let value = match kind {
            b't' => cursor.u8().map(|byte| json!(byte != 0)),
            b'b' => cursor.array().map(|bytes| json!(i8::from_be_bytes(bytes))),
            b'B' => cursor.array().map(|bytes| json!(u8::from_be_bytes(bytes))),
            b's' | b'U' => cursor.array().map(|bytes| json!(i16::from_be_bytes(bytes))),
            b'u' => cursor.u16().map(|number| json!(number)),
            b'I' => cursor.array().map(|bytes| json!(i32::from_be_bytes(bytes))),
            b'i' => cursor.u32().map(|number| json!(number)),
            b'l' | b'L' => cursor.array().map(|bytes| json!(i64::from_be_bytes(bytes))),
            b'f' => cursor.array().map(|bytes| json!(f32::from_be_bytes(bytes))),
            b'd' => cursor.array().map(|bytes| json!(f64::from_be_bytes(bytes))),
            b'D' => cursor
                .u8()
                .zip(cursor.u32())
                .map(|(scale, value)| json!({ "scale": scale, "value": value })),
            b'T' => cursor.u64().map(|seconds| json!(seconds)),
            // Long strings may be any bytes.
            b'S' | b'x' => cursor.long().map(|bytes| json!(escape(bytes))),
            b'V' => Some(Value::Null),
            b'A' | b'F' => {
                let inner = cursor.long().ok_or(CutOff)?;
                let Some(room) = room.checked_sub(1) else {
                    self.defect(format!("headers nest deeper than {HEADER_DEPTH_MAX} levels"));
                    return Ok(json!("(nested too deep)"));
                };
                return if kind == b'A' {
                    self.array(inner, room)
                } else {
                    self.table(inner, room).map(Value::Object)
                };
            }
            _ => None,
        };
        value.ok_or(CutOff)
    }

    fn text(&mut self, name: &str, bytes: &[u8]) -> String {
        let text = escape(bytes);
        if std::str::from_utf8(bytes).is_err() {
            self.defect(format!("{name} is not UTF-8: {text}"));
        }
        text
    }

    fn defect(&mut self, defect: String) {
        if self.defects.len() < DEFECTS_MAX && !self.defects.contains(&defect) {
            self.defects.push(defect);
        }
    }
}

/// Bytes that are read from the front; `None` when they do not suffice.
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A short string.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let count = self.u8()?;
        self.take(usize::from(count))
    }

    /// A long string, or the entries of a table or array.
    fn long(&mut self) -> Option<&'a [u8]> {
        let count = self.u32()?;
        self.take(usize::try_from(count).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::parse_properties;
    use proptest::prelude::*;

    use super::super::method::{long, short};
    use super::super::parse_deliver;
    use super::*;

    fn message(flags: u16, properties: &[&[u8]]) -> RawMessage {
        let class_weight_and_size = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let flags = flags.to_be_bytes();
        let header = [&class_weight_and_size[..], &flags, &properties.concat()].concat();
        RawMessage { header, ..RawMessage::default() }
    }

    fn lapin_parses(header: &[u8]) -> bool {
        parse_properties(&header[12..]).is_ok_and(|(rest, _)| rest.is_empty())
    }

    #[test]
    fn what_can_be_read_is_read_and_what_cannot_is_named() {
        let entries = [
            &short(b"n\xffame")[..],
            b"S",
            &long(b"\x1b\xff"),
            &short(b"list"),
            b"A",
            &long(b"t\x01V"),
        ];
        let table = long(&entries.concat());
        let found = contents(&message(
            1 << 15 | 1 << 13 | 1 << 7,
            &[&short(b"text/plain"), &table, &short(b"\xff\xfe")],
        ));
        let expected = json!({
            "content-type": "text/plain",
            "headers": { "n\\xffame": "\\u{1b}\\xff", "list": [true, null] },
            "message-id": "\\xff\\xfe",
        });
        assert_eq!(Value::Object(found.properties), expected);
        assert_eq!(
            found.defects,
            ["a header name is not UTF-8: n\\xffame", "message-id is not UTF-8: \\xff\\xfe"]
        );
    }

    #[test]
    fn headers_nested_by_the_thousand_are_a_defect_and_no_overflow() {
        let mut entry = short(b"deep");
        for level in (0..20_000_u32).rev() {
            entry.push(b'A');
            entry.extend((5 * level).to_be_bytes());
        }
        let found = contents(&message(1 << 13, &[&long(&entry)]));
        assert_eq!(found.defects, ["headers nest deeper than 32 levels"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(header: Vec<u8>, deliver: Vec<u8>) {
            let mut message = parse_deliver(&deliver).unwrap_or_default();
            message.header = header;
            contents(&message);
        }

        #[test]
        fn what_is_called_readable_is_what_lapin_parses(
            flags: u16,
            kinds in proptest::collection::vec(prop_oneof![
                Just(Vec::new()), Just(short(b"ok")), Just(short(b"\xff")), Just(vec![2]), Just(vec![0; 8]),
                Just(long(&[])), Just(long(b"\x01kV")), Just(long(b"\x01kA\0\0\0\x02t\x01")),
                Just(long(b"\x01kF\0\0\0\x03\x01kV")), Just(long(b"\x01\xffV")), Just(long(b"\x01k?")),
                proptest::collection::vec(any::<u8>(), 0..12),
            ], 0..8),
        ) {
            let parts: Vec<&[u8]> = kinds.iter().map(Vec::as_slice).collect();
            let message = message(flags, &parts);
            let readable = contents(&message).defects.is_empty();
            prop_assert_eq!(readable, lapin_parses(&message.header));
        }

        #[test]
        fn what_is_called_readable_of_a_table_is_what_lapin_parses(
            entries in proptest::collection::vec((
                prop_oneof![Just(short(b"k")), Just(short(b"\xc3")), Just(short(b""))],
                prop_oneof![
                    Just(b"t\x01".to_vec()), Just(b"b\x01".to_vec()), Just(b"s\x01\x02".to_vec()),
                    Just(b"U\x01\x02".to_vec()), Just(b"I\0\0\0\x01".to_vec()), Just(b"l\0\0\0\0\0\0\0\x01".to_vec()),
                    Just(b"L\0\0\0\0\0\0\0\x01".to_vec()), Just(b"D\x01\0\0\0\x01".to_vec()),
                    Just(b"d\x7f\xf0\0\0\0\0\0\x01".to_vec()), Just(b"x\0\0\0\x01\xff".to_vec()),
                    Just(b"S\0\0\0\x01\xff".to_vec()), Just(b"S\0\0\0\x09\xff".to_vec()), Just(b"V".to_vec()),
                    Just(b"A\0\0\0\x01t".to_vec()), Just(b"F\0\0\0\x03\x01aV".to_vec()), Just(b"Z".to_vec()),
                ],
            ), 0..6),
        ) {
            let entries: Vec<u8> = entries.into_iter().flat_map(|(name, value)| [name, value].concat()).collect();
            let message = message(1 << 13, &[&long(&entries)]);
            let readable = contents(&message).defects.is_empty();
            prop_assert_eq!(readable, lapin_parses(&message.header));
        }
    }
}
