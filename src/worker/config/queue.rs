//! The tables `[defaults]` and `[queues.NAME]`: the same keys in both, a queue's own win.
//!
//! Owns the rules that tie keys together: retention against retries, a dead-letter queue against
//! its queue, two tables against one queue. What only the broker knows is not checked here.

use std::collections::HashMap;
use std::num::NonZero;
use std::time::Duration;

use super::deliver;
use super::read::Section;
use super::tree::Node;
use super::units::format_duration;
use super::values;
use crate::backoff::Retry;
use crate::broker::{Declare, Owner};
use crate::identity::{OnMissingId, Scope, Source};
use crate::options::{OnConflict, QueueOptions};
use crate::worker::deliver::TargetOptions;

/// One table `[queues.NAME]`.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Name of the table; the queue at the broker can have another.
    pub name: String,
    /// What is consumed and how.
    pub options: QueueOptions,
    /// Where messages go.
    pub deliver: TargetOptions,
}

/// Shortest timeout and retention that mean anything.
const MOMENT: Duration = Duration::from_millis(1);

/// Largest body that may be allowed: RabbitMQ's own default limit was this up to 3.x.
const BODY_BYTES_MAX: u64 = 128 << 20;

/// Reads `[defaults]`; its `queue` is empty, and so is `dead_letter` unless it is written there.
pub(crate) fn read_defaults(section: &mut Section<'_>) -> QueueOptions {
    let base = QueueOptions { dead_letter: String::new(), ..QueueOptions::new("") };
    let defaults = read_shared(section, base);
    check_retention(section, &defaults);
    defaults
}

/// Reads every `[queues.NAME]`; a queue with a wrong or missing target is noted and left out.
pub(crate) fn read_queues(queues: &Section<'_>, defaults: &QueueOptions) -> Vec<QueueConfig> {
    let mut read = Vec::new();
    let mut table_of_queue: HashMap<String, String> = HashMap::new();
    for (name, mut section) in queues.named_sections() {
        let options = read_options(&mut section, name, defaults);
        let queue = options.queue.clone();
        if let Some(other) = table_of_queue.get(&queue) {
            section.error("queue", format!("queue {queue:?} is consumed by {other} too"));
        }
        table_of_queue.insert(queue, queues.path_of(name));
        let target = deliver::read(&mut section, &options.queue);
        section.finish();
        if let Some(deliver) = target {
            read.push(QueueConfig { name: name.to_owned(), options, deliver });
        }
    }
    read
}

