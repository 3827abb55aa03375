//! `onceward store stats`: what the store holds, in numbers.

use std::fmt::Write as _;

use super::{Progress, Told, block_on, store_failed, with_store};
use crate::message::escape;
use crate::store::{QueueStats, StoreStats, stats};
use crate::worker::cli::{ConfigArgs, Exit, print, time};
use crate::worker::config::units::{approximate_size, format_duration};

/// Options of `onceward store stats`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatsArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let mut progress = Progress::new("rows");
    let counted = block_on(stats(&config.store, &mut progress))?;
    progress.end();
    let counted = counted.map_err(|error| store_failed(&error))?;
    if args.json {
        // Numbers and strings, which JSON always holds.
        print(&serde_json::to_string(&counted).unwrap_or_default());
    } else {
        print(&as_text(&counted).trim_end());
    }
    Ok(Exit::Ok)
}

fn as_text(stats: &StoreStats) -> String {
    let mut text = String::new();
    for queue in &stats.queues {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{}", queue_as_text(queue));
    }
    let outgoing = format!("{} messages whose sends are not confirmed", stats.outgoing);
    let spilled =
        format!("{} large values, {}", stats.spilled, approximate_size(stats.spilled_bytes));
    let rows = [
        ("states", stats.states.to_string()),
        ("steps", stats.steps.to_string()),
        ("outgoing", outgoing),
        ("dead letters", format!("{} not confirmed", stats.pending)),
        ("attempts", format!("{} unfinished messages", stats.attempts)),
        ("ghosts", format!("{} expired records", stats.ghosts)),
        ("watermarks", format!("{} producers", stats.watermarks)),
        ("spilled", spilled),
        ("rows", approximate_size(stats.rows_bytes)),
        ("files", approximate_size(stats.files_bytes)),
        ("format", format!("{}, opened {} times", stats.format, stats.epoch)),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<14}{value}");
    }
    text
}

fn queue_as_text(queue: &QueueStats) -> String {
    let name = escape(queue.queue.as_bytes());
    let class = queue
        .class
        .as_ref()
        .map_or_else(String::new, |class| format!(", class {}", escape(class.as_bytes())));
    let shown = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), time);
    format!(
        "{name}{class}\n  records     {} ({} done, {} dead, {} forgotten), {}\n  retention   {}\n  \
         oldest      {}\n  newest      {}",
        queue.records,
        queue.done,
        queue.dead,
        queue.forgotten,
        approximate_size(queue.bytes),
        format_duration(std::time::Duration::from_millis(queue.retention_ms)),
        shown(queue.oldest_ms),
        shown(queue.newest_ms),
    )
}
