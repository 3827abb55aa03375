//! Reads id, scope and key of one message by the rules of its queue.
//!
//! Pure; what is absent or empty is passed over, what has a wrong type or length is an error and never passed over,
//! or a producer's fault would make ids of a lesser source. Hashes nothing but content that stands in for an id.

use std::borrow::Cow;

use bytes::Bytes;

use super::hash::{ScopeName, content_id};
use super::{ID_BYTES_MAX, IdentityRules, KEY_BYTES_MAX, OnMissingId, SEQUENCE_MAX, Scope, Source};
use crate::message::{HeaderValue, Key, Message, MessageId, cut, escape};

/// What the rules make of one message.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Id and scope, or why the message has none.
    pub(crate) id: Result<(MessageId, ScopeName), IdError>,
    /// The parts of the id if it is a numbered one.
    pub(crate) sequence: Option<SequenceParts>,
    /// Ordering key; `None` is a message that is its own key.
    pub(crate) key: Result<Option<Key>, IdError>,
}

/// A producer and its number of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SequenceParts {
    pub(crate) producer: Bytes,
    /// At most [`SEQUENCE_MAX`].
    pub(crate) number: u64,
}

impl SequenceParts {
    /// The number has no slash, so the last one parts the two again.
    fn id(&self) -> Vec<u8> {
        [&self.producer[..], b"/", self.number.to_string().as_bytes()].concat()
    }
}

/// Why a message cannot be told apart from others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdError {
    #[error("no id: none of {tried} is present and not empty")]
    Missing { tried: String },
    #[error("{what} has type {found}; a string or an integer is needed")]
    Type { what: String, found: &'static str },
    #[error("{what} has {bytes} bytes, the limit is {max}")]
    TooLong { what: String, bytes: usize, max: usize },
    #[error("{what} is \"{shown}\"; an integer from 0 to {SEQUENCE_MAX} is needed")]
    Sequence { what: String, shown: String },
}

/// Resolves ids and keys for one queue.
#[derive(Clone, Debug)]
pub(crate) struct Resolver {
    rules: IdentityRules,
    queue: ScopeName,
    reads_body: bool,
}

impl Resolver {
    pub(crate) fn new(rules: IdentityRules, queue: &str) -> Self {
        let reads_body = rules.id.iter().chain(&rules.key).any(reads_body);
        Self { rules, queue: ScopeName::queue(queue), reads_body }
    }

    pub(crate) fn resolve(&self, message: &Message) -> Resolved {
        let body = if self.reads_body { json_body(message) } else { None };
        let body = body.as_ref();
        let key = first_present(&self.rules.key, message, body, Role::Key)
            .map(|key| key.map(|found| Key::new(&found.bytes)));
        match self.id(message, body) {
            Ok((id, scope, sequence)) => Resolved { id: Ok((id, scope)), sequence, key },
            Err(error) => Resolved { id: Err(error), sequence: None, key },
        }
    }

    fn id(
        &self,
        message: &Message,
        body: Option<&serde_json::Value>,
    ) -> Result<(MessageId, ScopeName, Option<SequenceParts>), IdError> {
        let (id, sequence) = match first_present(&self.rules.id, message, body, Role::Id)? {
            Some(found) => (MessageId::new(&found.bytes), found.sequence),
            None => (self.missing(message)?, None),
        };
        Ok((id, self.scope(message)?, sequence))
    }

    fn missing(&self, message: &Message) -> Result<MessageId, IdError> {
        match self.rules.on_missing_id {
            OnMissingId::Fingerprint => Ok(content_id(message)),
            OnMissingId::DeadLetter => {
                let tried: Vec<String> = self.rules.id.iter().map(ToString::to_string).collect();
                Err(IdError::Missing { tried: tried.join(", ") })
            }
        }
    }

    fn scope(&self, message: &Message) -> Result<ScopeName, IdError> {
        match &self.rules.scope {
            Scope::Queue => Ok(self.queue.clone()),
            Scope::Global => Ok(ScopeName::global()),
            Scope::Header(name) => {
                let source = Source::Header(name.clone());
                match read(&source, message, None, Role::Id)? {
                    Some(tenant) => Ok(ScopeName::tenant(&tenant.bytes)),
                    None => Err(IdError::Missing { tried: format!("{source} (the scope)") }),
                }
            }
        }
    }
}

fn reads_body(source: &Source) -> bool {
    match source {
        Source::Json(_) | Source::CloudEvents => true,
        Source::Sequence { producer, sequence } => reads_body(producer) || reads_body(sequence),
        Source::MessageId | Source::CorrelationId | Source::Header(_) | Source::RoutingKey => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Id,
    Key,
}

/// What is present at a source, borrowed from the message where it lies there as it is.
struct Found<'a> {
    bytes: Cow<'a, [u8]>,
    sequence: Option<SequenceParts>,
}

