//! What everything is called: stores and wires know hashes, a history has names.
//!
//! Names are found by computing the hashes of every message that was in a queue. Arithmetic only; what was never in a
//! queue keeps a name that shows it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::copies::{copy_of, is_whole, sent_as};
use super::handler;
use super::history::{Ended, KeyName, Letter, Name, Recorded, Seen, Written};
use crate::broker::OUTGOING_ID_HEADER;
use crate::identity::{Fingerprint, HashKey, Identity, Resolver, Scope, outgoing_id};
use crate::message::{HeaderValue, Message, escape};
use crate::options::QueueOptions;
use crate::store::{Decoded, KeyId, Outcome};

/// Number of a reply among the outgoing messages of its request.
const REPLY_INDEX: u32 = u32::MAX;

/// Names by the hashes that a store with this key makes.
pub(super) struct Names {
    hash_key: HashKey,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    queues: BTreeMap<Arc<str>, Rules>,
    /// Numbers of queues in the store.
    numbers: HashMap<u16, Arc<str>>,
    messages: HashMap<Identity, Name>,
    /// Identities of second bodies.
    conflicts: HashMap<Identity, Name>,
    producers: HashMap<Identity, BTreeMap<u64, Name>>,
    /// Messages without an id, by their fingerprint: each has a body of its own.
    without_id: HashMap<u64, Name>,
    /// Ordering keys by queue.
    keys: BTreeMap<Arc<str>, BTreeMap<Vec<u8>, KeyName>>,
    /// Who a reply answers, by its id.
    replies: HashMap<String, Name>,
    /// What was in queues, by name and fingerprint: to compare dead letters with.
    whole: HashMap<(Name, u64), Vec<Arc<Message>>>,
}

/// How messages of a queue are read.
struct Rules {
    resolver: Resolver,
    scope: Scope,
    /// The header that names a class of retention.
    class: Option<String>,
}

impl Names {
    pub(super) fn new(hash_key: [u8; 32], queues: &[&QueueOptions]) -> Self {
        let mut known = Known::default();
        for options in queues {
            let resolver = Resolver::new(options.identity.clone(), &options.queue);
            let scope = options.identity.scope.clone();
            let class = options.retention_by.as_ref().map(|by| by.header.clone());
            known.queues.insert(options.queue.as_str().into(), Rules { resolver, scope, class });
        }
        Self { hash_key: HashKey::new(hash_key), known: Mutex::new(known) }
    }

    /// Learns of a message in a consumed queue; `None` if nobody consumes it.
    pub(super) fn see(&self, queue: &Arc<str>, message: &Arc<Message>, copy: u64) -> Option<Seen> {
        let mut known = self.lock();
        let seen = self.read(&known, queue, message, copy)?;
        let resolved = known.queues.get(queue)?.resolver.resolve(message);
        if let Some(key) = resolved.key.ok().flatten() {
            let keys = known.keys.entry(Arc::clone(queue)).or_default();
            let name = || format!("{queue}/{key}").into();
            keys.entry(key.as_bytes().to_vec()).or_insert_with(name);
        }
        let name = &seen.name;
        match resolved.id {
            Ok((id, scope)) => {
                let identity = self.hash_key.identity(&scope, id.as_bytes());
                known.messages.insert(identity, Arc::clone(name));
                let fingerprint = self.hash_key.fingerprint(message);
                let conflict = self.hash_key.conflict(identity, fingerprint);
                known.conflicts.insert(conflict, Arc::clone(name));
                if let Some(parts) = resolved.sequence {
                    let producer = self.hash_key.producer(&scope, &parts.producer);
                    let numbers = known.producers.entry(producer).or_default();
                    numbers.insert(parts.number, Arc::clone(name));
                }
                let reply = outgoing_id(&scope, &id, REPLY_INDEX);
                known.replies.insert(reply, Arc::clone(name));
            }
            Err(_) => {
                known.without_id.insert(seen.fingerprint, Arc::clone(name));
            }
        }
        let of = (Arc::clone(name), seen.fingerprint);
        known.whole.entry(of).or_default().push(Arc::clone(message));
        Some(seen)
    }

    /// As the rules of its queue read it, of a message that has been in it.
    pub(super) fn seen(&self, queue: &Arc<str>, message: &Message) -> Option<Seen> {
        self.read(&self.lock(), queue, message, copy_of(message)?)
    }

    fn read(&self, known: &Known, queue: &Arc<str>, message: &Message, copy: u64) -> Option<Seen> {
        let Rules { resolver, scope, class } = known.queues.get(queue)?;
        let resolved = resolver.resolve(message);
        let has_id = resolved.id.is_ok();
        let name = match resolved.id {
            Ok((id, _)) => {
                let id = escape(id.as_bytes());
                match scope {
                    Scope::Queue => format!("{queue}/{id}"),
                    Scope::Global => format!("global/{id}"),
                    Scope::Header(_) => format!("{}/{id}", tenant(message, scope)),
                }
            }
            Err(_) => format!("{queue}/#{copy}"),
        };
        let key = resolved.key.ok().flatten().map(|key| format!("{queue}/{key}").into());
        let class = class.as_ref().and_then(|header| message.properties.headers.get(header));
        Some(Seen {
            queue: Arc::clone(queue),
            name: name.into(),
            key,
            class: class.and_then(HeaderValue::as_str).map(Arc::from),
            fingerprint: number(self.hash_key.fingerprint(message)),
            has_id,
            copy,
        })
    }

