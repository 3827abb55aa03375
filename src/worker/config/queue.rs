//! The tables `[defaults]` and `[queues.NAME]`: the same keys in both, a queue's own win.
//!
//! What options say of each other is judged by the options themselves, and said here where it is written; that two
//! tables cannot have one queue is judged here. What only the broker knows is not checked.

use std::collections::HashMap;
use std::num::NonZero;
use std::time::Duration;

use super::read::Section;
use super::tree::Node;
use super::units::format_duration;
use super::{deliver, identity, protect, retention, values};
use crate::backoff::Retry;
use crate::broker::{Declare, Owner};
use crate::options::{OnConflict, OnDuplicate, OnExpired, OnUnroutable, QueueOptions};
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

/// Largest state or result that may be allowed: it is read, kept in memory and written as a whole.
const VALUE_BYTES_MAX: u64 = 16 << 20;

/// What a message that is sent on to an exchange has beside its body, in bytes: names and properties.
const FORWARDED_BYTES_MAX: usize = 1024;

/// Reads `[defaults]`; its `queue` is empty, and so is `dead_letter` unless it is written there.
pub(crate) fn read_defaults(section: &mut Section<'_>) -> QueueOptions {
    let base = QueueOptions { dead_letter: String::new(), ..QueueOptions::new("") };
    let defaults = read_shared(section, base);
    // It has no queue yet.
    note_problems(section, &defaults, |involved| !involved.contains(&"queue"));
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
        let room = options.outgoing_bytes_max.saturating_sub(FORWARDED_BYTES_MAX);
        if matches!(target, Some(TargetOptions::Exchange(_))) && options.body_bytes_max > room {
            let problem = format!(
                "{} bytes are more than max_outgoing lets through with its properties: {} bytes",
                options.body_bytes_max, room
            );
            section.error("max_body", problem);
        }
        let has_results = matches!(target, Some(TargetOptions::Http(_)) | None);
        if options.on_duplicate == OnDuplicate::Replay && !has_results {
            section.error("on_duplicate", "only the target http has answers to replay".to_owned());
        }
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
    for (key, value) in [("queue", &options.queue), ("dead_letter", &options.dead_letter)] {
        if value.len() > 255 && !section.has(key) {
            section.error(key, format!("its default has {} bytes; AMQP allows 255", value.len()));
        }
    }
    // What is wrong with the defaults alone was said there.
    note_problems(section, &options, |involved| match involved {
        // That it is missing was said above.
        ["queue"] => false,
        _ => involved.contains(&"queue") || involved.iter().any(|key| section.has(key)),
    });
    options
}

fn note_problems(
    section: &Section<'_>,
    options: &QueueOptions,
    concerned: impl Fn(&[&str]) -> bool,
) {
    for found in options.problems(format_duration) {
        if !concerned(found.involved) {
            continue;
        }
        let problem = format!("{} {}", found.value, found.problem);
        match found.class {
            Some(class) => section.place(found.option).place("values").error(&class, problem),
            None => section.error(found.option, problem),
        }
    }
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
    identity::read(section, &mut options.identity);
    set(&mut options.on_conflict, section.read("on_conflict", values::one_of(ON_CONFLICT)));
    set(&mut options.dead_letter, section.read("dead_letter", values::name));
    let body_bytes_max = section.read("max_body", values::size(1, BODY_BYTES_MAX));
    set(&mut options.body_bytes_max, body_bytes_max.map(|bytes| bytes as usize));
    set(&mut options.declare, section.read("declare", values::one_of(DECLARE)));
    set(&mut options.owner, section.read("owner", values::one_of(OWNER)));
    options.retention_by = retention::read(section.section("retention_by"), options.retention_by);
    set(&mut options.on_expired, section.read("on_expired", values::one_of(ON_EXPIRED)));
    set(&mut options.on_duplicate, section.read("on_duplicate", values::one_of(ON_DUPLICATE)));
    set(&mut options.on_unroutable, section.read("on_unroutable", values::one_of(ON_UNROUTABLE)));
    for (key, bytes_max, limit) in [
        ("max_state", &mut options.state_bytes_max, VALUE_BYTES_MAX),
        ("max_result", &mut options.result_bytes_max, VALUE_BYTES_MAX),
        ("max_outgoing", &mut options.outgoing_bytes_max, BODY_BYTES_MAX),
    ] {
        let bytes = section.read(key, values::size(1, limit));
        set(bytes_max, bytes.map(|bytes| bytes as usize));
    }
    protect::read(section, &mut options);
    options
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

const ON_CONFLICT: &[(&str, OnConflict)] =
    &[("dead-letter", OnConflict::DeadLetter), ("skip", OnConflict::Skip)];

const ON_EXPIRED: &[(&str, OnExpired)] =
    &[("process", OnExpired::Process), ("dead-letter", OnExpired::DeadLetter)];

const ON_DUPLICATE: &[(&str, OnDuplicate)] =
    &[("ack", OnDuplicate::Ack), ("replay", OnDuplicate::Replay)];

const ON_UNROUTABLE: &[(&str, OnUnroutable)] =
    &[("hold", OnUnroutable::Hold), ("dead-letter", OnUnroutable::DeadLetter)];

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
