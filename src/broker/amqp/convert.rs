//! lapin's messages and header values into ours.
//!
//! Every AMQP type has a place; strings stay raw bytes. Never recurses deeper than [`HEADER_DEPTH_MAX`]: what nests
//! deeper becomes [`HeaderValue::Void`] and a defect that names the header. The body is moved, not copied.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::broker::Delivery;
use crate::message::{HEADER_DEPTH_MAX, HeaderValue, Headers, Message, Properties, escape};

/// Stack in which the deepest headers of one frame are dropped, in a debug build too, with room to spare.
const DISCARD_STACK_BYTES: usize = 64 * 1024 * 1024;

/// A delivery of lapin's as ours.
pub(super) fn delivery(from: lapin::message::Delivery) -> Delivery {
    let (properties, deep) = properties(&from.properties);
    if deep.is_some() {
        discard(from.properties);
    }
    let defect = deep.map(|name| {
        let name = escape(name.as_bytes());
        format!("header \"{name}\" nests deeper than {HEADER_DEPTH_MAX} levels")
    });
    Delivery {
        tag: from.delivery_tag,
        redelivered: from.redelivered,
        message: Arc::new(Message {
            exchange: from.exchange.into(),
            routing_key: from.routing_key.into(),
            properties,
            body: Bytes::from(from.data),
        }),
        defect,
    }
}

/// The properties, and the name of a header that was cut off for its depth.
pub(super) fn properties(from: &BasicProperties) -> (Properties, Option<String>) {
    let mut deep = None;
    let mut headers = Headers::new();
    for (name, value) in from.headers().iter().flatten() {
        let mut cut = Cut(false);
        let value = header_value(value, HEADER_DEPTH_MAX, &mut cut);
        if cut.0 {
            deep.get_or_insert_with(|| name.as_str().to_owned());
        }
        headers.insert(name.as_str().to_owned(), value);
    }
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    let properties = Properties {
        content_type: text(from.content_type()),
        content_encoding: text(from.content_encoding()),
        headers,
        delivery_mode: *from.delivery_mode(),
        priority: *from.priority(),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        expiration: text(from.expiration()),
        message_id: text(from.message_id()),
        timestamp: *from.timestamp(),
        kind: text(from.kind()),
        user_id: text(from.user_id()),
        app_id: text(from.app_id()),
    };
    (properties, deep)
}

/// Drops deep headers where there is room for it: 26,000 levels of tables take 8 to 16 MiB, we have any thread's.
fn discard(properties: BasicProperties) {
    // If there is no thread to be had it leaks, which is better than to overflow.
    let properties = ManuallyDrop::new(properties);
    let roomy = std::thread::Builder::new().stack_size(DISCARD_STACK_BYTES);
    if let Ok(discarding) = roomy.spawn(move || drop(ManuallyDrop::into_inner(properties))) {
        // A drop of plain values does not panic.
        let _ = discarding.join();
    }
}

/// Whether something was nested too deep to be kept.
struct Cut(bool);

