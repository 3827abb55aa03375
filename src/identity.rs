//! Which deliveries are the same message, and which messages run in order: id, scope, key, fingerprint.
//!
//! Pure: the rules of a queue and a message in, a `Resolved` out. An identity is 16 bytes, a hash of
//! scope and id keyed with a random key of the store, so ids of any length cost the same, cannot be crafted
//! to collide, and leave no personal data behind. Never looks at `redelivered` or at a producer's clock.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::message::{HeaderValue, Key, Message, MessageId};

/// Longest id in bytes; a longer one is dead-lettered as `bad-id`.
pub const ID_BYTES_MAX: usize = 1024;

/// Longest ordering key in bytes; a longer one is dead-lettered as `bad-id`.
pub const KEY_BYTES_MAX: usize = 1024;

/// Where an id or an ordering key is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The property `message-id`.
    MessageId,
    /// The property `correlation-id`.
    CorrelationId,
    /// The application header of this name: a string, any bytes, or an integer.
    Header(String),
    /// A JSON pointer (RFC 6901) into the body: a string, an integer or a boolean.
    Json(String),
    /// A CloudEvent's source and id; as a key, its extension `partitionkey`.
    CloudEvents,
    /// The routing key; for ordering keys only.
    RoutingKey,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MessageId => f.write_str("message-id"),
            Self::CorrelationId => f.write_str("correlation-id"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::CloudEvents => f.write_str("cloudevents"),
            Self::RoutingKey => f.write_str("routing-key"),
        }
    }
}

/// The names a [`Source`] can be written as, for error messages.
pub const SOURCE_NAMES: &[&str] =
    &["message-id", "correlation-id", "header:NAME", "json:/pointer", "cloudevents", "routing-key"];

impl std::str::FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "message-id" => Ok(Self::MessageId),
            "correlation-id" => Ok(Self::CorrelationId),
            "cloudevents" => Ok(Self::CloudEvents),
            "routing-key" => Ok(Self::RoutingKey),
            _ => match text.split_once(':') {
                Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_owned())),
                Some(("json", pointer)) if pointer.starts_with('/') => {
                    Ok(Self::Json(pointer.to_owned()))
                }
                _ => Err(ParseSourceError { text: text.to_owned() }),
            },
        }
    }
}

/// The text names no [`Source`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is not a source; write message-id, correlation-id, header:NAME, json:/pointer, \
     cloudevents or routing-key"
)]
pub struct ParseSourceError {
    text: String,
}

/// The namespace in which an id is unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each queue for itself (default).
    #[default]
    Queue,
    /// All queues of the worker together.
    Global,
    /// The tenant named by this header; without the header the message has no usable id.
    Header(String),
}

/// What happens to a message without an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissingId {
    /// Dead-letter it as `missing-id` (default).
    #[default]
    DeadLetter,
    /// Take a hash of type and body as the id: two equal messages count as one.
    Fingerprint,
}

/// How a queue's messages are told apart and ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRules {
    /// Sources of the id, the first present one wins; default `message-id`.
    pub id: Vec<Source>,
    /// Sources of the ordering key, the first present one wins; default none: no ordering.
    pub key: Vec<Source>,
    /// Namespace of ids.
    pub scope: Scope,
    /// What happens without an id.
    pub on_missing_id: OnMissingId,
}

impl Default for IdentityRules {
    fn default() -> Self {
        Self {
            id: vec![Source::MessageId],
            key: Vec::new(),
            scope: Scope::default(),
            on_missing_id: OnMissingId::default(),
        }
    }
}

/// What "the same message" means: 16 bytes of a keyed hash of scope and id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Identity([u8; 16]);

impl Identity {
    pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first eight bytes as a number: already uniform, so maps use it unhashed.
    pub(crate) fn hash64(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", hex(&self.0))
    }
}

/// A hash of a message's type and body: tells a duplicate from a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Fingerprint([u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The store's random key: without it nobody can craft colliding ids or guess ids from the index.
#[derive(Clone)]
pub(crate) struct HashKey([u8; 32]);

impl HashKey {
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The identity of an id in a scope.
    #[must_use]
    pub(crate) fn identity(&self, scope: &ScopeName, id: &[u8]) -> Identity {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&scope.0);
        hasher.update(id);
        Identity(truncated(&hasher.finalize()))
    }

    /// The identity under which the other body of a known id is recorded as a conflict.
    #[must_use]
    pub(crate) fn conflict(&self, first: Identity, fingerprint: Fingerprint) -> Identity {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"conflict");
        hasher.update(&first.0);
        hasher.update(&fingerprint.0);
        Identity(truncated(&hasher.finalize()))
    }

    /// The fingerprint of a message.
    #[must_use]
    pub(crate) fn fingerprint(&self, message: &Message) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        update_with_content(&mut hasher, message);
        Fingerprint(truncated(&hasher.finalize()))
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// A resolved scope: its bytes carry their kind and length, so no id of one scope reads as one of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScopeName(Arc<[u8]>);

impl ScopeName {
    fn new(kind: u8, name: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(name.len() + 9);
        bytes.push(kind);
        bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name);
        Self(bytes.into())
    }

    /// The scope of one queue.
    #[must_use]
    pub(crate) fn queue(name: &str) -> Self {
        Self::new(b'q', name.as_bytes())
    }

    /// The scope of all queues of the worker.
    #[must_use]
    pub(crate) fn global() -> Self {
        Self::new(b'g', b"")
    }

    /// The scope of one tenant.
    #[must_use]
    pub(crate) fn tenant(name: &[u8]) -> Self {
        Self::new(b't', name)
    }
}

