//! The commands of the command line, one file each, and what they share: how they find their configuration, how
//! they end, and how they log.

use std::process::ExitCode;

pub mod check;
mod demo;
mod forget;
mod inspect;
mod logging;
mod panics;
mod publish;
mod quarantine;
mod reconcile;
mod run;
mod scope;
mod source;
mod store;

pub use self::source::ConfigArgs;

/// Consume RabbitMQ queues so that the effect of every message happens once.
#[derive(Debug, clap::Parser)]
#[command(name = "onceward", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the promise under fire: twins, lost connections and crashes, with nothing to install
    Demo(demo::DemoArgs),
    /// Consume the configured queues and hand each new message to its target
    Run(run::RunArgs),
    /// Check the configuration, and reckon memory and disk
    Check(check::CheckArgs),
    /// Publish one message, with its body from standard input
    Publish(publish::PublishArgs),
    /// Tell what a stopped worker's store knows of one id
    Inspect(inspect::InspectArgs),
    /// Have a stopped worker's store forget one id, so that its next delivery runs
    Forget(forget::ForgetArgs),
    /// Compare a list of ids with what a stopped worker's store knows of one queue
    Reconcile(reconcile::ReconcileArgs),
    /// Count, check, copy or rewrite the whole store of a stopped worker
    Store(store::StoreArgs),
    /// Take a message that cannot be parsed out of the head of its queue, and save it
    Quarantine(quarantine::QuarantineArgs),
}

/// How a command ends; users script against these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 69,
    Store = 74,
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    panics::install();
    match <Cli as clap::Parser>::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Publish(args) => publish::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Forget(args) => forget::run(&args),
        Command::Reconcile(args) => reconcile::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Quarantine(args) => quarantine::run(&args),
    }
}

/// Tells on standard error why a command failed, or what to beware of; a reader that has gone away is no failure.
pub(crate) fn complain(text: &dyn std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "onceward: {text}");
}

/// Prints to standard output; a reader that has gone away, such as `head`, is no failure.
pub(crate) fn print(text: &dyn std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A time in milliseconds since 1970, as people write it.
pub(crate) fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

/// The runtime of a command: threads as many as cores.
///
/// # Errors
///
/// If the system gives no threads.
pub(crate) fn tokio_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context as _;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the system gives no threads for the runtime")
}
