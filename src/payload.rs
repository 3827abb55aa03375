//! From a message's bytes to the type a handler takes, and from values to bytes within a limit.
//!
//! JSON unless the content type or the queue's options say postcard; [`Body`] is the raw bytes. A body that
//! does not decode is permanent: the message is dead-lettered on its first attempt.

use std::any::Any;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

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

/// A result that is bytes already: whoever asked gets it as it is.
///
/// A handler returns it, or `Option<Reply>`, in the place of a value that is encoded by the queue's codec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// MIME type of the body.
    pub content_type: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// A body does not decode into the type that the handler takes.
///
/// Says what is wrong and where, and nothing of what is in the body: it is shown in logs and headers.
#[derive(Debug, thiserror::Error)]
#[error("body of {body_bytes} bytes is not a valid {type_name} in {codec}: {problem}")]
pub struct DecodeError {
    body_bytes: usize,
    type_name: &'static str,
    codec: &'static str,
    problem: String,
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
        let error = |codec, problem| DecodeError {
            body_bytes: message.body.len(),
            type_name: std::any::type_name::<T>(),
            codec,
            problem,
        };
        let postcard = match codec {
            Codec::Json => false,
            Codec::Postcard => true,
            Codec::ByContentType => is_postcard(message.properties.content_type.as_deref()),
        };
        if postcard {
            postcard::from_bytes(&message.body)
                .map_err(|source| error("postcard", source.to_string()))
        } else {
            serde_json::from_slice(&message.body)
                .map_err(|source| error("JSON", json_problem(&source)))
        }
    }
}

/// What serde_json says, without the values and names of the body that it quotes.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split_once('`'));
    let what = match (error.classify(), missing) {
        // The name is the type's own.
        (Category::Data, Some((field, _))) => &format!("missing field `{field}`"),
        (Category::Data, None) => {
            "a value is of another type or out of range, or a field is unknown"
        }
        (Category::Eof, _) => "it ends too early",
        (Category::Syntax | Category::Io, _) => "it is no JSON",
    };
    format!("{what}, at line {} column {}", error.line(), error.column())
}

/// Why a value was not encoded.
#[derive(Debug)]
pub(crate) enum EncodeError {
    /// It is over the limit; nothing beyond the limit was encoded.
    TooLarge,
    Unencodable(Box<dyn std::error::Error + Send + Sync>),
}

impl Codec {
    /// Encodes a value as this codec's messages are, with their content type.
    pub(crate) fn encode<T: Serialize + ?Sized>(
        self,
        value: &T,
        bytes_max: usize,
    ) -> Result<(Vec<u8>, &'static str), EncodeError> {
        match self {
            Self::ByContentType | Self::Json => {
                Ok((encode_json(value, bytes_max)?, "application/json"))
            }
            Self::Postcard => Ok((encode_postcard(value, bytes_max)?, "application/postcard")),
        }
    }
}

/// What is kept of a handler's result: nothing of `()`, a [`Reply`] as it is, of all others their encoding.
pub(crate) fn encode_result<R: Serialize + 'static>(
    result: R,
    codec: Codec,
    bytes_max: usize,
) -> Result<Option<Reply>, EncodeError> {
    let any: &dyn Any = &result;
    let raw = match (any.downcast_ref::<Reply>(), any.downcast_ref::<Option<Reply>>()) {
        (Some(reply), _) | (_, Some(Some(reply))) => Some(reply.clone()),
        (_, Some(None)) => return Ok(None),
        (None, None) if any.is::<()>() => return Ok(None),
        (None, None) => None,
    };
    match raw {
        Some(reply) if reply.body.len() > bytes_max => Err(EncodeError::TooLarge),
        Some(reply) => Ok(Some(reply)),
        None => {
            let (body, content_type) = codec.encode(&result, bytes_max)?;
            Ok(Some(Reply { content_type: Some(content_type.to_owned()), body: body.into() }))
        }
    }
}

pub(crate) fn encode_json<T: Serialize + ?Sized>(
    value: &T,
    bytes_max: usize,
) -> Result<Vec<u8>, EncodeError> {
    let mut bounded = Bounded::new(bytes_max);
    let encoded = serde_json::to_writer(&mut bounded, value);
    bounded.finish(encoded)
}

pub(crate) fn encode_postcard<T: Serialize + ?Sized>(
    value: &T,
    bytes_max: usize,
) -> Result<Vec<u8>, EncodeError> {
    let mut bounded = Bounded::new(bytes_max);
    let encoded = postcard::to_io(value, &mut bounded).map(drop);
    bounded.finish(encoded)
}

/// Takes bytes up to a limit, so that a value of gigabytes is refused before it is in memory twice.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    is_over: bool,
}

impl Bounded {
    const fn new(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max, is_over: false }
    }

    fn finish<E>(self, encoded: Result<(), E>) -> Result<Vec<u8>, EncodeError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match encoded {
            Ok(()) => Ok(self.bytes),
            Err(_) if self.is_over => Err(EncodeError::TooLarge),
            Err(error) => Err(EncodeError::Unencodable(error.into())),
        }
    }
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.bytes_max - self.bytes.len() {
            self.is_over = true;
            return Err(std::io::Error::other("over the limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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
    fn of_a_result_is_kept_what_it_says() {
        let json = |body: &'static str| Reply {
            content_type: Some("application/json".to_owned()),
            body: body.into(),
        };
        let raw = Reply { content_type: None, body: Bytes::from_static(b"\xff") };
        assert_eq!(encode_result((), Codec::Json, 9).expect("small"), None);
        assert_eq!(encode_result(None::<Reply>, Codec::Json, 9).expect("small"), None);
        assert_eq!(encode_result(7, Codec::Json, 9).expect("small"), Some(json("7")));
        assert_eq!(encode_result(raw.clone(), Codec::Json, 1).expect("fits"), Some(raw.clone()));
        assert!(matches!(encode_result(Some(raw), Codec::Json, 0), Err(EncodeError::TooLarge)));
    }

    /// The error is in logs, in health and in the dead letter's headers.
    #[test]
    fn what_is_wrong_with_a_body_is_told_without_what_is_in_it() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Charge {
            #[expect(dead_code, reason = "decoded only")]
            cents: i64,
        }
        let told = |body: &str, codec| {
            let error = Charge::from_message(&message("", body.as_bytes()), codec);
            let text = crate::handler::error_chain(&error.expect_err("it is wrong"), 1000);
            assert!(!text.contains("4111"), "{text}");
            text.split_once("JSON: ").map(|(_, problem)| problem.to_owned()).unwrap_or_default()
        };
        let wrong = "a value is of another type or out of range, or a field is unknown";
        let at = |what: &str, column: usize| format!("{what}, at line 1 column {column}");
        assert_eq!(told("{\"cents\":\"4111\"}", Codec::Json), at(wrong, 15));
        assert_eq!(told("{\"4111\":1}", Codec::Json), at(wrong, 7));
        assert_eq!(told("{}", Codec::Json), at("missing field `cents`", 2));
        assert_eq!(told("{4111", Codec::Json), at("it is no JSON", 2));
        assert_eq!(told("{\"cents\":4111", Codec::Json), at("it ends too early", 13));
        assert_eq!(told("", Codec::Postcard), "");
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