    /// What a commit says.
    pub(super) fn written(&self, decoded: Vec<Decoded>) -> Written {
        let mut known = self.lock();
        let mut written = Written::default();
        let mut numbered = Vec::new();
        for said in decoded {
            match said {
                Decoded::Epoch(epoch) => written.epoch = Some(epoch),
                Decoded::Queue(id, name) => {
                    known.numbers.insert(id.0, name.into());
                }
                Decoded::Record(record) => {
                    let fingerprint = number(record.fingerprint);
                    let ended = match &record.outcome {
                        Outcome::Dead(note) => Ended::Dead(note.reason.name().into()),
                        Outcome::Done | Outcome::Forgotten(_) => Ended::Done,
                    };
                    let (name, is_conflict) = known.of_record(record.identity, fingerprint);
                    let attempts = record.attempts;
                    written.records.push(Recorded {
                        name,
                        fingerprint,
                        ended,
                        attempts,
                        is_conflict,
                    });
                }
                Decoded::Number(producer, number) => {
                    let name = known.producers.get(&producer).and_then(|of| of.get(&number));
                    numbered.push(name.map_or_else(unknown, Arc::clone));
                }
                Decoded::Attempts(of, started, unfinished) => {
                    written.attempts.push((known.name(of), started, unfinished));
                }
                Decoded::State(key, value) => {
                    let value = value.map(|value| handler::model_of(&value));
                    written.states.push((known.key(&self.hash_key, key), value));
                }
                Decoded::Step(of, step, has_result) => {
                    written.steps.push((known.name(of), step.into(), has_result));
                }
                Decoded::Outgoing(of, messages) => {
                    let ids = messages.iter().map(sent_as).collect();
                    written.outgoing.push((known.name(of), ids));
                }
                Decoded::Collected(of) => {
                    written.collected.push(known.of_record(of, 0).0);
                }
            }
        }
        // A dead one has a record too.
        let recorded: BTreeSet<_> = written.records.iter().map(|record| &record.name).collect();
        let (dead, done) = numbered.into_iter().partition(|name| recorded.contains(name));
        (written.numbered, written.passed) = (dead, done);
        written
    }

    /// What a dead letter says, if this is one.
    pub(super) fn letter(&self, message: &Message) -> Option<Letter> {
        let header = |name: &str| message.properties.headers.get(name);
        let text = |name: &str| header(name).and_then(HeaderValue::as_str);
        let reason = text("x-onceward-reason")?;
        let queue: Arc<str> = text("x-onceward-queue")?.into();
        let attempts = match header("x-onceward-attempts")? {
            HeaderValue::UInt(attempts) => u32::try_from(*attempts).ok()?,
            HeaderValue::Int(attempts) => u32::try_from(*attempts).ok()?,
            _ => return None,
        };
        let letter = |name, fingerprint, is_whole| {
            Some(Letter { name, fingerprint, reason: reason.into(), attempts, is_whole })
        };
        if reason == "unroutable" {
            let id = text(OUTGOING_ID_HEADER)?;
            return letter(id.strip_prefix("dead-").unwrap_or(id).into(), 0, true);
        }
        let known = self.lock();
        let mut original = message.clone();
        original.routing_key = text("x-onceward-routing-key")?.to_owned();
        let copy = copy_of(message).unwrap_or_default();
        let seen = self.read(&known, &queue, &original, copy)?;
        let whole = known.whole.get(&(Arc::clone(&seen.name), seen.fingerprint));
        let is_whole = whole.is_some_and(|all| all.iter().any(|of| is_whole(message, of)));
        letter(seen.name, seen.fingerprint, is_whole)
    }

    /// The message whose result a message with this id is.
    pub(super) fn answered(&self, id: &str) -> Option<Name> {
        self.lock().replies.get(id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn name(&self, identity: Identity) -> Name {
        self.messages.get(&identity).map_or_else(unknown, Arc::clone)
    }

    /// And whether it is a second body's.
    fn of_record(&self, identity: Identity, fingerprint: u64) -> (Name, bool) {
        if let Some(name) = self.messages.get(&identity) {
            return (Arc::clone(name), false);
        }
        if let Some(name) = self.conflicts.get(&identity) {
            return (Arc::clone(name), true);
        }
        (self.without_id.get(&fingerprint).map_or_else(unknown, Arc::clone), false)
    }

    fn key(&self, hash_key: &HashKey, key: KeyId) -> KeyName {
        let queue = self.numbers.get(&key.queue.0);
        let mut keys = queue.and_then(|queue| self.keys.get(queue)).into_iter().flatten();
        let found = keys.find(|(bytes, _)| hash_key.key(key.queue.0, bytes) == key.hash);
        found.map_or_else(unknown, |(_, name)| Arc::clone(name))
    }
}

/// A name for what nobody has published.
fn unknown() -> Name {
    "of nobody".into()
}

fn number(fingerprint: Fingerprint) -> u64 {
    u64::from_le_bytes(*fingerprint.as_bytes())
}

fn tenant(message: &Message, scope: &Scope) -> String {
    let Scope::Header(header) = scope else { return String::new() };
    let value = message.properties.headers.get(header).and_then(HeaderValue::as_str);
    format!("tenant {}", value.unwrap_or_default())
}