fn first_present<'a>(
    sources: &[Source],
    message: &'a Message,
    body: Option<&'a serde_json::Value>,
    role: Role,
) -> Result<Option<Found<'a>>, IdError> {
    for source in sources {
        let Some(found) = read(source, message, body, role)? else {
            continue;
        };
        let max = if role == Role::Id { ID_BYTES_MAX } else { KEY_BYTES_MAX };
        let bytes = found.bytes.len();
        if bytes > max {
            return Err(IdError::TooLong { what: source.to_string(), bytes, max });
        }
        return Ok(Some(found));
    }
    Ok(None)
}

/// The value at one source; an empty one counts as absent.
fn read<'a>(
    source: &Source,
    message: &'a Message,
    body: Option<&'a serde_json::Value>,
    role: Role,
) -> Result<Option<Found<'a>>, IdError> {
    let text = |text: &'a Option<String>| text.as_ref().map(|text| Cow::from(text.as_bytes()));
    let value = match source {
        Source::MessageId => text(&message.properties.message_id),
        Source::CorrelationId => text(&message.properties.correlation_id),
        Source::RoutingKey => Some(Cow::from(message.routing_key.as_bytes())),
        Source::Header(name) => match message.properties.headers.get(name) {
            Some(value) => header_bytes(source, value)?,
            None => None,
        },
        Source::Json(pointer) => match body.and_then(|body| body.pointer(pointer)) {
            Some(value) => json_bytes(source, value)?,
            None => None,
        },
        Source::CloudEvents if role == Role::Key => {
            cloudevents_attribute(message, body, "partitionkey")?
        }
        Source::CloudEvents => cloudevents_id(message, body)?,
        Source::Sequence { producer, sequence } => {
            let Some(producer) = read(producer, message, body, role)? else {
                return Ok(None);
            };
            let Some(number) = read(sequence, message, body, role)? else {
                return Ok(None);
            };
            let number = sequence_number(sequence, &number.bytes)?;
            let producer = Bytes::copy_from_slice(&producer.bytes);
            let sequence = SequenceParts { producer, number };
            return Ok(Some(Found { bytes: sequence.id().into(), sequence: Some(sequence) }));
        }
    };
    let value = value.filter(|value| !value.is_empty());
    Ok(value.map(|bytes| Found { bytes, sequence: None }))
}

/// Digits only: the parser of the standard library would take a plus sign too.
fn sequence_number(source: &Source, bytes: &[u8]) -> Result<u64, IdError> {
    let digits = std::str::from_utf8(bytes).ok().filter(|text| !text.starts_with('+'));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.filter(|number| *number <= SEQUENCE_MAX).ok_or_else(|| {
        let mut shown = escape(bytes);
        cut(&mut shown, 40);
        IdError::Sequence { what: source.to_string(), shown }
    })
}

fn header_bytes<'a>(
    source: &Source,
    value: &'a HeaderValue,
) -> Result<Option<Cow<'a, [u8]>>, IdError> {
    match value {
        HeaderValue::Void => Ok(None),
        HeaderValue::Bytes(bytes) => Ok(Some(Cow::from(&bytes[..]))),
        HeaderValue::Int(number) => Ok(Some(shown(number))),
        HeaderValue::UInt(number) | HeaderValue::Timestamp(number) => Ok(Some(shown(number))),
        other => Err(IdError::Type { what: source.to_string(), found: other.type_name() }),
    }
}

fn json_bytes<'a>(
    source: &Source,
    value: &'a serde_json::Value,
) -> Result<Option<Cow<'a, [u8]>>, IdError> {
    use serde_json::Value;
    let found = match value {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(Cow::from(text.as_bytes()))),
        Value::Bool(truth) => return Ok(Some(shown(truth))),
        Value::Number(number) if !number.is_f64() => return Ok(Some(shown(number))),
        Value::Number(_) => "float",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Err(IdError::Type { what: source.to_string(), found })
}

fn shown<'a>(value: &impl ToString) -> Cow<'a, [u8]> {
    value.to_string().into_bytes().into()
}

/// CloudEvents are unique by source and id together (CloudEvents 1.0.2, "id").
fn cloudevents_id<'a>(
    message: &'a Message,
    body: Option<&'a serde_json::Value>,
) -> Result<Option<Cow<'a, [u8]>>, IdError> {
    let Some(id) = cloudevents_attribute(message, body, "id")? else {
        return Ok(None);
    };
    let Some(origin) = cloudevents_attribute(message, body, "source")? else {
        return Ok(None);
    };
    if id.is_empty() || origin.is_empty() {
        return Ok(None);
    }
    // A line feed cannot occur in a source, which is a URI reference, so the pair stays unambiguous.
    Ok(Some([&origin[..], b"\n", &id[..]].concat().into()))
}

