//! What a run left behind, as facts in words; two runs are compared fact by fact.
//!
//! Hashes and ids that differ from store to store are named by what they stand for. What a crash may change is left
//! out: attempts, times, the texts of errors, how often something arrived under one id.

use std::collections::{BTreeMap, HashMap};

use super::bed::Testbed;
use super::books::{self, Books};
use super::origin::{self, Origin, inbound};
use super::wire::By;
use crate::effects::EncodedState;
use crate::message::{HeaderValue, Message, Properties, escape};

/// Longest value that is shown whole, in characters.
const SHOWN_CHARS_MAX: usize = 300;

/// The state of the world at the end of a run.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// What, and what it is.
    facts: BTreeMap<Fact, String>,
    /// What is wrong whatever the other runs are like.
    pub(super) faults: Vec<String>,
}

/// In the order in which differences are told: what the user has named first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Observation(String),
    State(String),
    Outcome(String),
    Result(String),
    Published(String),
}

impl Fact {
    fn name(&self) -> &str {
        match self {
            Self::Observation(name)
            | Self::State(name)
            | Self::Outcome(name)
            | Self::Result(name)
            | Self::Published(name) => name,
        }
    }
}

impl Snapshot {
    pub(super) fn of(bed: &Testbed) -> Self {
        let mut snapshot = Self::default();
        for (name, read) in &bed.observations {
            snapshot.facts.insert(Fact::Observation(format!("observation {name:?}")), read());
        }
        bed.runtime.block_on(snapshot.read_store(bed));
        snapshot.read_published(bed);
        snapshot
    }

