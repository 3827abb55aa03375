//! `onceward forget`: an operator's word that a message is to run again.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::scope::scope;
use super::store::{Told, block_on, store_failed, with_store};
use super::{ConfigArgs, Exit, complain, print, time};
use crate::message::escape;
use crate::store::{ForgetError, ForgetRequest, Forgotten, Outcome, forget};

/// Have a stopped worker's store forget one id, so that its next delivery runs
///
/// A record with the reason takes the place of what is known, and `onceward inspect` shows it. Finished steps of a dead
/// message stay, so that it does not repeat what was done when it is sent again. A step that was begun and of which
/// nobody knows whether it happened is forgotten with the message and runs again: find out first. Refused with 1 is an
/// id that is not known or has not ended, whose next delivery runs anyway; one whose dead letter or outgoing messages
/// wait for the broker, until the worker has published them; and one that a producer has numbered and whose watermark
/// says that it is done, which cannot be forgotten.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ForgetArgs {
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
    /// Why; kept in the store
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    reason: String,
    /// Tell what would be forgotten, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Forgets: 0 if it did, 1 if there is nothing to forget, 69 if a worker has the store, 74 if the store fails, 78 with
/// a wrong configuration.
pub(crate) fn run(args: &ForgetArgs) -> ExitCode {
    forgotten(args).unwrap_or_else(|exit| exit).into()
}

fn forgotten(args: &ForgetArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let scope = scope(&config, &args.queue, args.tenant.as_deref()).map_err(|problem| {
        complain(&problem);
        Exit::Failed
    })?;
    let (id, reason) = (args.id.as_bytes(), args.reason.as_str());
    let request = ForgetRequest { scope, id, reason, dry_run: args.dry_run };
    match block_on(forget(&config.store, request))? {
        Ok(found) => {
            let text = if args.json { as_json(args, &found) } else { as_text(args, &found) };
            print(&text);
            Ok(Exit::Ok)
        }
        Err(ForgetError::Store(error)) => Err(store_failed(&error)),
        Err(refused) => {
            let id = escape(args.id.as_bytes());
            complain(&format_args!("{id} in {} is not forgotten: {refused}", args.queue));
            Err(Exit::Failed)
        }
    }
}

fn as_text(args: &ForgetArgs, found: &Forgotten) -> String {
    let (id, when) = (escape(args.id.as_bytes()), time(found.committed_at_ms));
    let verb =
        if args.dry_run { "would be forgotten" } else { "is forgotten, its next delivery runs" };
    let was = match &found.outcome {
        Outcome::Dead(note) => format!("dead ({})", note.reason.name()),
        Outcome::Done | Outcome::Forgotten(_) => "done".to_owned(),
    };
    let steps = match found.steps {
        0 => String::new(),
        steps => format!("; {steps} steps of it stay, and are not repeated"),
    };
    let begun = match found.begun_steps {
        0 => String::new(),
        begun => format!("; {begun} steps that were begun and not finished run again"),
    };
    format!("{id} in {} {verb}: it was {was} since {when}{steps}{begun}", args.queue)
}

fn as_json(args: &ForgetArgs, found: &Forgotten) -> String {
    let (outcome, reason) = match &found.outcome {
        Outcome::Dead(note) => ("dead", Some(note.reason.name())),
        Outcome::Done | Outcome::Forgotten(_) => ("done", None),
    };
    json!({
        "forgotten": !args.dry_run, "dry_run": args.dry_run, "outcome": outcome, "reason": reason,
        "when": time(found.committed_at_ms), "attempts": found.attempts, "steps": found.steps,
        "begun_steps": found.begun_steps,
    })
    .to_string()
}
