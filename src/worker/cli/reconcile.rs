//! `onceward reconcile`: what a producer has sent against what a queue has done.
//!
//! Reads the list line by line, however long it is, and prints each discrepancy as a line of JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};

use super::scope::{broker_name, scope};
use super::store::{Progress, Told, block_on, store_failed, with_store};
use super::{ConfigArgs, Exit, complain, time};
use crate::identity::Source;
use crate::message::{Message, escape};
use crate::store::{InspectScope, Met, Reconciliation, Watch as _};
use crate::worker::config::Config;

/// Compare a list of ids with what a stopped worker's store knows of one queue
///
/// The list has an id a line, or a JSON object {"id": .., "body": .., "type": ..}, or both kinds; with a body, the
/// content is compared too. Each discrepancy is a line of JSON on standard output with one of these problems: missing
/// (not done, or past its retention), failed (dead), forgotten, different (done with another type or body), extra (in
/// the store and not in the list; only dead messages keep their id, of others there is a hash), unreadable (a line of
/// the list). With --tenant extra ones are not told, as the store does not know whose they are. Ends with 1 if there is
/// any discrepancy.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReconcileArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The list; - is standard input
    #[arg(long, value_name = "FILE")]
    against: PathBuf,
    /// Queue: a name in the configuration, or else a queue of the broker
    #[arg(short, long)]
    queue: String,
    /// Tenant, if the queue's ids are scoped by a header
    #[arg(long)]
    tenant: Option<String>,
}

/// Longest line of the list: a body of some size, in JSON.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Compares: 0 if all is as listed, 1 if not, 69 if a worker has the store, 74 if the store is damaged, 78 with a
/// wrong configuration.
pub(crate) fn run(args: &ReconcileArgs) -> ExitCode {
    reconciled(args).unwrap_or_else(|exit| exit).into()
}

fn reconciled(args: &ReconcileArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let failed = |problem: &dyn std::fmt::Display| {
        complain(problem);
        Exit::Failed
    };
    let scope =
        scope(&config, &args.queue, args.tenant.as_deref()).map_err(|text| failed(&text))?;
    if is_numbered(&config, &args.queue) {
        let text = "messages of this queue are numbered: the store has a mark for each producer and no ids";
        return Err(failed(&text));
    }
    let mut list = open(&args.against).map_err(|error| {
        failed(&format_args!("{} cannot be read: {error}", args.against.display()))
    })?;
    let queue = broker_name(&config, &args.queue);
    let compared = block_on(async {
        let mut progress = Progress::new("records");
        let store = Reconciliation::read(&config.store, scope, queue, &mut progress).await;
        progress.end();
        let mut store = store.map_err(|error| store_failed(&error))?;
        if !store.has_queue() {
            return Err(failed(&format_args!(
                "the store has no queue {}",
                escape(queue.as_bytes())
            )));
        }
        let mut tally = Tally::default();
        let read = compare(&mut *list, &mut store, &mut tally);
        read.map_err(|error| {
            failed(&format_args!("{} cannot be read: {error}", args.against.display()))
        })?;
        if !matches!(scope, InspectScope::Tenant(_)) {
            let told = store.extra(|extra| {
                let id = extra.id.map(|id| escape(&id));
                tally.tell(&json!({
                    "problem": if extra.conflicts { "failed" } else { "extra" },
                    "identity": extra.identity, "id": id, "when": time(extra.committed_at_ms),
                    "outcome": if extra.reason.is_some() { "dead" } else { "done" },
                    "reason": extra.reason.map(crate::store::Reason::name),
                }));
            });
            told.await.map_err(|error| store_failed(&error))?;
        }
        Ok(tally)
    })??;
    let Tally { lines, problems } = compared;
    complain(&format_args!("{lines} lines, {problems} discrepancies"));
    Ok(if problems == 0 { Exit::Ok } else { Exit::Failed })
}

fn is_numbered(config: &Config, name: &str) -> bool {
    let queue = config.queues.iter().find(|queue| queue.name == name);
    queue.is_some_and(|queue| {
        let mut sources = queue.options.identity.id.iter();
        sources.all(|source| matches!(source, Source::Sequence { .. }))
    })
}

fn open(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    Ok(if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path)?))
    })
}

/// What was compared.
#[derive(Default)]
struct Tally {
    lines: u64,
    problems: u64,
}

impl Tally {
    fn tell(&mut self, problem: &Value) {
        self.problems += 1;
        // A reader that has gone away is no failure.
        let _ = writeln!(std::io::stdout().lock(), "{problem}");
    }
}

/// A line that is JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    id: String,
    body: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

fn compare(
    list: &mut dyn BufRead,
    store: &mut Reconciliation,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let mut progress = Progress::new("lines");
    let mut line = Vec::new();
    loop {
        line.clear();
        if std::io::Read::take(&mut *list, LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        tally.lines += 1;
        progress.progress(tally.lines);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if let Some(problem) = problem_of(text, store) {
            let mut problem = problem;
            if let Some(fields) = problem.as_object_mut() {
                fields.insert("line".to_owned(), tally.lines.into());
            }
            tally.tell(&problem);
        }
    }
}

fn problem_of(text: &[u8], store: &mut Reconciliation) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    if !text.starts_with(b"{") {
        return problem_with(text, store.meet(text, None));
    }
    let listed: Listed = match serde_json::from_slice(text) {
        Ok(listed) => listed,
        Err(error) => {
            return Some(json!({ "problem": "unreadable", "error": error.to_string() }));
        }
    };
    let message = listed.body.map(|body| {
        let mut message = Message { body: body.into(), ..Message::default() };
        message.properties.kind = listed.kind;
        message
    });
    problem_with(listed.id.as_bytes(), store.meet(listed.id.as_bytes(), message.as_ref()))
}

fn problem_with(id: &[u8], met: Met) -> Option<Value> {
    let id = escape(id);
    Some(match met {
        Met::Same => return None,
        Met::Missing { attempts } => {
            json!({ "problem": "missing", "id": id, "attempts": attempts })
        }
        Met::Failed(reason) => json!({ "problem": "failed", "id": id, "reason": reason.name() }),
        Met::Forgotten => json!({ "problem": "forgotten", "id": id }),
        Met::Different => json!({ "problem": "different", "id": id }),
    })
}
