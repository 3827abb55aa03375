//! What kind of queue this is, learned from the broker's refusals.
//!
//! AMQP does not tell. But a declaration of an existing queue with other arguments is refused with the first one that
//! differs and its current value: adopt it, ask again, and when the declaration is accepted we have described the
//! queue. Pure: refusals in, the next declaration or the answer out.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, ShortString};

pub(super) const QUEUE_TYPE: &str = "x-queue-type";
pub(super) const SINGLE_ACTIVE_CONSUMER: &str = "x-single-active-consumer";
const MESSAGE_TTL: &str = "x-message-ttl";

/// A declaration that describes the queue a little better with each refusal.
#[derive(Debug, PartialEq)]
pub(super) struct Description {
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    arguments: BTreeMap<String, Argument>,
}

/// What the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Classic,
    Quorum,
    Stream,
}

#[derive(Clone, Debug, PartialEq)]
enum Argument {
    Text(String),
    Integer(i64),
    Bool(bool),
}

impl Description {
    /// A quorum queue with a single active consumer: what is accepted as it is, most of the time.
    pub(super) fn new() -> Self {
        let quorum = Argument::Text("quorum".to_owned());
        let arguments = [(QUEUE_TYPE, quorum), (SINGLE_ACTIVE_CONSUMER, Argument::Bool(true))];
        Self {
            durable: true,
            auto_delete: false,
            arguments: arguments.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    /// The arguments of the declaration, if they fit AMQP's lengths.
    pub(super) fn arguments(&self) -> Option<FieldTable> {
        let mut table = FieldTable::default();
        for (name, value) in &self.arguments {
            let value = match value {
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
                Argument::Integer(number) => AMQPValue::LongLongInt(*number),
                Argument::Bool(value) => AMQPValue::Boolean(*value),
            };
            table.insert(ShortString::try_new(name.as_str()).ok()?, value);
        }
        Some(table)
    }

    /// Adopts what the refusal says of the queue; false if it says nothing that we understand.
    pub(super) fn learn(&mut self, refusal: &str, queue: &str, vhost: &str) -> bool {
        self.try_learn(refusal, queue, vhost).is_some()
    }

    fn try_learn(&mut self, refusal: &str, queue: &str, vhost: &str) -> Option<()> {
        let (_, rest) = refusal.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once("' for queue '")?;
        let rest = rest.strip_prefix(queue)?.strip_prefix("' in vhost '")?;
        let rest = rest.strip_prefix(vhost)?.strip_prefix("': received ")?;
        let (_, current) = rest.split_once(" but current is ")?;
        let classic = Argument::Text("classic".to_owned());
        match (name, current) {
            // Only classic queues may be either.
            ("durable", "'false'") => {
                self.durable = false;
                self.set(QUEUE_TYPE, classic);
            }
            ("auto_delete", "'true'") => {
                self.auto_delete = true;
                self.set(QUEUE_TYPE, classic);
            }
            // A queue without the argument is a classic one, also where the vhost has another default.
            (QUEUE_TYPE, "none") if self.arguments.get(QUEUE_TYPE) != Some(&classic) => {
                self.set(QUEUE_TYPE, classic);
            }
            (name, "none") => {
                self.arguments.remove(name)?;
            }
            (name, value) => {
                let value = self.value(name, value)?;
                self.set(name, value);
            }
        }
        Some(())
    }

    fn set(&mut self, name: &str, value: Argument) {
        self.arguments.insert(name.to_owned(), value);
    }

    /// `the value '10' of type 'signedint'`, or `'10'` if it is of the type of what we sent.
    fn value(&self, name: &str, text: &str) -> Option<Argument> {
        if let Some(rest) = text.strip_prefix("the value '") {
            let (value, rest) = rest.rsplit_once("' of type '")?;
            return match rest.strip_suffix('\'')? {
                "longstr" => Some(Argument::Text(value.to_owned())),
                "bool" => value.parse().ok().map(Argument::Bool),
                "signedint" | "unsignedint" | "long" | "short" | "byte" | "unsignedshort"
                | "unsignedbyte" => value.parse().ok().map(Argument::Integer),
                _ => None,
            };
        }
        let value = text.strip_prefix('\'')?.strip_suffix('\'')?;
        match self.arguments.get(name)? {
            Argument::Text(_) => Some(Argument::Text(value.to_owned())),
            Argument::Bool(_) => value.parse().ok().map(Argument::Bool),
            Argument::Integer(_) => value.parse().ok().map(Argument::Integer),
        }
    }

    /// The queue's type, if it is one that we know.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self.arguments.get(QUEUE_TYPE) {
            None => Some(Kind::Classic),
            Some(Argument::Text(text)) => match text.as_str() {
                "classic" => Some(Kind::Classic),
                "quorum" => Some(Kind::Quorum),
                "stream" => Some(Kind::Stream),
                _ => None,
            },
            Some(_) => None,
        }
    }

