//! The key `retention_by` of a queue: retentions of their own by the value of a header.
//!
//! Written but empty is none, so that a queue can do without what `[defaults]` says. Whether a retention is long enough
//! is judged with the other options.

use std::collections::BTreeMap;
use std::time::Duration;

use super::read::Section;
use super::values as value;
use crate::options::RetentionBy;

/// Shortest retention that means anything.
const MOMENT: Duration = Duration::from_millis(1);

/// Reads the table over what holds without it: `header` and `values` can be written alone, `values` as a whole.
pub(crate) fn read(mut section: Section<'_>, base: Option<RetentionBy>) -> Option<RetentionBy> {
    let written_header = section.read("header", value::string);
    let written_values = read_values(section.section("values"));
    let (has_header, has_values) = (section.has("header"), section.has("values"));
    let (base_header, base_values) = base.map(|by| (by.header, by.values)).unwrap_or_default();
    let wrong_header = has_header && written_header.is_none();
    let header = written_header.unwrap_or(base_header);
    let values = if has_values { written_values } else { base_values };
    let is_none = match (header.is_empty(), values.is_empty()) {
        (_, true) if has_values => true,
        (true, _) if has_header && !has_values => true,
        (header, values) => header && values,
    };
    if !is_none && header.is_empty() && !wrong_header {
        section.missing("header", r#""x-type""#);
    }
    if !is_none && values.is_empty() {
        section.missing("values", r#"{ telemetry = "1h", billing = "90d" }"#);
    }
    let is_whole = !is_none && !wrong_header && !header.is_empty() && !values.is_empty();
    section.finish();
    is_whole.then_some(RetentionBy { header, values })
}

fn read_values(section: Section<'_>) -> BTreeMap<String, Duration> {
    let mut values = BTreeMap::new();
    for (value, node) in section.named_nodes() {
        match value::duration(MOMENT)(node) {
            Ok(retention) => {
                values.insert(value.to_owned(), retention);
            }
            Err(problem) => section.error(value, problem),
        }
    }
    values
}