fn read_options(section: &mut Section<'_>, name: &str, defaults: &QueueOptions) -> QueueOptions {
    let queue = section.read("queue", |node| match values::name(node)? {
        queue if queue.is_empty() => Err("must not be empty".to_owned()),
        queue => Ok(queue),
    });
    if name.is_empty() && queue.is_none() {
        section.missing("queue", r#""orders""#);
    }
    let mut options = read_shared(section, defaults.clone());
    options.queue = queue.unwrap_or_else(|| name.to_owned());
    if options.dead_letter.is_empty() {
        options.dead_letter = format!("{}.dead", options.queue);
    }
    if options.dead_letter == options.queue {
        let problem = "must not be the queue itself: its dead letters would be consumed again";
        section.error("dead_letter", problem);
    }
    for (key, value) in [("queue", &options.queue), ("dead_letter", &options.dead_letter)] {
        if value.len() > 255 && !section.has(key) {
            section.error(key, format!("its default has {} bytes; AMQP allows 255", value.len()));
        }
    }
    if ["retention", "timeout", "retry"].iter().any(|key| section.has(key)) {
        check_retention(section, &options);
    }
    options
}

/// The keys that both kinds of table have, over what holds without them.
fn read_shared(section: &mut Section<'_>, base: QueueOptions) -> QueueOptions {
    let mut options = base;
    set(&mut options.prefetch, section.read("prefetch", prefetch));
    let concurrency = section.read("concurrency", values::integer::<usize>(1, 65_535));
    set(&mut options.concurrency, concurrency.and_then(NonZero::new));
    set(&mut options.timeout, section.read("timeout", values::duration(MOMENT)));
    set(&mut options.retention, section.read("retention", values::duration(MOMENT)));
    read_retry(section.section("retry"), &mut options.retry);
    let identity = &mut options.identity;
    set(&mut identity.on_missing_id, section.read("on_missing_id", values::one_of(ON_MISSING_ID)));
    set(&mut options.on_conflict, section.read("on_conflict", values::one_of(ON_CONFLICT)));
    set(&mut options.dead_letter, section.read("dead_letter", values::name));
    let body_bytes_max = section.read("max_body", values::size(1, BODY_BYTES_MAX));
    set(&mut options.body_bytes_max, body_bytes_max.map(|bytes| bytes as usize));
    set(&mut options.declare, section.read("declare", values::one_of(DECLARE)));
    set(&mut options.owner, section.read("owner", values::one_of(OWNER)));
    set(&mut identity.id, section.read("id", id_sources));
    set(&mut identity.key, section.read("key", sources));
    set(&mut identity.scope, section.read("scope", scope));
    if identity.id.is_empty() && identity.on_missing_id == OnMissingId::DeadLetter {
        let problem = "empty, so every message would be dead-lettered; name a source, or set \
                       on_missing_id = \"fingerprint\"";
        section.error("id", problem);
        identity.id = vec![Source::MessageId];
    }
    options
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

const ON_MISSING_ID: &[(&str, OnMissingId)] =
    &[("dead-letter", OnMissingId::DeadLetter), ("fingerprint", OnMissingId::Fingerprint)];

const ON_CONFLICT: &[(&str, OnConflict)] =
    &[("dead-letter", OnConflict::DeadLetter), ("skip", OnConflict::Skip)];

const DECLARE: &[(&str, Declare)] =
    &[("passive", Declare::Passive), ("quorum", Declare::Quorum), ("classic", Declare::Classic)];

const OWNER: &[(&str, Owner)] = &[("single", Owner::Single), ("shared", Owner::Shared)];

fn prefetch(node: &Node) -> Result<NonZero<u16>, String> {
    let prefetch = values::integer::<u16>(1, 65_535)(node)
        .map_err(|problem| format!("{problem} (it bounds the memory for bodies)"))?;
    NonZero::new(prefetch).ok_or_else(|| "must not be 0".to_owned())
}

fn read_retry(mut section: Section<'_>, retry: &mut Retry) {
    let max_attempts = section.read("max_attempts", values::integer::<u32>(1, u32::MAX.into()));
    set(&mut retry.max_attempts, max_attempts.and_then(NonZero::new));
    set(&mut retry.initial, section.read("initial", values::duration(Duration::ZERO)));
    set(&mut retry.max, section.read("max", values::duration(Duration::ZERO)));
    set(&mut retry.factor, section.read("factor", values::number(1.0)));
    set(&mut retry.jitter, section.read("jitter", values::boolean));
    section.finish();
}

fn sources(node: &Node) -> Result<Vec<Source>, String> {
    let source = |text: String| {
        text.parse().map_err(|error: crate::identity::ParseSourceError| error.to_string())
    };
    values::strings(node)?.into_iter().map(source).collect()
}

fn id_sources(node: &Node) -> Result<Vec<Source>, String> {
    let sources = sources(node)?;
    if sources.contains(&Source::RoutingKey) {
        return Err("routing-key tells no messages apart; it can only be used in key".to_owned());
    }
    Ok(sources)
}

fn scope(node: &Node) -> Result<Scope, String> {
    let text = values::string(node)?;
    match text.split_once(':') {
        Some(("header", name)) if !name.is_empty() => Ok(Scope::Header(name.to_owned())),
        _ if text == "queue" => Ok(Scope::Queue),
        _ if text == "global" => Ok(Scope::Global),
        _ => Err(format!(r#"{text:?} is not known; write "queue", "global" or "header:NAME""#)),
    }
}

/// A record that leaves before the last attempt of a redelivered message would let it take effect
/// twice.
fn check_retention(section: &Section<'_>, options: &QueueOptions) {
    let attempts = options.retry.max_attempts.get();
    let span = options.retry.span();
    let longest = span.saturating_add(options.timeout.saturating_mul(attempts));
    if options.retention > longest {
        return;
    }
    section.error(
        "retention",
        format!(
            "{} is not longer than all attempts of one message can take, {} ({attempts} times \
             timeout {} and waits of {}); lengthen retention or shorten retry",
            format_duration(options.retention),
            format_duration(longest),
            format_duration(options.timeout),
            format_duration(span),
        ),
    );
}