    /// How this run differs from the clean one; empty if it does not.
    pub(super) fn differences(&self, clean: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut facts: Vec<&Fact> = self.facts.keys().chain(clean.facts.keys()).collect();
        facts.sort();
        facts.dedup();
        for fact in facts {
            let name = fact.name();
            match (self.facts.get(fact), clean.facts.get(fact)) {
                (Some(here), Some(clean)) if here != clean => differences.push(format!(
                    "{name} is \"{}\", in the clean run \"{}\"",
                    shown(here),
                    shown(clean)
                )),
                (Some(here), None) => differences
                    .push(format!("{name} is \"{}\", the clean run has none", shown(here))),
                (None, Some(clean)) => differences.push(format!(
                    "{name} is missing, in the clean run it is \"{}\"",
                    shown(clean)
                )),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        differences.extend(self.faults.iter().cloned());
        differences
    }

    async fn read_store(&mut self, bed: &Testbed) {
        let books = Books::open(&bed.world).await;
        let books = books.unwrap_or_else(|error| panic!("the store cannot be read: {error}"));
        for queue in &bed.world.queues {
            let options = &queue.options;
            let name = &options.queue;
            for message in inbound(&bed.world, options) {
                let Some(key) = &message.key else { continue };
                let state = books.state(name, key).await;
                let state =
                    state.unwrap_or_else(|error| panic!("the state of key \"{key}\": {error}"));
                if let Some(state) = state {
                    let latest = state.latest;
                    let mut text =
                        books::value_of(state).map_or_else(String::new, |s| readable(&s));
                    if let Some(latest) = latest {
                        text.push_str(&format!(" (latest version {latest})"));
                    }
                    let fact = format!("the state of key \"{key}\" of queue {name:?}");
                    self.facts.insert(Fact::State(fact), text);
                }
            }
            for (id, ending) in bed.endings(options).await {
                let of = format!("of message \"{id}\" of queue {name:?}");
                self.facts.insert(Fact::Outcome(format!("the outcome {of}")), ending.outcome);
                if let Some(result) = ending.result {
                    self.facts.insert(Fact::Result(format!("the result {of}")), escape(&result));
                }
            }
        }
    }

    fn read_published(&mut self, bed: &Testbed) {
        let origins = origin::origins(&bed.world);
        let mut first: HashMap<String, Message> = HashMap::new();
        // Per queue and key of the senders the last that was sent.
        let mut last: HashMap<(String, String), (usize, Option<u32>)> = HashMap::new();
        let log = bed.world.wire.log();
        for logged in log.iter().filter(|logged| logged.by == By::Worker) {
            let message = &*logged.message;
            let origin = message.properties.message_id.as_ref().and_then(|id| origins.get(id));
            let (name, text) = named(message, origin);
            if let Some(id) = origin::reader_id(message) {
                if let Some(before) = first.get(id) {
                    if before != message {
                        let (before, now) = (shown_message(before), shown_message(message));
                        self.faults.push(format!(
                            "{name} was published twice under one id with different contents: {}, then {}",
                            shown(&before),
                            shown(&now)
                        ));
                    }
                    continue;
                }
                first.insert(id.to_owned(), message.clone());
            }
            if let Some(Origin { key: Some(key), queue, arrival, index: Some(index), .. }) = origin
            {
                let place = (*arrival, Some(*index));
                let before = last.insert((queue.clone(), key.to_string()), place);
                if before.is_some_and(|before| before > place) {
                    self.faults.push(format!("{name} was overtaken by a later one of its key"));
                }
            }
            self.facts.insert(Fact::Published(name), text);
        }
    }
}

/// What a published message is called, and what is compared of it.
fn named(message: &Message, origin: Option<&Origin>) -> (String, String) {
    let text = |name: &str| message.properties.headers.get(name).and_then(HeaderValue::as_str);
    let id = message.properties.message_id.as_deref().map(|id| escape(id.as_bytes()));
    if let (Some(reason), Some(queue)) = (text("x-onceward-reason"), text("x-onceward-queue")) {
        let of = match origin {
            Some(origin) => format!("what message \"{}\" sent", origin.id),
            None => id.map_or_else(
                || "a message without an id".to_owned(),
                |id| format!("message \"{id}\""),
            ),
        };
        // One id can die twice, as a conflict under each body.
        let body = escape(&message.body);
        let name = format!(
            "the dead letter ({reason}) of {of} of queue {queue:?} with body {}",
            shown(&body)
        );
        return (name, body);
    }
    let name = match origin {
        Some(Origin { queue, id, index: Some(index), .. }) => {
            format!("outgoing message {} of message \"{id}\" of queue {queue:?}", index + 1)
        }
        Some(Origin { queue, id, index: None, .. }) => {
            format!("the reply to message \"{id}\" of queue {queue:?}")
        }
        None => {
            let body = escape(&message.body);
            let unnamed = || format!("without an id and with body {}", shown(&body));
            format!("published message {}", id.map_or_else(unnamed, |id| format!("\"{id}\"")))
        }
    };
    (name, shown_message(message))
}

fn shown_message(message: &Message) -> String {
    let Message { exchange, routing_key, properties, body } = message;
    let body = escape(body);
    let mut text = if exchange.is_empty() {
        format!("{body} to queue {routing_key:?}")
    } else {
        format!("{body} to exchange {exchange:?} with routing key {routing_key:?}")
    };
    // What the runtime sets is no news.
    let plain = Properties {
        message_id: properties.message_id.clone(),
        delivery_mode: properties.delivery_mode,
        content_type: properties.content_type.clone(),
        ..Properties::default()
    };
    if *properties != plain {
        text.push_str(&format!(", {properties:?}"));
    }
    text
}

fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

/// Postcard does not describe itself, so only plain types are shown as what they are.
fn readable(state: &EncodedState) -> String {
    fn plain<S: crate::effects::State + std::fmt::Debug>(state: &EncodedState) -> Option<String> {
        let is_plain = (&*state.name, state.version) == (S::NAME, S::VERSION);
        is_plain.then(|| state.decode::<S>().ok().map(|value| format!("{value:?}"))).flatten()
    }
    plain::<i64>(state)
        .or_else(|| plain::<u64>(state))
        .or_else(|| plain::<i32>(state))
        .or_else(|| plain::<u32>(state))
        .or_else(|| plain::<f64>(state))
        .or_else(|| plain::<bool>(state))
        .or_else(|| plain::<String>(state))
        .unwrap_or_else(|| {
            let EncodedState { name, version, bytes } = state;
            format!("{name} version {version}: {}", crate::identity::hex(bytes))
        })
}
