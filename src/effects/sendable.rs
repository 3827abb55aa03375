//! What AMQP can carry: found before the commit, as a message that can never be sent would hold up its key for ever.
//!
//! Pure. A connection may allow less still; what only that refuses is found when it is published.

use crate::message::{HEADER_DEPTH_MAX, HeaderValue, Headers, Message};

/// Longest short string of AMQP 0-9-1: names, and all texts among the properties.
pub(super) const SHORT_BYTES_MAX: usize = 255;

/// Most bytes of headers: with the properties they fit the frame of 128 KiB that RabbitMQ and its clients agree on.
const HEADERS_BYTES_MAX: usize = 120 * 1024;

/// What a message costs beside its texts, its headers and its body.
const OVERHEAD_BYTES: usize = 64;

/// Bytes of the whole message, or why it can never be sent.
pub(super) fn bytes(message: &Message) -> Result<usize, String> {
    let properties = &message.properties;
    let mut bytes = OVERHEAD_BYTES + message.body.len();
    let names = [("exchange", &message.exchange), ("routing key", &message.routing_key)];
    let texts = [
        ("content-type", &properties.content_type),
        ("content-encoding", &properties.content_encoding),
        ("correlation-id", &properties.correlation_id),
        ("reply-to", &properties.reply_to),
        ("expiration", &properties.expiration),
        ("type", &properties.kind),
        ("user-id", &properties.user_id),
        ("app-id", &properties.app_id),
    ];
    let texts = texts.iter().filter_map(|(what, text)| Some((*what, text.as_ref()?)));
    for (what, text) in names.into_iter().chain(texts) {
        bytes += short(what, text)?;
    }
    if let Some(text) = &properties.expiration
        && text.parse::<u32>().is_err()
    {
        return Err(format!("expiration {text:?} is not a number of milliseconds"));
    }
    let headers = table(&properties.headers, HEADER_DEPTH_MAX)?;
    if headers > HEADERS_BYTES_MAX {
        return Err(format!("headers have {headers} bytes, the limit is {HEADERS_BYTES_MAX}"));
    }
    Ok(bytes + headers)
}

fn short(what: &str, text: &str) -> Result<usize, String> {
    if text.len() > SHORT_BYTES_MAX {
        return Err(format!("{what} has {} bytes, AMQP allows {SHORT_BYTES_MAX}", text.len()));
    }
    Ok(1 + text.len())
}

/// `room` is how many levels of tables and arrays may still follow.
fn table(headers: &Headers, room: usize) -> Result<usize, String> {
    headers.iter().map(|(name, of)| Ok(short("header name", name)? + value(of, room)?)).sum()
}

fn value(from: &HeaderValue, room: usize) -> Result<usize, String> {
    let nested = matches!(from, HeaderValue::Array(_) | HeaderValue::Table(_));
    let Some(room) = room.checked_sub(usize::from(nested)) else {
        return Err(format!("headers nest deeper than {HEADER_DEPTH_MAX} levels"));
    };
    // The type and the longest value of a fixed size.
    let fixed = 1 + 8;
    match from {
        HeaderValue::Bytes(bytes) => Ok(fixed + bytes.len()),
        HeaderValue::Array(values) => {
            values.iter().map(|of| value(of, room)).sum::<Result<usize, _>>().map(|of| of + fixed)
        }
        HeaderValue::Table(values) => table(values, room).map(|of| of + fixed),
        HeaderValue::UInt(number) if i64::try_from(*number).is_err() => {
            Err(format!("header value {number} is over 2^63"))
        }
        _ => Ok(fixed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Message)) -> String {
        let mut message = Message::default();
        change(&mut message);
        bytes(&message).expect_err("it cannot be sent")
    }

    #[test]
    fn what_no_broker_takes_is_found_with_the_reason() {
        let long = || Some("x".repeat(256));
        let text = refusal(|m| m.properties.correlation_id = long());
        assert_eq!(text, "correlation-id has 256 bytes, AMQP allows 255");
        let text = refusal(|m| m.properties.expiration = Some("10s".to_owned()));
        assert_eq!(text, r#"expiration "10s" is not a number of milliseconds"#);
        let big = HeaderValue::from("x".repeat(121 * 1024));
        let text = refusal(|m| drop(m.properties.headers.insert("h".to_owned(), big)));
        assert!(text.contains("the limit is 122880"), "{text}");
        let deep = (0..33).fold(HeaderValue::Void, |value, _| HeaderValue::Array(vec![value]));
        let text = refusal(|m| drop(m.properties.headers.insert("h".to_owned(), deep)));
        assert!(text.contains("deeper than 32"), "{text}");
        let text = refusal(|m| {
            m.properties.headers.insert("h".to_owned(), HeaderValue::UInt(u64::MAX));
        });
        assert!(text.contains("over 2^63"), "{text}");
        let text = refusal(|m| {
            m.properties.headers.insert("x".repeat(256), HeaderValue::Void);
        });
        assert!(text.contains("header name has 256 bytes"), "{text}");
    }

    #[test]
    fn all_of_a_message_counts() {
        let mut message = Message { body: vec![0; 100].into(), ..Message::default() };
        message.properties.headers.insert("name".to_owned(), HeaderValue::from("x".repeat(1000)));
        let counted = bytes(&message).expect("it can be sent");
        assert!((1100..1300).contains(&counted), "{counted}");
    }
}
