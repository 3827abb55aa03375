//! The table `[log]`: how much is logged and how it looks.
//!
//! Checks the directive and installs nothing: the subscriber belongs to the binary.

use tracing_subscriber::EnvFilter;

use super::read::Section;
use super::tree::Node;
use super::values;

/// What is logged, and how it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// A directive of [`EnvFilter`], such as `info,onceward=debug`; it parses.
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// Text.
    Text,
}

const FORMATS: &[(&str, LogFormat)] =
    &[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)];

/// Reads the table.
pub(crate) fn read(mut section: Section<'_>) -> LogConfig {
    let format = section.read("format", values::one_of(FORMATS));
    let level = section.read("level", log_level);
    section.finish();
    LogConfig {
        format: format.unwrap_or(LogFormat::Auto),
        level: level.unwrap_or_else(|| "info".to_owned()),
    }
}

fn log_level(node: &Node) -> Result<String, String> {
    let text = values::string(node)?;
    // A misspelt level is a valid directive: it would mean everything of a module of that name.
    for word in text.split(',').map(str::trim) {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let lower = word.to_lowercase();
        let near = |level: &&&str| strsim::damerau_levenshtein(level, &lower) == 1;
        if let Some(level) = levels.iter().find(near) {
            return Err(format!("{word:?} is no level; did you mean {level:?}?"));
        }
    }
    let wanted = r#"write for example "info" or "info,onceward=debug""#;
    EnvFilter::builder().parse(&text).map(|_| text).map_err(|error| format!("{error}; {wanted}"))
}
