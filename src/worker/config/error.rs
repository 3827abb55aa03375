//! What is wrong with a configuration, and where it was written.
//!
//! Errors are collected, never returned one by one. A text names keys, and values only where they
//! cannot be secret: what was given for a URL or an HTTP header is never repeated.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// Everything that is wrong with a configuration, in the order of its sources; one line each when
/// displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// One error that belongs to a file as a whole, such as that it cannot be read.
    #[must_use]
    pub fn whole_file(path: &std::path::Path, problem: impl Into<String>) -> Self {
        Self(vec![ConfigError {
            origin: Origin::WholeFile(path.display().to_string().into()),
            path: String::new(),
            problem: problem.into(),
        }])
    }

    /// One error of a key that shows only in use.
    pub(crate) fn of_key(path: &str, problem: String) -> Self {
        Self(vec![ConfigError { origin: Origin::Nowhere, path: path.to_owned(), problem }])
    }

    /// The errors one by one.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong: `config.toml:12: queues.orders.prefetchh: unknown key; did you mean
/// "prefetch"?`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    origin: Origin,
    path: String,
    problem: String,
}

impl ConfigError {
    /// Where it was written: `config.toml:12`, the name of a variable, or `--set KEY`; empty for
    /// what is nowhere.
    #[must_use]
    pub fn origin(&self) -> String {
        self.origin.to_string()
    }

    /// The dotted path of the key; empty for syntax errors.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong, and what to write instead.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Nowhere {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)
    }
}

/// Where a value was written; ordered as the sources are, weakest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Not written at all.
    Nowhere,
    /// A file that could not be read.
    WholeFile(Arc<str>),
    /// A line of the file, from 1.
    Line(Arc<str>, usize),
    /// A line and column of the file, both from 1.
    Column(Arc<str>, usize, usize),
    /// An environment variable.
    Variable(Arc<str>),
    /// A `--set` that names a key.
    Set(Arc<str>),
    /// A `--set` that names no key, by its position from 1.
    SetNumber(usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::WholeFile(file) => f.write_str(file),
            Self::Line(file, line) => write!(f, "{file}:{line}"),
            Self::Column(file, line, column) => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
            Self::Set(key) => write!(f, "--set {key}"),
            Self::SetNumber(number) => write!(f, "--set number {number}"),
        }
    }
}

/// Collects errors while the configuration is read to its end.
#[derive(Default)]
pub(crate) struct Errors(RefCell<Vec<ConfigError>>);

impl Errors {
    pub(crate) fn add(&self, origin: Origin, path: impl Into<String>, problem: impl Into<String>) {
        self.0.borrow_mut().push(ConfigError {
            origin,
            path: path.into(),
            problem: problem.into(),
        });
    }

    /// Ends the collecting: an error if anything was wrong so far.
    pub(crate) fn check(&self) -> Result<(), ConfigErrors> {
        let mut errors = self.0.take();
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort();
        Err(ConfigErrors(errors))
    }
}
