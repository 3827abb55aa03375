//! Where an id or an ordering key is read from, and how that is written.
//!
//! A source that is made of two has no text form: the configuration writes it as a table. Does not read messages.

use std::fmt;

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
    /// The routing key; for ordering keys, and for the producer of a [`Self::Sequence`].
    RoutingKey,
    /// A producer and the number that it gave the message; for ids only.
    ///
    /// Present if both are. The numbers of a producer rise, by one for each new message, and a message that is
    /// sent again keeps its number: so the worker remembers how far each producer has come instead of an id a
    /// message.
    ///
    /// A producer is never forgotten. It takes up to 130 bytes of memory and a small row on disk for as long as there
    /// is the store, and while its numbers have gaps up to 32 KiB and 3.5 KiB. So name what stays, a service or a
    /// device, and not each of its processes or connections; the gauge `onceward_producers` counts them.
    Sequence {
        /// Names the producer: the same in all its messages, another for every other producer.
        producer: Box<Self>,
        /// Its number: an integer from 0 to [`SEQUENCE_MAX`], or decimal digits.
        sequence: Box<Self>,
    },
}

/// Highest number of a [`Source::Sequence`]; a higher one is dead-lettered as `bad-id`.
pub const SEQUENCE_MAX: u64 = u64::MAX - 1;

impl Source {
    /// Why this cannot be a source of ids, if so.
    pub(crate) fn id_problem(&self) -> Option<String> {
        match self {
            Self::RoutingKey => Some(
                "is for ordering keys: it tells no messages apart that are published alike"
                    .to_owned(),
            ),
            Self::Sequence { producer, sequence } => {
                let parts = [("producer", producer), ("sequence", sequence)];
                parts.into_iter().find_map(|(name, part)| {
                    let (part, why_not) = match **part {
                        Self::Sequence { .. } => ("a sequence", "which is an id of its own"),
                        Self::CloudEvents => ("cloudevents", "which is an id of its own"),
                        Self::RoutingKey if name == "sequence" => {
                            ("routing-key", "which is no number")
                        }
                        _ => return None,
                    };
                    Some(format!("has {part} as its {name}, {why_not}"))
                })
            }
            _ => None,
        }
    }

    /// Why this cannot be a source of ordering keys, if so.
    pub(crate) fn key_problem(&self) -> Option<String> {
        let sequence = matches!(self, Self::Sequence { .. });
        sequence.then(|| "is for ids: as a key it would order nothing".to_owned())
    }
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
            Self::Sequence { producer, sequence } => {
                write!(f, "{{ producer = \"{producer}\", sequence = \"{sequence}\" }}")
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(producer: Source, sequence: Source) -> Source {
        Source::Sequence { producer: producer.into(), sequence: sequence.into() }
    }

    #[test]
    fn a_sequence_is_for_ids_and_made_of_plain_sources() {
        let number = || Source::Header("n".to_owned());
        let good = sequence(Source::RoutingKey, number());
        assert_eq!(good.id_problem(), None);
        assert_eq!(good.to_string(), r#"{ producer = "routing-key", sequence = "header:n" }"#);
        assert!(good.key_problem().is_some_and(|problem| problem.contains("for ids")));
        let nested = sequence(good, number());
        assert_eq!(
            nested.id_problem().as_deref(),
            Some("has a sequence as its producer, which is an id of its own")
        );
        assert!(sequence(Source::CloudEvents, number()).id_problem().is_some());
        assert!(sequence(number(), Source::RoutingKey).id_problem().is_some());
        assert!(Source::RoutingKey.id_problem().is_some() && number().id_problem().is_none());
    }
}