    /// Whether the broker gives the queue to one consumer at a time.
    pub(super) fn single_active_consumer(&self) -> bool {
        self.arguments.get(SINGLE_ACTIVE_CONSUMER) == Some(&Argument::Bool(true))
    }

    /// After how many milliseconds the broker drops what waits; a policy can say so too, and is not seen here.
    pub(super) fn message_ttl_ms(&self) -> Option<i64> {
        match self.arguments.get(MESSAGE_TTL) {
            Some(Argument::Integer(ms)) => Some(*ms),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refusals of RabbitMQ 3.10.8, word for word.
    fn learned(refusals: &[(&str, &str)]) -> Description {
        let mut description = Description::new();
        for (name, received) in refusals {
            let refusal = format!(
                "PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'it's' in vhost '/': received {received}"
            );
            assert!(description.learn(&refusal, "it's", "/"), "{refusal}");
        }
        description
    }

    #[test]
    fn a_classic_queue_with_arguments_is_described_step_by_step() {
        let found = learned(&[
            ("x-max-length", "none but current is the value '10' of type 'signedint'"),
            ("x-dead-letter-exchange", "none but current is the value 'a 'b' of type 'longstr'"),
            ("x-single-active-consumer", "the value 'true' of type 'bool' but current is none"),
            ("x-queue-type", "the value 'quorum' of type 'longstr' but current is none"),
        ]);
        assert_eq!(found.kind(), Some(Kind::Classic));
        assert!(!found.single_active_consumer());
        assert_eq!(found.arguments["x-max-length"], Argument::Integer(10));
        let exchange = Argument::Text("a 'b".to_owned());
        assert_eq!(found.arguments["x-dead-letter-exchange"], exchange);
    }

    #[test]
    fn a_message_ttl_is_found_out() {
        let ttl = ("x-message-ttl", "none but current is the value '60000' of type 'signedint'");
        assert_eq!(learned(&[ttl]).message_ttl_ms(), Some(60_000));
        assert_eq!(Description::new().message_ttl_ms(), None);
    }

    #[test]
    fn types_and_flags_are_told_apart() {
        let stream = learned(&[("x-queue-type", "'quorum' but current is 'stream'")]);
        assert_eq!(stream.kind(), Some(Kind::Stream));
        let transient = learned(&[("durable", "'true' but current is 'false'")]);
        assert_eq!((transient.kind(), transient.durable), (Some(Kind::Classic), false));
        let shared = learned(&[("x-single-active-consumer", "'true' but current is 'false'")]);
        assert_eq!(shared.kind(), Some(Kind::Quorum));
        assert!(!shared.single_active_consumer());
    }

    #[test]
    fn a_refusal_that_says_nothing_is_not_guessed_at() {
        for refusal in [
            "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received none but cur",
            "PRECONDITION_FAILED - inequivalent arg 'x' for queue 'other' in vhost '/': received none but current is 'a'",
            "PRECONDITION_FAILED - inequivalent arg 'x' for queue 'q' in vhost '/': received none but current is the value '[]' of type 'table'",
            "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'u'",
        ] {
            assert!(!Description::new().learn(refusal, "q", "/"), "{refusal}");
        }
    }
}
