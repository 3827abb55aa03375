//! Goal: whatever a producer puts into a message, it gets an id and a key by the rules, or the reason why not.

use super::*;
use crate::fuzz::{corpus, fuzz};
use crate::message::Message;

fn header(name: &str) -> Source {
    Source::Header(name.to_owned())
}

/// Every source and every scope, in some order.
fn all_rules() -> Vec<IdentityRules> {
    let json = || Source::Json("/a~1b/0".to_owned());
    let sequence = Source::Sequence {
        producer: Box::new(header("p")),
        sequence: Box::new(Source::Json("/n".to_owned())),
    };
    let sources = [
        Source::MessageId,
        Source::CorrelationId,
        header("x-id"),
        json(),
        Source::CloudEvents,
        sequence,
        Source::RoutingKey,
    ];
    let scopes = [Scope::Queue, Scope::Global, Scope::Header("x-tenant".to_owned())];
    let mut rules = Vec::new();
    for turn in 0..sources.len() {
        let mut id = sources.to_vec();
        id.rotate_left(turn);
        let mut key: Vec<Source> = id.iter().rev().cloned().collect();
        // What the options refuse.
        id.retain(|source| source.id_problem().is_none());
        key.retain(|source| source.key_problem().is_none());
        let on_missing_id =
            if turn % 2 == 0 { OnMissingId::DeadLetter } else { OnMissingId::Fingerprint };
        rules.push(IdentityRules { id, key, scope: scopes[turn % 3].clone(), on_missing_id });
    }
    rules
}

#[test]
fn any_message_has_an_id_within_the_limits_or_the_reason_why_not() {
    let resolvers = all_rules().into_iter().map(|rules| Resolver::new(rules, "orders"));
    let resolvers: Vec<Resolver> = resolvers.collect();
    let hashes = HashKey::new([7; 32]);
    let mut decoded = 0;
    fuzz("identity", 5_000, |bytes| {
        // Also as the body of a message that has all headers.
        let read = postcard::from_bytes::<Message>(bytes).ok();
        decoded += u32::from(read.is_some());
        let text = String::from_utf8_lossy(bytes).into_owned();
        let headers = ["x-id", "p", "x-tenant"].map(|name| (name.to_owned(), text.as_str().into()));
        let mut made = Message { body: bytes.to_vec().into(), ..Message::default() };
        made.properties.headers = headers.into();
        made.properties.content_type = Some("application/cloudevents+json".to_owned());
        for message in read.iter().chain([&made]) {
            for resolver in &resolvers {
                let resolved = resolver.resolve(message);
                match &resolved.id {
                    Ok((id, scope)) => {
                        assert!((1..=ID_BYTES_MAX).contains(&id.as_bytes().len()), "{id:?}");
                        let identity = hashes.identity(scope, id.as_bytes());
                        let again = resolver.resolve(message).id.expect("as before");
                        assert_eq!(hashes.identity(&again.1, again.0.as_bytes()), identity);
                        assert!(id.to_string().chars().all(|c| !c.is_control()), "{id}");
                    }
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
                    }
                }
                if let Ok(Some(key)) = &resolved.key {
                    assert!(key.as_bytes().len() <= KEY_BYTES_MAX, "{key}");
                    assert!(key.to_string().chars().all(|c| !c.is_control()), "{key}");
                }
                let _ = hashes.fingerprint(message);
            }
        }
    });
    assert!(decoded as usize > corpus("identity").len() / 2, "most of the corpus are messages");
}
