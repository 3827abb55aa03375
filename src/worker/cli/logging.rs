//! The subscriber of the binary: text on a terminal, JSON elsewhere, always on standard error.
//!
//! lapin is kept quiet whatever the level says: it logs the bodies of returned messages as warnings, every frame, the
//! password's among them, as traces, and as errors what we expect and report ourselves. sled says as errors what we
//! report in better words.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use crate::worker::config::{LogConfig, LogFormat};

/// Targets that would show bodies or passwords, and what they may say.
const QUIET: [&str; 3] = ["lapin=off", "amq_protocol=off", "sled=off"];

/// Installs the subscriber for the whole process.
///
/// # Errors
///
/// If there is one already.
pub(crate) fn install(log: &LogConfig) -> anyhow::Result<()> {
    let filter = QUIET
        .iter()
        .filter_map(|quiet| quiet.parse::<Directive>().ok())
        .fold(EnvFilter::new(&log.level), EnvFilter::add_directive);
    let json = match log.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let installed = if json {
        subscriber.json().with_span_list(false).try_init()
    } else {
        subscriber.try_init()
    };
    installed.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}
