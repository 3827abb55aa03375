//! Where messages come from: which message sent each, by the ids that the runtime gives.
//!
//! Pure arithmetic on ids: a store keeps hashes, and outgoing ids are hashes too, so names are found by computing them
//! for every message that was seen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::wire::By;
use super::world::World;
use crate::broker::OUTGOING_ID_HEADER;
use crate::identity::{HashKey, Identity, Resolver, ScopeName, SequenceId, outgoing_id};
use crate::message::{HeaderValue, Key, Message, MessageId, escape};
use crate::options::{OnUnroutable, QueueOptions};

/// Number of a reply among the outgoing messages of its request.
const REPLY_INDEX: u32 = u32::MAX;

/// A message that a handler gets, as the rules of its queue read it.
pub(super) struct Inbound {
    pub(super) id: MessageId,
    pub(super) scope: ScopeName,
    pub(super) key: Option<Key>,
    /// Producer and number, if it has them.
    pub(super) sequence: Option<(bytes::Bytes, u64)>,
}

impl Inbound {
    pub(super) fn identity(&self, hash_key: &HashKey) -> Identity {
        hash_key.identity(&self.scope, self.id.as_bytes())
    }

    pub(super) fn sequence_id(&self, hash_key: &HashKey) -> Option<SequenceId> {
        let (producer, number) = self.sequence.as_ref()?;
        Some(SequenceId { producer: hash_key.producer(&self.scope, producer), number: *number })
    }
}

/// What sent a message.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) queue: String,
    pub(super) id: String,
    pub(super) key: Option<Key>,
    /// Of the sending message among all that came to its queue.
    pub(super) arrival: usize,
    /// Of this message among those it sent; `None` for a reply.
    pub(super) index: Option<u32>,
}

/// What came to a queue that has a handler, in order of first arrival, once per id.
pub(super) fn inbound(world: &World, options: &QueueOptions) -> Vec<Inbound> {
    let resolver = Resolver::new(options.identity.clone(), &options.queue);
    let mut seen = HashSet::new();
    let resolve = |message: Arc<Message>| {
        let resolved = resolver.resolve(&message);
        let (id, scope) = resolved.id.ok()?;
        let key = resolved.key.ok().flatten();
        let sequence = resolved.sequence.map(|parts| (parts.producer, parts.number));
        Some(Inbound { id, scope, key, sequence })
    };
    let arrived = world.arrived(&options.queue, None).into_iter().filter_map(resolve);
    // The same id in another scope is another message.
    arrived.filter(|inbound| seen.insert(effect_id(inbound))).collect()
}

fn effect_id(inbound: &Inbound) -> String {
    outgoing_id(&inbound.scope, &inbound.id, 0)
}

/// The origins of all that workers published, by outgoing id.
pub(super) fn origins(world: &World) -> HashMap<String, Origin> {
    let log = world.wire.log();
    let published = log.iter().filter(|logged| logged.by == By::Worker);
    let ids: HashSet<&str> =
        published.filter_map(|logged| logged.message.properties.message_id.as_deref()).collect();
    let mut origins = HashMap::new();
    for queue in &world.queues {
        let options = &queue.options;
        // Else they are without gaps: the next one goes out when the one before is confirmed.
        let has_gaps = options.on_unroutable == OnUnroutable::DeadLetter;
        for (arrival, inbound) in inbound(world, options).into_iter().enumerate() {
            let id_of = |index| outgoing_id(&inbound.scope, &inbound.id, index);
            let count = u32::try_from(log.len()).unwrap_or(REPLY_INDEX);
            let sent = (0..count).map(|index| (index, id_of(index)));
            let sent = sent.take_while(|(_, id)| has_gaps || ids.contains(&**id));
            let reply = std::iter::once((REPLY_INDEX, id_of(REPLY_INDEX)));
            for (index, id) in sent.chain(reply).filter(|(_, id)| ids.contains(&**id)) {
                let origin = Origin {
                    queue: options.queue.clone(),
                    id: escape(inbound.id.as_bytes()),
                    key: inbound.key.clone(),
                    arrival,
                    index: (index != REPLY_INDEX).then_some(index),
                };
                origins.insert(id, origin);
            }
        }
    }
    origins
}

/// The names of all messages by their identity in the store on the world's disk.
pub(super) fn names(world: &World) -> HashMap<Identity, String> {
    let Some(hash_key) = world.disk.hash_key() else { return HashMap::new() };
    let mut names = HashMap::new();
    for queue in &world.queues {
        for inbound in inbound(world, &queue.options) {
            let identity = inbound.identity(&hash_key);
            let mut name = format!("message \"{}\"", inbound.id);
            if world.queues.len() > 1 {
                name.push_str(&format!(" of queue {:?}", queue.options.queue));
            }
            for message in world.arrived(&queue.options.queue, None) {
                let conflict = hash_key.conflict(identity, hash_key.fingerprint(&message));
                names.insert(conflict, format!("another body under the id of {name}"));
            }
            names.insert(identity, name);
        }
    }
    names
}

/// By which a reader knows a message again.
pub(super) fn reader_id(message: &Message) -> Option<&str> {
    let own = message.properties.headers.get(OUTGOING_ID_HEADER).and_then(HeaderValue::as_str);
    own.or(message.properties.message_id.as_deref())
}

/// Those that a reader who dedupes by id takes, in order.
pub(super) fn once_per_id(messages: Vec<Arc<Message>>) -> Vec<Arc<Message>> {
    let mut seen = HashSet::new();
    messages
        .into_iter()
        .filter(|message| reader_id(message).is_none_or(|id| seen.insert(id.to_owned())))
        .collect()
}
