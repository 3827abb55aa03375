//! `onceward store import`: the store of an export, where there is none.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::{Progress, Told, block_on, configured, store_failed};
use crate::store::{ImportError, Imported, import};
use crate::worker::cli::{ConfigArgs, Exit, complain, print};

/// Make the store of an export, where there is none
///
/// The store's directory must be missing or empty. All or nothing: an export that was cut off or changed is refused,
/// and after a crash no worker starts on the directory until the import is run again. Never run workers on both the
/// exported store and the imported one: they do not know of each other's messages. With [store] key_file the new store
/// is encrypted, so this is the way to another key.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The export; - is standard input
    file: PathBuf,
}

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 1 << 16;

pub(super) fn run(args: &ImportArgs) -> Told<Exit> {
    let config = configured(&args.config)?;
    let mut input: Box<dyn BufRead + Send> = if args.file == Path::new("-") {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, std::io::stdin()))
    } else {
        let file = File::open(&args.file).map_err(|error| {
            complain(&format_args!("{} cannot be read: {error}", args.file.display()));
            Exit::Failed
        })?;
        Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
    };
    let mut progress = Progress::new("lines");
    let imported = block_on(import(&config.store, &mut *input, &mut progress))?;
    progress.end();
    let Imported { lines, records, left_out, .. } = imported.map_err(|error| match error {
        ImportError::Store(error) => store_failed(&error),
        error => {
            complain(&error);
            Exit::Failed
        }
    })?;
    print(&format_args!(
        "imported {records} records in {lines} lines into {}",
        config.store.path.display()
    ));
    if left_out > 0 {
        complain(&format_args!(
            "warning: the export says that {left_out} damages were left out of it"
        ));
    }
    Ok(Exit::Ok)
}
