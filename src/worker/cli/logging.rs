//! The subscriber of the binary: text on a terminal, JSON elsewhere, always on standard error.
//!
//! lapin is kept quiet whatever the level says: it logs the bodies of returned messages as warnings, every frame, the
//! password's among them, as traces, and as errors what we expect and report ourselves. sled says as errors what we
//! report in better words.

use std::io::IsTerminal as _;

use tracing::Metadata;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::worker::config::{LogConfig, LogFormat};

/// Crates that would show bodies or passwords. No directive lets them through: one for a module of theirs would win
/// over a directive against the crate.
const QUIET: [&str; 3] = ["lapin", "amq_protocol", "sled"];

/// Installs the subscriber for the whole process.
///
/// # Errors
///
/// If there is one already.
pub(crate) fn install(log: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::new(&log.level).and(filter_fn(may_speak));
    let json = match log.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let lines =
        fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let lines = if json {
        lines.json().with_span_list(false).with_filter(filter).boxed()
    } else {
        lines.with_filter(filter).boxed()
    };
    let installed = tracing_subscriber::registry().with(lines).try_init();
    installed.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}

fn may_speak(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    !QUIET.iter().any(|quiet| target.starts_with(quiet))
}
