//! A delivery once its id and key are resolved: what waits in a mailbox and what an actor works on.
//!
//! Pure. A message that cannot be worked on is admitted all the same, with its verdict: it takes its place in its key's
//! order and ends in the dead-letter queue by the same way as every other.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::identity_lock::IdentityGuard;

use crate::broker::Delivery;
use crate::identity::{Fingerprint, HashKey, IdError, Identity, Resolver, ScopeName, SequenceId};
use crate::message::{Key, Message, MessageId};
use crate::store::Reason;

/// Where an acknowledgement goes: a tag means something on its own generation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) generation: u32,
    pub(crate) tag: u64,
    pub(crate) received: Instant,
}

/// What an actor serializes: an ordering key, or one message that has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActorKey {
    Named(Key),
    Own(Identity),
}

/// By the little that tells them apart: it is hashed with a random key several times a message.
impl Hash for ActorKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Named(key) => state.write(key.as_bytes()),
            Self::Own(identity) => state.write_u64(identity.hash64()),
        }
    }
}

/// A delivery on its way through the runtime.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) tag: Tag,
    pub(crate) message: Arc<Message>,
    pub(crate) redelivered: bool,
    pub(crate) identity: Identity,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) key: ActorKey,
    /// `None` if the message cannot be told apart from others: its identity is random.
    pub(crate) id: Option<(MessageId, ScopeName)>,
    /// Set if its producer numbers its messages: then a watermark, and no record, tells whether it is done.
    pub(crate) sequence: Option<SequenceId>,
    /// Why it cannot be worked on, found before anybody looked at it.
    pub(crate) defect: Option<(Reason, String)>,
    /// Of a message without an id: cancelled when its connection is lost and the broker has it again.
    pub(crate) returned: Option<CancellationToken>,
    /// Held while it is worked on if other queues may have the same identity.
    pub(crate) shared: Option<IdentityGuard>,
    /// About what it takes in memory.
    pub(crate) bytes: usize,
}

impl Admitted {
    pub(crate) const fn named_key(&self) -> Option<&Key> {
        match &self.key {
            ActorKey::Named(key) => Some(key),
            ActorKey::Own(_) => None,
        }
    }
}

/// One connection: its tags mean something until it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation {
    pub(crate) number: u32,
    pub(crate) over: CancellationToken,
}

/// Resolves deliveries of one queue.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) resolver: Resolver,
    pub(crate) hash_key: HashKey,
    pub(crate) body_bytes_max: usize,
}

impl Admission {
    /// `random` stands in for the identity of a message without one.
    pub(crate) fn admit(
        &self,
        delivery: Delivery,
        generation: &Generation,
        received: Instant,
        random: impl FnOnce() -> [u8; 16],
    ) -> Box<Admitted> {
        let Delivery { tag, redelivered, message, defect } = delivery;
        let resolved = self.resolver.resolve(&message);
        let mut defect = defect.map(|what| (Reason::Decode, what));
        let body_bytes = message.body.len();
        if body_bytes > self.body_bytes_max {
            let limit = self.body_bytes_max;
            let text = format!("the body has {body_bytes} bytes, the limit is {limit}");
            defect.get_or_insert((Reason::TooLarge, text));
        }
        let (identity, id) = match resolved.id {
            Ok((id, scope)) => (self.hash_key.identity(&scope, id.as_bytes()), Some((id, scope))),
            Err(error) => {
                defect.get_or_insert_with(|| (reason_of(&error), error.to_string()));
                (Identity::from_bytes(random()), None)
            }
        };
        let sequence = id.as_ref().zip(resolved.sequence).map(|((_, scope), parts)| SequenceId {
            producer: self.hash_key.producer(scope, &parts.producer),
            number: parts.number,
        });
        let key = resolved.key.unwrap_or_else(|error| {
            defect.get_or_insert_with(|| (reason_of(&error), format!("ordering key: {error}")));
            None
        });
        let key = key.map_or(ActorKey::Own(identity), ActorKey::Named);
        let fingerprint = self.hash_key.fingerprint(&message);
        let tag = Tag { generation: generation.number, tag, received };
        let returned = id.is_none().then(|| generation.over.clone());
        let shared = None;
        let bytes = message.memory_bytes();
        // Boxed once: it goes from hand to hand.
        Box::new(Admitted {
            bytes,
            tag,
            message,
            redelivered,
            identity,
            fingerprint,
            key,
            id,
            sequence,
            defect,
            returned,
            shared,
        })
    }
}

