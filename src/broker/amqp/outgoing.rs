//! Our messages into lapin's, or why the broker would never take them.
//!
//! Whatever would close the channel or the connection is found here, because it takes a whole group of innocent
//! messages with it, at each try: strings and headers that do not fit, an expiration that is no number, the
//! `user-id` of somebody else.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};

use crate::message::{HEADER_DEPTH_MAX, HeaderValue, Headers, Message};

/// Header that carries the `user-id` of a message that is published on by another user.
///
/// RabbitMQ closes the channel for a `user-id` that is not the connection's own.
const USER_ID_HEADER: &str = "x-onceward-user-id";

/// Bytes of a content header frame besides the properties: frame header and end, class, weight, size, flags.
const FRAME_BYTES: usize = 22;

/// What the connection allows.
pub(super) struct Limits<'a> {
    pub(super) frame_bytes_max: usize,
    pub(super) user: &'a str,
}

/// A message as lapin takes it.
pub(super) struct Outgoing {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
}

/// Translates the message, or says why it cannot be sent.
pub(super) fn outgoing(from: &Message, limits: &Limits<'_>) -> Result<Outgoing, String> {
    let properties = &from.properties;
    let mut writer = Writer::default();
    let mut headers = writer.table(&properties.headers, HEADER_DEPTH_MAX)?;
    let mut to = BasicProperties::default().with_delivery_mode(2);
    if let Some(user) = &properties.user_id {
        if user == limits.user {
            to = to.with_user_id(writer.short("user-id", user)?);
        } else {
            let value = writer.long(user.as_bytes());
            headers.insert(writer.short("header name", USER_ID_HEADER)?, value);
        }
    }
    if let Some(text) = &properties.expiration {
        if text.parse::<u32>().is_err() {
            return Err(format!("expiration {text:?} is not a number of milliseconds"));
        }
        to = to.with_expiration(writer.short("expiration", text)?);
    }
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&str, &Option<String>, Setter); 7] = [
        ("content-type", &properties.content_type, BasicProperties::with_content_type),
        ("content-encoding", &properties.content_encoding, BasicProperties::with_content_encoding),
        ("correlation-id", &properties.correlation_id, BasicProperties::with_correlation_id),
        ("reply-to", &properties.reply_to, BasicProperties::with_reply_to),
        ("message-id", &properties.message_id, BasicProperties::with_message_id),
        ("type", &properties.kind, BasicProperties::with_type),
        ("app-id", &properties.app_id, BasicProperties::with_app_id),
    ];
    for (name, text, set) in texts {
        if let Some(text) = text {
            to = set(to, writer.short(name, text)?);
        }
    }
    if let Some(priority) = properties.priority {
        to = to.with_priority(priority);
    }
    if let Some(seconds) = properties.timestamp {
        to = to.with_timestamp(seconds);
    }
    if !headers.inner().is_empty() {
        to = to.with_headers(headers);
    }
    // Both numbers, delivery mode and the table's length are not counted by the writer.
    let bytes = writer.bytes + FRAME_BYTES + 1 + 1 + 8 + 4;
    if bytes > limits.frame_bytes_max {
        return Err(format!(
            "properties and headers need {bytes} bytes, a frame of the connection has {}",
            limits.frame_bytes_max
        ));
    }
    Ok(Outgoing {
        exchange: writer.short("exchange", &from.exchange)?,
        routing_key: writer.short("routing key", &from.routing_key)?,
        properties: to,
    })
}

/// Translates values and counts the bytes that they take.
#[derive(Default)]
struct Writer {
    bytes: usize,
}

impl Writer {
    fn short(&mut self, what: &str, text: &str) -> Result<ShortString, String> {
        self.bytes += 1 + text.len();
        ShortString::try_new(text)
            .map_err(|_| format!("{what} has {} bytes, AMQP allows 255", text.len()))
    }

    fn long(&mut self, bytes: &[u8]) -> AMQPValue {
        self.bytes += 1 + 4 + bytes.len();
        AMQPValue::LongString(bytes.into())
    }

