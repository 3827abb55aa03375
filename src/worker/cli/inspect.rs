//! `onceward inspect`: what the store of a stopped worker knows of one id.
//!
//! A running worker has its store for itself: then this says so, and ends with 69.

use std::process::ExitCode;

use serde_json::json;

use super::scope::scope;
use super::store::with_store;
use super::{ConfigArgs, Exit, complain, print, time, tokio_runtime};
use crate::message::escape;
use crate::store::{Inspection, Known, Outcome, StoreError, inspect};

/// Options of `onceward inspect`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The id, as the producer sent it
    id: String,
    /// Queue: a name in the configuration, or else a queue of the broker
    #[arg(short, long)]
    queue: String,
    /// Tenant, if the queue's ids are scoped by a header
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks: 0 whatever it finds, 69 if a worker has the store, 74 if the store is damaged, 78 with a wrong configuration.
pub(crate) fn run(args: &InspectArgs) -> ExitCode {
    let config = match with_store(&args.config) {
        Ok(config) => config,
        Err(exit) => return exit.into(),
    };
    let scope = match scope(&config, &args.queue, args.tenant.as_deref()) {
        Ok(scope) => scope,
        Err(problem) => {
            complain(&problem);
            return Exit::Failed.into();
        }
    };
    let runtime = match tokio_runtime() {
        Ok(runtime) => runtime,
        Err(failed) => {
            complain(&format_args!("{failed:#}"));
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(inspect(&config.store, scope, args.id.as_bytes())) {
        Ok(found) => {
            print(&if args.json { as_json(&found).to_string() } else { as_text(args, &found) });
            Exit::Ok.into()
        }
        Err(in_use @ StoreError::InUse { .. }) => {
            complain(&in_use);
            Exit::Unreachable.into()
        }
        Err(failed) => {
            complain(&failed);
            Exit::Store.into()
        }
    }
}

fn as_text(args: &InspectArgs, found: &Inspection) -> String {
    let id = escape(args.id.as_bytes());
    match found {
        Inspection::Known(known) => {
            let Known { outcome, attempts, fingerprint, dead_letter_pending, .. } = known;
            let (committed, expires) = (time(known.committed_at_ms), time(known.expires_at_ms));
            let ended = match outcome {
                Outcome::Done => "done".to_owned(),
                Outcome::Forgotten(note) => {
                    format!("forgotten by an operator: {}", escape(note.reason.as_bytes()))
                }
                Outcome::Dead(note) => {
                    let pending = if *dead_letter_pending {
                        ", its dead letter is not confirmed yet"
                    } else {
                        ""
                    };
                    format!(
                        "dead: {} ({}){pending}",
                        note.reason.name(),
                        escape(note.error.as_bytes())
                    )
                }
            };
            format!(
                "{id} in {}: {ended}\n  when         {committed}\n  attempts     {attempts}\n  \
                 fingerprint  {fingerprint}\n  known until  {expires}",
                args.queue
            )
        }
        Inspection::Unfinished { attempts, first_seen_ms } => format!(
            "{id} in {}: not done, {attempts} attempts since {}",
            args.queue,
            time(*first_seen_ms)
        ),
        Inspection::Expired => {
            format!("{id} in {}: was known, and its record has expired since", args.queue)
        }
        Inspection::Numbered => format!(
            "{id} in {}: done, as the watermark of its producer says; there is no record of a numbered message",
            args.queue
        ),
        Inspection::Unsure => format!(
            "{id} in {}: may have been done: its number is below a gap that was given up",
            args.queue
        ),
        Inspection::Unknown => format!(
            "{id} in {}: not known: never delivered, still on its first attempt, or past its retention",
            args.queue
        ),
    }
}

fn as_json(found: &Inspection) -> serde_json::Value {
    match found {
        Inspection::Known(known) => {
            let Known { outcome, attempts, fingerprint, dead_letter_pending, .. } = known;
            let (committed, expires) = (time(known.committed_at_ms), time(known.expires_at_ms));
            let mut json = json!({
                "known": true, "outcome": "done", "when": committed, "expires": expires,
                "attempts": attempts, "fingerprint": fingerprint,
            });
            if let (Outcome::Forgotten(note), Some(fields)) = (outcome, json.as_object_mut()) {
                fields.insert("outcome".to_owned(), "forgotten".into());
                fields.insert("reason".to_owned(), note.reason.clone().into());
            }
            if let (Outcome::Dead(note), Some(fields)) = (outcome, json.as_object_mut()) {
                fields.insert("outcome".to_owned(), "dead".into());
                fields.insert("reason".to_owned(), note.reason.name().into());
                fields.insert("error".to_owned(), note.error.clone().into());
                fields.insert("first_seen".to_owned(), time(note.first_seen_ms).into());
                fields.insert("dead_letter_pending".to_owned(), (*dead_letter_pending).into());
            }
            json
        }
        Inspection::Unfinished { attempts, first_seen_ms } => json!({
            "known": false, "attempts": attempts, "first_seen": time(*first_seen_ms),
        }),
        Inspection::Expired => json!({ "known": false, "expired": true }),
        Inspection::Numbered => json!({ "known": true, "outcome": "done", "by": "watermark" }),
        Inspection::Unsure => json!({ "known": false, "unsure": true }),
        Inspection::Unknown => json!({ "known": false }),
    }
}
