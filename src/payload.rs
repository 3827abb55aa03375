//! From a message's bytes to the type a handler takes.
//!
//! JSON unless the content type or the queue's options say postcard; [`Body`] is the raw bytes. A body that
//! does not decode is permanent: the message is dead-lettered on its first attempt.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::message::Message;

/// How a body is decoded into a handler's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Postcard if the content type says so (`application/postcard`, `application/x-postcard`,
    /// `application/vnd.postcard`), JSON otherwise (default).
    #[default]
    ByContentType,
    /// JSON whatever the content type says.
    Json,
    /// Postcard whatever the content type says.
    Postcard,
}

/// The body as it came, for handlers that decode for themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(pub Bytes);

/// A body does not decode into the type that the handler takes.
#[derive(Debug, thiserror::Error)]
#[error("body of {body_bytes} bytes is not a valid {type_name} in {codec}")]
pub struct DecodeError {
    body_bytes: usize,
    type_name: &'static str,
    codec: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A type that a handler can take; every `serde` type that owns its data is one, and so is [`Body`].
pub trait FromMessage: Sized {
    /// Decodes the message's body.
    ///
    /// # Errors
    ///
    /// If the body is not a valid value of this type: the message is dead-lettered as `decode`.
    fn from_message(message: &Message, codec: Codec) -> Result<Self, DecodeError>;
}

impl FromMessage for Body {
    fn from_message(message: &Message, _: Codec) -> Result<Self, DecodeError> {
        Ok(Self(message.body.clone()))
    }
}

impl<T: DeserializeOwned> FromMessage for T {
    fn from_message(message: &Message, codec: Codec) -> Result<Self, DecodeError> {
        let error = |codec, source| DecodeError {
            body_bytes: message.body.len(),
            type_name: std::any::type_name::<T>(),
            codec,
            source,
        };
        let postcard = match codec {
            Codec::Json => false,
            Codec::Postcard => true,
            Codec::ByContentType => is_postcard(message.properties.content_type.as_deref()),
        };
        if postcard {
            postcard::from_bytes(&message.body).map_err(|source| error("postcard", source.into()))
        } else {
            serde_json::from_slice(&message.body).map_err(|source| error("JSON", source.into()))
        }
    }
}

fn is_postcard(content_type: Option<&str>) -> bool {
    let mime = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    ["application/postcard", "application/x-postcard", "application/vnd.postcard"]
        .iter()
        .any(|postcard| mime.eq_ignore_ascii_case(postcard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;

    fn message(content_type: &str, body: &[u8]) -> Message {
        Message {
            properties: Properties {
                content_type: Some(content_type.to_owned()),
                ..Properties::default()
            },
            body: Bytes::copy_from_slice(body),
            ..Message::default()
        }
    }

    #[test]
    fn the_content_type_chooses_the_codec() {
        let json = message("text/plain", b"[1,\"a\"]");
        let postcard = message("application/x-postcard; v=1", &[2, 1, b'a']);
        for message in [&json, &postcard] {
            let decoded = <(i32, String)>::from_message(message, Codec::ByContentType);
            assert_eq!(decoded.ok(), Some((1, "a".to_owned())));
        }
        assert!(<(i32, String)>::from_message(&json, Codec::Postcard).is_err());
        assert!(<(i32, String)>::from_message(&postcard, Codec::Json).is_err());
    }

    #[test]
    fn a_raw_body_is_any_bytes() {
        let body = Body::from_message(&message("application/json", b"\xff"), Codec::Json);
        assert_eq!(body.ok(), Some(Body(Bytes::from_static(b"\xff"))));
    }

    #[test]
    fn json_nested_by_the_thousand_is_an_error_and_no_overflow() {
        let deep = "[".repeat(100_000);
        let decoded = serde_json::Value::from_message(&message("", deep.as_bytes()), Codec::Json);
        assert!(decoded.is_err());
    }
}