/// What the rules make of one message.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Id and scope, or why the message has none.
    pub(crate) id: Result<(MessageId, ScopeName), IdError>,
    /// Ordering key; `None` is a message that is its own key.
    pub(crate) key: Result<Option<Key>, IdError>,
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
        let reads_body = rules
            .id
            .iter()
            .chain(&rules.key)
            .any(|source| matches!(source, Source::Json(_) | Source::CloudEvents));
        Self { rules, queue: ScopeName::queue(queue), reads_body }
    }

    pub(crate) fn resolve(&self, message: &Message) -> Resolved {
        let body = if self.reads_body { json_body(message) } else { None };
        let body = body.as_ref();
        let key = first_present(&self.rules.key, message, body, Role::Key);
        let id = first_present(&self.rules.id, message, body, Role::Id)
            .and_then(|id| id.map_or_else(|| self.missing(message), |id| Ok(MessageId::new(id))))
            .and_then(|id| Ok((id, self.scope(message)?)));
        Resolved { id, key: key.map(|key| key.map(|key| Key::new(&key))) }
    }

    fn missing(&self, message: &Message) -> Result<MessageId, IdError> {
        match self.rules.on_missing_id {
            OnMissingId::Fingerprint => {
                let mut hasher = blake3::Hasher::new_derive_key("onceward 1 fingerprint as id");
                update_with_content(&mut hasher, message);
                Ok(MessageId::new(hex(&truncated::<16>(&hasher.finalize()))))
            }
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
                    Some(tenant) => Ok(ScopeName::tenant(&tenant)),
                    None => Err(IdError::Missing { tried: format!("{source} (the scope)") }),
                }
            }
        }
    }
}

/// The name other systems dedupe by: the same for every attempt, restart and even after a lost store.
///
/// Not keyed with the store's key for that last reason.
pub(crate) fn effect_key(scope: &ScopeName, id: &MessageId, name: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("onceward 1 effect key");
    hasher.update(&scope.0);
    hasher.update(&(id.as_bytes().len() as u64).to_le_bytes());
    hasher.update(id.as_bytes());
    hasher.update(name.as_bytes());
    hex(&truncated::<16>(&hasher.finalize()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Id,
    Key,
}

fn first_present(
    sources: &[Source],
    message: &Message,
    body: Option<&serde_json::Value>,
    role: Role,
) -> Result<Option<Bytes>, IdError> {
    for source in sources {
        let Some(value) = read(source, message, body, role)? else {
            continue;
        };
        let max = if role == Role::Id { ID_BYTES_MAX } else { KEY_BYTES_MAX };
        if value.len() > max {
            return Err(IdError::TooLong { what: source.to_string(), bytes: value.len(), max });
        }
        return Ok(Some(value));
    }
    Ok(None)
}

/// The value at one source; an empty one counts as absent.
fn read(
    source: &Source,
    message: &Message,
    body: Option<&serde_json::Value>,
    role: Role,
) -> Result<Option<Bytes>, IdError> {
    let text = |text: &Option<String>| text.clone().map(Bytes::from);
    let value = match source {
        Source::MessageId => text(&message.properties.message_id),
        Source::CorrelationId => text(&message.properties.correlation_id),
        Source::RoutingKey => Some(Bytes::from(message.routing_key.clone())),
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
    };
    Ok(value.filter(|value| !value.is_empty()))
}

fn header_bytes(source: &Source, value: &HeaderValue) -> Result<Option<Bytes>, IdError> {
    match value {
        HeaderValue::Void => Ok(None),
        HeaderValue::Bytes(bytes) => Ok(Some(bytes.clone())),
        HeaderValue::Int(number) => Ok(Some(number.to_string().into())),
        HeaderValue::UInt(number) | HeaderValue::Timestamp(number) => {
            Ok(Some(number.to_string().into()))
        }
        other => Err(IdError::Type { what: source.to_string(), found: other.type_name() }),
    }
}

fn json_bytes(source: &Source, value: &serde_json::Value) -> Result<Option<Bytes>, IdError> {
    use serde_json::Value;
    let found = match value {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        Value::Bool(truth) => return Ok(Some(truth.to_string().into())),
        Value::Number(number) if !number.is_f64() => return Ok(Some(number.to_string().into())),
        Value::Number(_) => "float",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Err(IdError::Type { what: source.to_string(), found })
}

/// CloudEvents are unique by source and id together (CloudEvents 1.0.2, "id").
fn cloudevents_id(
    message: &Message,
    body: Option<&serde_json::Value>,
) -> Result<Option<Bytes>, IdError> {
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
fn cloudevents_attribute(
    message: &Message,
    body: Option<&serde_json::Value>,
    name: &str,
) -> Result<Option<Bytes>, IdError> {
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

fn update_with_content(hasher: &mut blake3::Hasher, message: &Message) {
    let kind = message.properties.kind.as_deref().unwrap_or_default();
    hasher.update(&(kind.len() as u64).to_le_bytes());
    hasher.update(kind.as_bytes());
    hasher.update(&message.body);
}

fn truncated<const N: usize>(hash: &blake3::Hash) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(hash.as_bytes()) {
        *to = *from;
    }
    out
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
