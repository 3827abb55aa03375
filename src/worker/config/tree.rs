//! Values as they were written, each with the place where it was written.
//!
//! Owns the reading of TOML text and the rule that a value from a stronger source replaces the
//! whole value at its path. Knows no key and no type of the configuration. Has no `Debug`: values
//! can be secrets.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::{Errors, Origin};

/// Keys and what they are set to.
pub(crate) type Table = BTreeMap<String, Node>;

/// A value and where it was written.
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) value: Value,
}

/// What TOML can say, as far as the configuration uses it.
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Table),
    /// Nothing that any key takes, by its name.
    Unusable(&'static str),
}

impl Value {
    /// Its type with an article, for errors.
    pub(crate) const fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Unusable(name) => name,
        }
    }

    /// Reads `text` as a TOML value; what is none is a string.
    pub(crate) fn from_text(text: &str, origin: &Origin) -> Self {
        match DeValue::parse(text.trim()) {
            Ok(value) => from_toml(value.into_inner(), &|_| origin.clone()),
            Err(_) => Self::String(text.to_owned()),
        }
    }
}

/// Reads a TOML file; syntax errors go to `errors`, with line and column.
pub(crate) fn parse_file(path: &Path, text: &str, errors: &Errors) -> Table {
    let file: Arc<str> = path.display().to_string().into();
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut last_line = 0;
    for error in syntax {
        let (line, column) = position(text, error.span().map_or(text.len(), |span| span.start));
        // What follows on the line of an error is mostly its consequence.
        if line != last_line {
            let origin = Origin::Column(Arc::clone(&file), line, column);
            errors.add(origin, "", error.message());
        }
        last_line = line;
    }
    table_from_toml(document.into_inner(), &|offset| {
        Origin::Line(Arc::clone(&file), position(text, offset).0)
    })
}

/// Splits a dotted TOML key such as `queues."orders.eu".prefetch`; `None` if it is none.
pub(crate) fn parse_key(text: &str) -> Option<Vec<String>> {
    if text.contains(['\n', '\r']) {
        return None;
    }
    let document = format!("{text} = 0");
    let mut table = DeTable::parse(&document).ok()?.into_inner();
    let mut keys = Vec::new();
    loop {
        let mut entries = table.into_iter();
        let (key, value) = entries.next()?;
        keys.push(key.into_inner().into_owned());
        // The 0 is the one that was put there, not one behind an equals sign or a # in the text.
        let is_last = value.span().end == document.len();
        match value.into_inner() {
            DeValue::Table(inner) => table = inner,
            DeValue::Integer(_) if is_last => return Some(keys),
            _ => return None,
        }
    }
}

/// Puts `value` at `keys`, in place of what is there.
///
/// # Errors
///
/// If the path goes through something that is no table.
pub(crate) fn insert(
    table: &mut Table,
    keys: &[String],
    value: Value,
    origin: &Origin,
) -> Result<(), String> {
    let Some((key, inner_keys)) = keys.split_first() else {
        return Ok(());
    };
    if inner_keys.is_empty() {
        let origin = origin.clone();
        table.insert(key.clone(), Node { origin, value });
        return Ok(());
    }
    let node = table
        .entry(key.clone())
        .or_insert_with(|| Node { origin: origin.clone(), value: Value::Table(Table::new()) });
    let found = node.value.type_name();
    if let Value::Table(inner) = &mut node.value {
        return insert(inner, inner_keys, value, origin);
    }
    let key = quoted_key(key);
    Err(format!("no key can be set in {key}, which is {found} at {}", node.origin))
}

/// A key as TOML writes it: in quotes if it must be.
pub(crate) fn quoted_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

fn table_from_toml(table: DeTable<'_>, at: &dyn Fn(usize) -> Origin) -> Table {
    let entries = table.into_iter().map(|(key, value)| {
        let node = Node { origin: at(key.span().start), value: from_toml(value.into_inner(), at) };
        (key.into_inner().into_owned(), node)
    });
    entries.collect()
}

fn from_toml(value: DeValue<'_>, at: &dyn Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Unusable("an integer that is out of range"), Value::Integer),
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map_or(Value::Unusable("a float that is out of range"), Value::Float),
        DeValue::Boolean(truth) => Value::Boolean(truth),
        DeValue::Datetime(_) => Value::Unusable("a date or time"),
        DeValue::Array(items) => Value::Array(
            items
                .into_iter()
                .map(|item| Node {
                    origin: at(item.span().start),
                    value: from_toml(item.into_inner(), at),
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(table_from_toml(table, at)),
    }
}

/// Line and column of a byte offset, both from 1; columns count characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_as_toml_splits_them() {
        let keys = |text| parse_key(text).map(|keys| keys.join("|"));
        assert_eq!(keys("a.b-c.d_e").as_deref(), Some("a|b-c|d_e"));
        assert_eq!(keys("queues.\"orders.eu\".key").as_deref(), Some("queues|orders.eu|key"));
        for wrong in ["", "a..b", "a b", "[a]", "a\nb", "a = 1 #", "a.", "{}"] {
            assert_eq!(keys(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn positions_count_lines_and_characters() {
        assert_eq!(position("ab\né=x", 6), (2, 3));
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("a\n", 99), (2, 1));
    }

    #[test]
    fn text_that_is_no_toml_value_is_a_string() {
        let read = |text| Value::from_text(text, &Origin::Nowhere);
        assert!(matches!(read("100"), Value::Integer(100)));
        assert!(matches!(read(" true "), Value::Boolean(true)));
        assert!(matches!(read("30s"), Value::String(text) if text == "30s"));
        assert!(matches!(read("\"100\""), Value::String(text) if text == "100"));
        assert!(matches!(read(""), Value::String(text) if text.is_empty()));
        assert!(matches!(read("amqp://a:b@c/%2f"), Value::String(_)));
        assert!(matches!(read("{ type = \"log\" }"), Value::Table(_)));
        assert!(matches!(read("99999999999999999999"), Value::Unusable(_)));
    }
}
