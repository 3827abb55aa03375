//! `onceward store compact`: the same store in smaller files.

use serde_json::json;

use super::{Progress, Told, block_on, store_failed, with_store};
use crate::store::compact;
use crate::worker::cli::{ConfigArgs, Exit, print};
use crate::worker::config::units::approximate_size;

/// Rewrite the store, so that its files take no more than they must
///
/// Files of a store are filled again and never shrink by themselves. Needs room for a second copy meanwhile. A crash
/// leaves the store as it was or as it is to be.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompactArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CompactArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let mut progress = Progress::new("rows");
    let compacted = block_on(compact(&config.store, &mut progress))?;
    progress.end();
    let compacted = compacted.map_err(|error| store_failed(&error))?;
    let (rows, before, after) = (compacted.rows, compacted.before_bytes, compacted.after_bytes);
    if args.json {
        print(&json!({ "rows": rows, "before_bytes": before, "after_bytes": after }));
    } else {
        let (before, after) = (approximate_size(before), approximate_size(after));
        print(&format_args!("{rows} rows: {before} before, {after} after"));
    }
    Ok(Exit::Ok)
}
