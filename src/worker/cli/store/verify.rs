//! `onceward store verify`: whether everything in the store is what was written.

use serde_json::json;

use super::{Progress, Told, block_on, store_failed, with_store};
use crate::identity::hex;
use crate::message::escape;
use crate::store::{Damage, Watch, verify};
use crate::worker::cli::{ConfigArgs, Exit, print};

/// Read every row, and tell each damage
///
/// Each damage is a line on standard output: the row, its key in hexadecimal, and what is wrong with it. Ends with 1 if
/// there is any, and with 74 if the store cannot be opened at all. A damaged store can be saved as far as it can be
/// read: see `onceward store export --skip-damaged`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// Prints what is found on the way.
struct Printer {
    progress: Progress,
    json: bool,
}

impl Watch for Printer {
    fn progress(&mut self, done: u64) {
        self.progress.progress(done);
    }

    fn damaged(&mut self, damage: &Damage) {
        let Damage { key, row, problem } = damage;
        if self.json {
            print(&json!({ "row": row, "key": hex(key), "problem": problem }));
        } else {
            let line = format!("{row} (key {}): {problem}", hex(key));
            print(&escape(line.as_bytes()));
        }
    }
}

pub(super) fn run(args: &VerifyArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let mut printer = Printer { progress: Progress::new("rows"), json: args.json };
    let verified = block_on(verify(&config.store, &mut printer))?;
    printer.progress.end();
    let verified = verified.map_err(|error| store_failed(&error))?;
    let (rows, records, damages) = (verified.rows, verified.records, verified.damages);
    let left_over = verified.left_over;
    if args.json {
        let summary = json!({
            "ok": damages == 0, "rows": rows, "records": records, "damages": damages,
            "left_over": left_over,
        });
        print(&summary);
    } else {
        let found =
            if damages == 0 { "no damage".to_owned() } else { format!("{damages} damages") };
        let left_over = match left_over {
            0 => String::new(),
            values => format!("; {values} values that a crash has left, which the worker removes"),
        };
        print(&format_args!("{rows} rows with {records} records: {found}{left_over}"));
    }
    Ok(if damages == 0 { Exit::Ok } else { Exit::Failed })
}