const fn reason_of(error: &IdError) -> Reason {
    match error {
        IdError::Missing { .. } => Reason::MissingId,
        IdError::Type { .. } | IdError::TooLong { .. } | IdError::Sequence { .. } => Reason::BadId,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::{IdentityRules, OnMissingId, Scope, Source};
    use crate::message::{HeaderValue, Properties};

    pub(crate) fn admission(rules: IdentityRules) -> Admission {
        Admission {
            resolver: Resolver::new(rules, "q"),
            hash_key: HashKey::new([7; 32]),
            body_bytes_max: 100,
        }
    }

    fn delivery(tag: u64, message: Message) -> Delivery {
        Delivery { tag, redelivered: false, message: Arc::new(message), defect: None }
    }

    fn admit(admission: &Admission, message: Message) -> Admitted {
        *admission.admit(delivery(1, message), &Generation::default(), Instant::now(), || [1; 16])
    }

    pub(crate) fn admitted(id: u32, body: &str, tag: u64) -> Admitted {
        let message = Message {
            properties: Properties { message_id: Some(id.to_string()), ..Properties::default() },
            body: body.as_bytes().to_vec().into(),
            ..Message::default()
        };
        let admission = admission(IdentityRules::default());
        *admission.admit(delivery(tag, message), &Generation::default(), Instant::now(), || [0; 16])
    }

    pub(crate) fn admitted_with_key(id: u32, key: &str, tag: u64) -> Admitted {
        let message = Message {
            routing_key: key.to_owned(),
            properties: Properties { message_id: Some(id.to_string()), ..Properties::default() },
            ..Message::default()
        };
        let rules = IdentityRules { key: vec![Source::RoutingKey], ..IdentityRules::default() };
        *admission(rules).admit(
            delivery(tag, message),
            &Generation::default(),
            Instant::now(),
            || [0; 16],
        )
    }

    fn with_headers(headers: &[(&str, HeaderValue)]) -> Message {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let properties = Properties { headers: headers.collect(), ..Properties::default() };
        Message { properties, ..Message::default() }
    }

    fn rules(id: &[&str]) -> IdentityRules {
        let id = id.iter().map(|source| source.parse().expect("a source")).collect();
        IdentityRules { id, ..IdentityRules::default() }
    }

    fn id_of(admitted: &Admitted) -> Option<&[u8]> {
        admitted.id.as_ref().map(|(id, _)| id.as_bytes())
    }

    #[test]
    fn the_first_source_that_is_present_and_not_empty_wins() {
        let admission = admission(rules(&["message-id", "header:x-id", "json:/a/id"]));
        let mut message = with_headers(&[("x-id", HeaderValue::Int(-5))]);
        message.body = r#"{"a":{"id":17}}"#.as_bytes().into();
        assert_eq!(id_of(&admit(&admission, message.clone())), Some(&b"-5"[..]));
        message.properties.message_id = Some(String::new());
        assert_eq!(id_of(&admit(&admission, message.clone())), Some(&b"-5"[..]));
        message.properties.headers.clear();
        assert_eq!(id_of(&admit(&admission, message.clone())), Some(&b"17"[..]));
        message.properties.message_id = Some("m".to_owned());
        assert_eq!(id_of(&admit(&admission, message)), Some(&b"m"[..]));
    }

    #[test]
    fn a_message_without_an_id_is_dead_or_known_by_its_content() {
        let missing = admit(&admission(rules(&["message-id"])), Message::default());
        assert!(matches!(missing.defect, Some((Reason::MissingId, _))) && missing.id.is_none());
        let by_content = admission(IdentityRules {
            on_missing_id: OnMissingId::Fingerprint,
            ..IdentityRules::default()
        });
        let body = |body: &'static str| Message { body: body.into(), ..Message::default() };
        let first = admit(&by_content, body("x")).identity;
        assert_eq!(first, admit(&by_content, body("x")).identity);
        assert_ne!(first, admit(&by_content, body("y")).identity);
    }

    #[test]
    fn ids_of_wrong_type_and_over_the_limit_are_bad() {
        let by_header = admission(rules(&["header:x-id"]));
        for value in [HeaderValue::Float(1.0), HeaderValue::from("x".repeat(1025))] {
            let bad = admit(&by_header, with_headers(&[("x-id", value)]));
            assert!(matches!(bad.defect, Some((Reason::BadId, _))));
        }
        let longest = with_headers(&[("x-id", HeaderValue::from("x".repeat(1024)))]);
        assert!(admit(&by_header, longest).defect.is_none());
    }

    #[test]
    fn a_numbered_message_carries_its_producer_in_its_scope_and_its_number() {
        let header = |name: &str| Source::Header(name.to_owned()).into();
        let sequence = Source::Sequence { producer: header("p"), sequence: header("n") };
        let numbered = admission(IdentityRules {
            id: vec![sequence],
            scope: Scope::Header("tenant".to_owned()),
            ..IdentityRules::default()
        });
        let sent = |tenant: &str, producer: &str, number: HeaderValue| {
            let headers = [("tenant", tenant.into()), ("p", producer.into()), ("n", number)];
            admit(&numbered, with_headers(&headers))
        };
        let first = sent("t", "a", 1.into());
        let (id, number) = (id_of(&first), first.sequence.map(|sequence| sequence.number));
        assert_eq!((id, number), (Some(&b"a/1"[..]), Some(1)));
        let producer = |admitted: Admitted| admitted.sequence.expect("a sequence").producer;
        let of_first = producer(first);
        assert_eq!(of_first, producer(sent("t", "a", "2".into())));
        assert_ne!(of_first, producer(sent("u", "a", 1.into())));
        assert_ne!(of_first, producer(sent("t", "b", 1.into())));
        let bad = sent("t", "a", "one".into());
        assert!(matches!(bad.defect, Some((Reason::BadId, _))));
        assert!(bad.sequence.is_none() && bad.id.is_none());
        assert!(admitted(1, "", 1).sequence.is_none());
    }

    #[test]
    fn tenants_and_queues_have_ids_of_their_own() {
        let tenants = admission(IdentityRules {
            scope: Scope::Header("tenant".to_owned()),
            ..rules(&["header:x-id"])
        });
        let of_tenant = |tenant: &str| {
            let headers = [("x-id", "1".into()), ("tenant", tenant.into())];
            admit(&tenants, with_headers(&headers)).identity
        };
        assert_ne!(of_tenant("a"), of_tenant("b"));
        assert_eq!(of_tenant("a"), of_tenant("a"));
        let no_tenant = admit(&tenants, with_headers(&[("x-id", "1".into())]));
        assert!(matches!(no_tenant.defect, Some((Reason::MissingId, _))));
        let key = HashKey::new([7; 32]);
        let [a, b] = ["a", "b"].map(|queue| key.identity(&ScopeName::queue(queue), b"1"));
        assert_ne!(a, b);
    }

    #[test]
    fn cloud_events_are_told_apart_by_source_and_id() {
        let admission = admission(rules(&["cloudevents"]));
        let event = |source: &str| {
            admit(
                &admission,
                with_headers(&[
                    ("cloudEvents:id", "1".into()),
                    ("cloudEvents:source", source.into()),
                ]),
            )
        };
        assert_ne!(event("/a").identity, event("/b").identity);
        let structured = Message {
            properties: Properties {
                content_type: Some("application/cloudevents+json; charset=utf-8".to_owned()),
                ..Properties::default()
            },
            body: r#"{"id":"1","source":"/a"}"#.as_bytes().into(),
            ..Message::default()
        };
        assert_eq!(admit(&admission, structured).identity, event("/a").identity);
    }

    #[test]
    fn a_body_over_the_limit_is_dead_but_keeps_its_id() {
        let message = Message {
            properties: Properties { message_id: Some("m".to_owned()), ..Properties::default() },
            body: vec![0; 101].into(),
            ..Message::default()
        };
        let large = admit(&admission(IdentityRules::default()), message);
        assert!(matches!(large.defect, Some((Reason::TooLarge, _))) && large.id.is_some());
    }
}