    /// `room` is how many levels of tables and arrays may still follow.
    fn table(&mut self, from: &Headers, room: usize) -> Result<FieldTable, String> {
        let mut to = FieldTable::default();
        for (name, value) in from {
            let name = self.short("header name", name)?;
            to.insert(name, self.value(value, room)?);
        }
        Ok(to)
    }

    fn value(&mut self, from: &HeaderValue, room: usize) -> Result<AMQPValue, String> {
        let nested = matches!(from, HeaderValue::Array(_) | HeaderValue::Table(_));
        let Some(room) = room.checked_sub(usize::from(nested)) else {
            return Err(format!("headers nest deeper than {HEADER_DEPTH_MAX} levels"));
        };
        if let HeaderValue::Bytes(bytes) = from {
            return Ok(self.long(bytes));
        }
        // The type and the longest value of a fixed size.
        self.bytes += 1 + 8;
        Ok(match from {
            HeaderValue::Void | HeaderValue::Bytes(_) => AMQPValue::Void,
            HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
            HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
            HeaderValue::UInt(value) => AMQPValue::LongLongInt(
                i64::try_from(*value).map_err(|_| format!("header value {value} is over 2^63"))?,
            ),
            HeaderValue::Float(value) => AMQPValue::Double(*value),
            HeaderValue::Decimal { scale, value } => {
                AMQPValue::DecimalValue(DecimalValue { scale: *scale, value: *value })
            }
            HeaderValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
            HeaderValue::Array(values) => {
                let values = values.iter().map(|value| self.value(value, room));
                AMQPValue::FieldArray(values.collect::<Result<Vec<_>, _>>()?.into())
            }
            HeaderValue::Table(values) => AMQPValue::FieldTable(self.table(values, room)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::convert;
    use super::*;

    const LIMITS: Limits<'static> = Limits { frame_bytes_max: 128 * 1024, user: "me" };

    fn refusal(change: impl FnOnce(&mut Message)) -> String {
        let mut message = Message::default();
        change(&mut message);
        outgoing(&message, &LIMITS).err().expect("it cannot be sent")
    }

    #[test]
    fn what_is_sent_comes_back_the_same_but_persistent() {
        let mut message = Message::default();
        let properties = &mut message.properties;
        properties.content_type = Some("text/plain".to_owned());
        properties.kind = Some("order".to_owned());
        properties.message_id = Some("m".to_owned());
        properties.user_id = Some("me".to_owned());
        properties.expiration = Some("1000".to_owned());
        properties.delivery_mode = Some(1);
        properties.priority = Some(3);
        properties.headers.insert("n".to_owned(), HeaderValue::Int(-5));
        properties.headers.insert("s".to_owned(), HeaderValue::from("\u{20ac}"));
        let sent = outgoing(&message, &LIMITS).expect("it can be sent");
        message.properties.delivery_mode = Some(2);
        assert_eq!(convert::properties(&sent.properties), (message.properties, None));
    }

    #[test]
    fn what_would_close_the_channel_is_refused_with_the_reason() {
        let long = || "x".repeat(256);
        assert!(refusal(|m| m.routing_key = long()).contains("routing key has 256 bytes"));
        assert!(refusal(|m| m.properties.message_id = Some(long())).contains("message-id has 256"));
        assert!(refusal(|m| m.properties.expiration = Some("1s".to_owned())).contains("\"1s\""));
        let big = HeaderValue::from("x".repeat(128 * 1024));
        let text = refusal(|m| drop(m.properties.headers.insert("h".to_owned(), big)));
        assert!(text.contains("a frame of the connection has 131072"), "{text}");
        let deep = (0..33).fold(HeaderValue::Void, |value, _| HeaderValue::Array(vec![value]));
        let text = refusal(|m| drop(m.properties.headers.insert("h".to_owned(), deep)));
        assert!(text.contains("deeper than 32"), "{text}");
    }

    #[test]
    fn the_user_id_of_somebody_else_becomes_a_header() {
        let mut message = Message::default();
        message.properties.user_id = Some("producer".to_owned());
        let sent = outgoing(&message, &LIMITS).expect("it can be sent");
        let (properties, _) = convert::properties(&sent.properties);
        assert_eq!(properties.user_id, None);
        assert_eq!(properties.headers[USER_ID_HEADER].as_str(), Some("producer"));
    }
}
