//! `onceward store`: commands on the whole store of a stopped worker, and what they and their like share.
//!
//! A running worker has its store for itself: then all of them say so, and end with 69.

mod compact;
mod export;
mod import;
mod progress;
mod stats;
mod verify;

use std::process::ExitCode;

pub(super) use self::progress::Progress;
use super::{ConfigArgs, Exit, complain, tokio_runtime};
use crate::store::{StoreError, is_store};
use crate::worker::config::Config;

/// Options of `onceward store`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Count records, states and all else in the store
    Stats(stats::StatsArgs),
    /// Read every row, and tell each damage
    Verify(verify::VerifyArgs),
    /// Write all that the store holds as JSON lines
    Export(export::ExportArgs),
    /// Make the store of an export, where there is none
    Import(import::ImportArgs),
    /// Rewrite the store, so that its files take no more than they must
    Compact(compact::CompactArgs),
}

/// Does it: 0 if all is well, 1 if not, 69 if a worker has the store, 74 if it cannot be opened, 78 with a wrong
/// configuration.
pub(crate) fn run(args: &StoreArgs) -> ExitCode {
    let exit = match &args.command {
        Command::Stats(args) => stats::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Export(args) => export::run(args),
        Command::Import(args) => import::run(args),
        Command::Compact(args) => compact::run(args),
    };
    exit.unwrap_or_else(|exit| exit).into()
}

/// How a command ends that could not do its work, which was told.
pub(super) type Told<T> = Result<T, Exit>;

/// The configuration, whose store must be there.
pub(super) fn with_store(args: &ConfigArgs) -> Told<Config> {
    let config = configured(args)?;
    if !is_store(&config.store.path) {
        complain(&format_args!("there is no store in {}", config.store.path.display()));
        return Err(Exit::Failed);
    }
    Ok(config)
}

/// The configuration.
pub(super) fn configured(args: &ConfigArgs) -> Told<Config> {
    args.load().map_err(|errors| {
        complain(&errors);
        Exit::Configuration
    })
}

/// Runs the work of a command on a runtime.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Told<T> {
    match tokio_runtime() {
        Ok(runtime) => Ok(runtime.block_on(work)),
        Err(failed) => {
            complain(&format_args!("{failed:#}"));
            Err(Exit::Failed)
        }
    }
}

/// Tells why the store cannot be used.
pub(super) fn store_failed(error: &StoreError) -> Exit {
    complain(error);
    match error {
        StoreError::InUse { .. } => Exit::Unreachable,
        _ => Exit::Store,
    }
}