/// `room` is how many levels of tables and arrays may still follow.
fn header_value(from: &AMQPValue, room: usize, cut: &mut Cut) -> HeaderValue {
    match from {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::ShortShortUInt(value) => HeaderValue::UInt(u64::from(*value)),
        AMQPValue::ShortInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::ShortUInt(value) => HeaderValue::UInt(u64::from(*value)),
        AMQPValue::LongInt(value) => HeaderValue::Int(i64::from(*value)),
        AMQPValue::LongUInt(value) => HeaderValue::UInt(u64::from(*value)),
        AMQPValue::LongLongInt(value) => HeaderValue::Int(*value),
        AMQPValue::Float(value) => HeaderValue::Float(f64::from(*value)),
        AMQPValue::Double(value) => HeaderValue::Float(*value),
        AMQPValue::DecimalValue(value) => {
            HeaderValue::Decimal { scale: value.scale, value: value.value }
        }
        AMQPValue::ShortString(text) => raw(text.as_str().as_bytes()),
        AMQPValue::LongString(text) => raw(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => raw(bytes.as_slice()),
        AMQPValue::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if room == 0 => {
            cut.0 = true;
            HeaderValue::Void
        }
        AMQPValue::FieldArray(values) => {
            let values = values.as_slice().iter();
            HeaderValue::Array(values.map(|value| header_value(value, room - 1, cut)).collect())
        }
        AMQPValue::FieldTable(values) => HeaderValue::Table(table(values, room - 1, cut)),
        AMQPValue::Void => HeaderValue::Void,
    }
}

fn table(from: &FieldTable, room: usize, cut: &mut Cut) -> Headers {
    let entries = from.inner().iter();
    entries
        .map(|(name, value)| (name.as_str().to_owned(), header_value(value, room, cut)))
        .collect()
}

fn raw(bytes: &[u8]) -> HeaderValue {
    HeaderValue::Bytes(Bytes::copy_from_slice(bytes))
}

#[cfg(test)]
mod tests {
    use lapin::types::{DecimalValue, FieldArray};

    use super::*;

    fn nested(levels: usize) -> AMQPValue {
        (0..levels).fold(AMQPValue::Boolean(true), |value, level| {
            if level % 2 == 0 {
                AMQPValue::FieldArray(vec![value].into())
            } else {
                let mut table = FieldTable::default();
                table.insert("k".into(), value);
                AMQPValue::FieldTable(table)
            }
        })
    }

    fn with_header(value: AMQPValue) -> BasicProperties {
        let mut headers = FieldTable::default();
        headers.insert("h\u{1b}".into(), value);
        BasicProperties::default().with_headers(headers)
    }

    #[test]
    fn every_type_has_a_place_and_strings_stay_raw() {
        let values = vec![
            (AMQPValue::ShortShortInt(-1), HeaderValue::Int(-1)),
            (AMQPValue::ShortUInt(7), HeaderValue::UInt(7)),
            (AMQPValue::LongLongInt(i64::MIN), HeaderValue::Int(i64::MIN)),
            (AMQPValue::Float(0.5), HeaderValue::Float(0.5)),
            (
                AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
                HeaderValue::Decimal { scale: 2, value: 314 },
            ),
            (AMQPValue::LongString(vec![0xff, 0].into()), raw(&[0xff, 0])),
            (AMQPValue::ByteArray(vec![1].into()), raw(&[1])),
            (AMQPValue::Timestamp(9), HeaderValue::Timestamp(9)),
            (AMQPValue::Void, HeaderValue::Void),
        ];
        let (from, to): (Vec<_>, Vec<_>) = values.into_iter().unzip();
        let from = with_header(AMQPValue::FieldArray(FieldArray::from(from)));
        let (properties, deep) = properties(&from);
        assert_eq!(properties.headers["h\u{1b}"], HeaderValue::Array(to));
        assert_eq!(deep, None);
    }

    #[test]
    fn what_nests_deeper_than_the_limit_is_cut_and_named() {
        let (_, deep) = properties(&with_header(nested(HEADER_DEPTH_MAX)));
        assert_eq!(deep, None);
        let (_, deep) = properties(&with_header(nested(HEADER_DEPTH_MAX + 1)));
        assert_eq!(deep.as_deref(), Some("h\u{1b}"));
    }

    #[test]
    fn headers_as_deep_as_a_frame_allows_need_little_stack_here() {
        let deep = with_header(nested(26_000));
        let small = std::thread::Builder::new().stack_size(1024 * 1024);
        let converting = small.spawn(move || {
            let (_, cut) = properties(&deep);
            discard(deep);
            cut
        });
        let cut = converting.expect("a thread").join().expect("no panic");
        assert_eq!(cut.as_deref(), Some("h\u{1b}"));
    }
}