/// Binary mode has attributes in headers `cloudEvents:id` or `cloudEvents_id` (AMQP binding 1.0.2,
/// section 3.1), structured mode in a JSON body of type `application/cloudevents+json`.
fn cloudevents_attribute<'a>(
    message: &'a Message,
    body: Option<&'a serde_json::Value>,
    name: &str,
) -> Result<Option<Cow<'a, [u8]>>, IdError> {
    for prefix in ["cloudEvents:", "cloudEvents_"] {
        let header = format!("{prefix}{name}");
        if let Some(value) = message.properties.headers.get(&header) {
            return header_bytes(&Source::Header(header), value);
        }
    }
    let structured = message
        .properties
        .content_type
        .as_deref()
        .is_some_and(|mime| mime.starts_with("application/cloudevents+json"));
    match body.filter(|_| structured).and_then(|body| body.get(name)) {
        Some(value) => json_bytes(&Source::Json(format!("/{name}")), value),
        None => Ok(None),
    }
}

fn json_body(message: &Message) -> Option<serde_json::Value> {
    serde_json::from_slice(&message.body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;

    fn numbered() -> IdentityRules {
        let header = |name: &str| Source::Header(name.to_owned()).into();
        let sequence = Source::Sequence { producer: header("p"), sequence: header("n") };
        IdentityRules { id: vec![sequence, Source::MessageId], ..IdentityRules::default() }
    }

    fn resolve(rules: IdentityRules, headers: &[(&str, HeaderValue)]) -> Resolved {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let properties = Properties {
            headers: headers.collect(),
            message_id: Some("m".to_owned()),
            ..Properties::default()
        };
        Resolver::new(rules, "q").resolve(&Message { properties, ..Message::default() })
    }

    #[test]
    fn a_numbered_message_is_known_by_producer_and_number() {
        for number in [HeaderValue::Int(7), HeaderValue::UInt(7), "7".into(), "007".into()] {
            let resolved = resolve(numbered(), &[("p", "a/b".into()), ("n", number)]);
            let (id, _) = resolved.id.expect("an id");
            assert_eq!(id.as_bytes(), b"a/b/7");
            let parts = SequenceParts { producer: Bytes::from("a/b"), number: 7 };
            assert_eq!(resolved.sequence, Some(parts));
        }
    }

    #[test]
    fn a_producer_without_a_number_or_a_number_without_a_producer_is_no_id() {
        let headers: [&[(&str, HeaderValue)]; 5] = [
            &[],
            &[("p", "a".into())],
            &[("n", 1.into())],
            &[("p", "".into()), ("n", 1.into())],
            &[("p", "a".into()), ("n", "".into())],
        ];
        for headers in headers {
            let resolved = resolve(numbered(), headers);
            assert_eq!(resolved.id.expect("the next source").0.as_bytes(), b"m");
            assert_eq!(resolved.sequence, None);
        }
    }

    #[test]
    fn what_is_no_number_from_zero_to_the_highest_is_a_bad_id() {
        let number = |value: HeaderValue| {
            let resolved = resolve(numbered(), &[("p", "a".into()), ("n", value)]);
            resolved.id.map(|_| resolved.sequence.expect("a sequence").number)
        };
        for bad in ["-1", "+1", " 1", "1.0", "x", "18446744073709551615", "99999999999999999999"] {
            let error = number(bad.into()).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "header:n is \"{bad}\"; an integer from 0 to 18446744073709551614 is needed"
                )
            );
        }
        assert!(matches!(number(HeaderValue::Int(-1)), Err(IdError::Sequence { .. })));
        assert!(matches!(number(HeaderValue::Float(1.0)), Err(IdError::Type { .. })));
        assert_eq!(number(0.into()), Ok(0));
        assert_eq!(number(HeaderValue::UInt(SEQUENCE_MAX)), Ok(SEQUENCE_MAX));
    }

    #[test]
    fn the_parts_may_come_from_the_body_and_the_routing_key() {
        let sequence = Source::Sequence {
            producer: Source::RoutingKey.into(),
            sequence: Source::Json("/seq".to_owned()).into(),
        };
        let rules = IdentityRules { id: vec![sequence], ..IdentityRules::default() };
        let message = Message {
            routing_key: "device.4".to_owned(),
            body: r#"{"seq":12}"#.into(),
            ..Message::default()
        };
        let (id, _) = Resolver::new(rules, "q").resolve(&message).id.expect("an id");
        assert_eq!(id.as_bytes(), b"device.4/12");
    }

    #[test]
    fn producer_and_number_together_are_held_to_the_limit_of_an_id() {
        let with = |bytes: usize| {
            resolve(numbered(), &[("p", "x".repeat(bytes).into()), ("n", 17.into())]).id
        };
        assert!(with(ID_BYTES_MAX - 3).is_ok());
        assert!(matches!(with(ID_BYTES_MAX - 2), Err(IdError::TooLong { .. })));
    }
}
