//! Typed reading of one table: every wrong value and every unknown key is noted, none stops the reading.
//!
//! A key that is wrong reads as absent, so its default stands in and the rest is still checked. Knows TOML
//! types and units, not what the keys mean.

use std::path::PathBuf;
use std::time::Duration;

use super::error::{Errors, Origin};
use super::tree::{self, Node, Table, Value};
use super::units;

/// Longest duration that any key takes: ten years. Longer ones are mistakes, and sums of these never overflow.
const DURATION_MAX: Duration = Duration::from_secs(3_650 * 24 * 60 * 60);

/// A table of the configuration, and which of its keys have a meaning.
pub(crate) struct Section<'a> {
    table: Option<&'a Table>,
    origin: Origin,
    path: String,
    known: Vec<&'static str>,
    errors: &'a Errors,
}

impl<'a> Section<'a> {
    pub(crate) const fn root(table: &'a Table, errors: &'a Errors) -> Self {
        Self {
            table: Some(table),
            origin: Origin::Nowhere,
            path: String::new(),
            known: Vec::new(),
            errors,
        }
    }

    /// Reads one key; a problem is noted at the place where the key is written.
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&'a Node) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key);
        let node = self.table?.get(key)?;
        match parse(node) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.error(key, problem);
                None
            }
        }
    }

    /// Reads a key that has no default.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&'a Node) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.read(key, parse)
    }

    /// The table at `key`, an empty one if there is none.
    pub(crate) fn section(&mut self, key: &'static str) -> Self {
        let table = self.read(key, table);
        Section {
            table,
            origin: self.origin_of(key),
            path: self.path_of(key),
            known: Vec::new(),
            errors: self.errors,
        }
    }

    /// All keys as tables, for a table whose keys are names of the user's.
    pub(crate) fn named_sections(&self) -> Vec<(&'a str, Self)> {
        let mut sections = Vec::new();
        for (name, node) in self.table.into_iter().flatten() {
            match table(node) {
                Ok(table) => sections.push((
                    name.as_str(),
                    Section {
                        table: Some(table),
                        origin: node.origin.clone(),
                        path: self.path_of(name),
                        known: Vec::new(),
                        errors: self.errors,
                    },
                )),
                Err(problem) => self.error(name, problem),
            }
        }
        sections
    }

    /// All keys and their values, for a table whose keys are names of the user's.
    pub(crate) fn named_nodes(&self) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let entries = self.table.into_iter().flatten();
        entries.map(|(name, node)| (name.as_str(), node))
    }

    /// Whether there is a table at all.
    pub(crate) const fn is_table(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the key is written here, right or wrong.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where the key is written; where the table is, if the key is not.
    pub(crate) fn origin_of(&self, key: &str) -> Origin {
        let node = self.table.and_then(|table| table.get(key));
        node.map_or(&self.origin, |node| &node.origin).clone()
    }

    pub(crate) fn path_of(&self, key: &str) -> String {
        let key = tree::quoted_key(key);
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Notes a problem of a key.
    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) {
        let origin = self.origin_of(key);
        self.errors.add(origin, self.path_of(key), problem);
    }

    /// Notes that a key must be there.
    pub(crate) fn missing(&self, key: &str, example: &str) {
        self.error(key, format!("missing; write for example {key} = {example}"));
    }

    /// Notes every key that nothing has asked for.
    pub(crate) fn finish(self) {
        for key in self.table.into_iter().flat_map(Table::keys) {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let advice = nearest(key, &self.known).map_or_else(
                || format!("known here: {}", self.known.join(", ")),
                |name| format!("did you mean {name:?}?"),
            );
            self.error(key, format!("unknown key; {advice}"));
        }
    }
}

/// The name that was probably meant.
pub(crate) fn nearest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    let lower = written.to_lowercase().replace('_', "-");
    let distance = |name: &str| strsim::damerau_levenshtein(&lower, &name.replace('_', "-"));
    let nearest = names.iter().min_by_key(|name| distance(name))?;
    (distance(nearest) <= 1 + nearest.len() / 4).then_some(*nearest)
}

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
            Err(format!(
                "must be a string, found {found}; put it in double quotes"
            ))
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
        other => Err(format!(
            "must be true or false, found {}",
            other.type_name()
        )),
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

/// A duration of at least `min`.
pub(crate) fn duration(min: Duration) -> impl Fn(&Node) -> Result<Duration, String> {
    move |node| {
        let duration = match &node.value {
            Value::String(text) => units::parse_duration(text)?,
            Value::Integer(number) => {
                let examples = units::DURATION_EXAMPLES;
                return Err(format!(
                    "{number} has no unit; write for example {examples}"
                ));
            }
            other => {
                let (found, examples) = (other.type_name(), units::DURATION_EXAMPLES);
                return Err(format!(
                    "must be a duration such as {examples}, found {found}"
                ));
            }
        };
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
        let bytes = match &node.value {
            Value::String(text) => units::parse_size(text)?,
            Value::Integer(number) => {
                let examples = units::SIZE_EXAMPLES;
                return Err(format!(
                    "{number} has no unit; write for example {examples}"
                ));
            }
            other => {
                let (found, examples) = (other.type_name(), units::SIZE_EXAMPLES);
                return Err(format!("must be a size such as {examples}, found {found}"));
            }
        };
        let found = units::format_size(bytes);
        if bytes < min {
            return Err(format!(
                "must be at least {:?}, found {found:?}",
                units::format_size(min)
            ));
        }
        if bytes > max {
            return Err(format!(
                "must be at most {:?}, found {found:?}",
                units::format_size(max)
            ));
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
