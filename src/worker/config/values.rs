//! What a single value can look like: strings, numbers, durations, sizes, words of a closed set.
//!
//! Each function takes a node and says what is wrong with it and what to write, without its path.
//! Repeats values, so nothing here is used for secrets but `string`, which does not.

use std::path::PathBuf;
use std::time::Duration;

use super::read::nearest;
use super::tree::{Node, Table, Value};
use super::units;

/// Longest duration that any key takes: ten years. Longer ones are mistakes, and sums of these
/// never overflow.
const DURATION_MAX: Duration = Duration::from_secs(3_650 * 24 * 60 * 60);

pub(crate) fn table(node: &Node) -> Result<&Table, String> {
    match &node.value {
        Value::Table(table) => Ok(table),
        other => Err(format!("must be a table, found {}", other.type_name())),
    }
}

pub(crate) fn string(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::String(text) => Ok(text.clone()),
        other => {
            let found = other.type_name();
            Err(format!("must be a string, found {found}; put it in double quotes"))
        }
    }
}

/// A string that AMQP can carry as a name.
pub(crate) fn name(node: &Node) -> Result<String, String> {
    let text = string(node)?;
    if text.len() > 255 {
        return Err(format!("has {} bytes; AMQP allows 255", text.len()));
    }
    Ok(text)
}

pub(crate) fn path(node: &Node) -> Result<PathBuf, String> {
    match string(node)? {
        text if text.is_empty() => Err("must not be empty".to_owned()),
        text => Ok(text.into()),
    }
}

pub(crate) fn strings(node: &Node) -> Result<Vec<String>, String> {
    const WANTED: &str = "must be an array of strings such as [\"message-id\"]";
    let Value::Array(items) = &node.value else {
        return Err(format!("{WANTED}, found {}", node.value.type_name()));
    };
    let item = |item: &Node| match &item.value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{WANTED}, found {} in it", other.type_name())),
    };
    items.iter().map(item).collect()
}

pub(crate) fn boolean(node: &Node) -> Result<bool, String> {
    match &node.value {
        Value::Boolean(truth) => Ok(*truth),
        other => Err(format!("must be true or false, found {}", other.type_name())),
    }
}

/// A whole number from `min` to `max`.
pub(crate) fn integer<T: TryFrom<i64>>(min: i64, max: i64) -> impl Fn(&Node) -> Result<T, String> {
    move |node| {
        let wanted = format!("must be a whole number from {min} to {max}");
        let Value::Integer(number) = &node.value else {
            return Err(format!("{wanted}, found {}", node.value.type_name()));
        };
        let in_range = (min..=max).contains(number).then_some(*number);
        in_range
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("{wanted}, found {number}"))
    }
}

/// A number that is at least `min` and not infinite.
pub(crate) fn number(min: f64) -> impl Fn(&Node) -> Result<f64, String> {
    move |node| {
        let wanted = format!("must be a number, at least {min}");
        let number = match &node.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            other => return Err(format!("{wanted}, found {}", other.type_name())),
        };
        if number.is_finite() && number >= min {
            return Ok(number);
        }
        Err(format!("{wanted}, found {number}"))
    }
}

/// A text with a unit; `noun` is what it is, with examples of it.
fn quantity<T>(
    node: &Node,
    noun: &str,
    examples: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, String> {
    match &node.value {
        Value::String(text) => parse(text),
        Value::Integer(number) => {
            Err(format!("{number} has no unit; write for example {examples}"))
        }
        other => {
            let found = other.type_name();
            Err(format!("must be a {noun} such as {examples}, found {found}"))
        }
    }
}

/// A duration of at least `min`.
pub(crate) fn duration(min: Duration) -> impl Fn(&Node) -> Result<Duration, String> {
    move |node| {
        let examples = units::DURATION_EXAMPLES;
        let duration = quantity(node, "duration", examples, units::parse_duration)?;
        if duration < min || duration > DURATION_MAX {
            return Err(format!(
                "must be from {} to {}, found {}",
                units::format_duration(min),
                units::format_duration(DURATION_MAX),
                units::format_duration(duration),
            ));
        }
        Ok(duration)
    }
}

/// A size from `min` to `max`, in bytes.
pub(crate) fn size(min: u64, max: u64) -> impl Fn(&Node) -> Result<u64, String> {
    move |node| {
        let bytes = quantity(node, "size", units::SIZE_EXAMPLES, units::parse_size)?;
        let found = units::format_size(bytes);
        if bytes < min {
            return Err(format!("must be at least {:?}, found {found:?}", units::format_size(min)));
        }
        if bytes > max {
            return Err(format!("must be at most {:?}, found {found:?}", units::format_size(max)));
        }
        Ok(bytes)
    }
}

/// One of these words, and what it stands for.
pub(crate) fn one_of<T: Clone>(words: &[(&str, T)]) -> impl Fn(&Node) -> Result<T, String> {
    move |node| {
        let text = string(node)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(value.clone());
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let advice = nearest(&text, &words).map_or_else(
            || format!("write one of {words:?}"),
            |word| format!("did you mean {word:?}?"),
        );
        Err(format!("{text:?} is not known; {advice}"))
    }
}
