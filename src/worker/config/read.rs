//! Typed reading of one table: every wrong value and every unknown key is noted, none stops the
//! reading.
//!
//! A key that is wrong reads as absent, so its default stands in and the rest is still checked.
//! Knows neither what the keys mean nor what their values look like: see `values`.

use super::error::{Errors, Origin};
use super::tree::{self, Node, Table, Value};
use super::values::table;

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
        self.read(key, table);
        self.place(key)
    }

    /// The table at `key`, an empty one if there is none, to note problems in it after it was read.
    pub(crate) fn place(&self, key: &str) -> Self {
        Section {
            table: self.table.and_then(|own| own.get(key)).and_then(|node| table(node).ok()),
            origin: self.origin_of(key),
            path: self.path_of(key),
            known: Vec::new(),
            errors: self.errors,
        }
    }

    /// The items of the array at `key`, each as a section for the case that it is a table; `None` if there is no
    /// array.
    pub(crate) fn items(
        &mut self,
        key: &'static str,
        wanted: &str,
    ) -> Option<Vec<(&'a Node, Self)>> {
        let items = self.read(key, |node| match &node.value {
            Value::Array(items) => Ok(items),
            other => Err(format!("{wanted}, found {}", other.type_name())),
        })?;
        let sections = items.iter().enumerate().map(|(index, node)| {
            let section = Section {
                table: table(node).ok(),
                origin: node.origin.clone(),
                path: format!("{}[{index}]", self.path_of(key)),
                known: Vec::new(),
                errors: self.errors,
            };
            (node, section)
        });
        Some(sections.collect())
    }

    /// All keys as tables, in the order they are written, for a table whose keys are names of the
    /// user's.
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
        sections.sort_by(|(_, a), (_, b)| a.origin.cmp(&b.origin));
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
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
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
