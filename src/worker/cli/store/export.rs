//! `onceward store export`: all that the store holds, in a file that another machine can import.

use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use super::{Progress, Told, block_on, store_failed, with_store};
use crate::store::{ExportError, Exported, StoreError, StoreOptions, export};
use crate::worker::cli::{ConfigArgs, Exit, complain};

/// Write all that the store holds as JSON lines
///
/// The format is described in docs/export.md. The file is readable by its owner only, as it has the store's secret key
/// and the states of all keys, those of an encrypted store in clear too; it is there whole or not at all. Ends with 74
/// if the store is damaged: then --skip-damaged writes what can be read.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// File to write, which must not exist; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Leave out what is damaged, tell it and end with 1
    #[arg(long)]
    skip_damaged: bool,
}

pub(super) fn run(args: &ExportArgs) -> Told<Exit> {
    let config = with_store(&args.config)?;
    let exported = if args.output == Path::new("-") {
        to_stdout(&config.store, args.skip_damaged)?
    } else {
        to_file(&config.store, args.skip_damaged, &args.output)?
    };
    let Exported { lines, records, left_out, .. } = exported;
    complain(&format_args!("exported {records} records in {lines} lines"));
    if left_out == 0 {
        return Ok(Exit::Ok);
    }
    complain(&format_args!("{left_out} damages, what they are in was left out"));
    Ok(Exit::Failed)
}

fn to_stdout(store: &StoreOptions, skip_damaged: bool) -> Told<Exported> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        complain(&"an export has the store's secret key: give --output, or redirect it");
        return Err(Exit::Usage);
    }
    write(store, skip_damaged, &mut BufWriter::new(stdout))
}

fn to_file(store: &StoreOptions, skip_damaged: bool, path: &Path) -> Told<Exported> {
    let failed = |error: &dyn std::fmt::Display| {
        complain(&format_args!("{} cannot be written: {error}", path.display()));
        Exit::Failed
    };
    if path.exists() {
        return Err(failed(&"it exists"));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Made with mode 0600, and gone if this ends before it is whole.
    let file = tempfile::Builder::new().prefix(".onceward-export-").tempfile_in(parent);
    let file = file.map_err(|error| failed(&error))?;
    let mut out = BufWriter::new(file);
    let exported = write(store, skip_damaged, &mut out)?;
    let file = out.into_inner().map_err(|error| failed(error.error()))?;
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    file.persist_noclobber(path).map_err(|error| failed(&error.error))?;
    let synced = std::fs::File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(|error| failed(&error))?;
    Ok(exported)
}

fn write(store: &StoreOptions, skip_damaged: bool, out: &mut (dyn Write + Send)) -> Told<Exported> {
    let mut progress = Progress::new("lines");
    let exported = block_on(export(store, skip_damaged, out, &mut progress))?;
    progress.end();
    exported.map_err(|error| match error {
        ExportError::Store(error) => {
            let exit = store_failed(&error);
            if matches!(error, StoreError::Damaged { .. }) && !skip_damaged {
                complain(&"--skip-damaged exports what can be read; `onceward store verify` tells the rest");
            }
            exit
        }
        ExportError::Write(_) => {
            complain(&error);
            Exit::Failed
        }
    })
}
