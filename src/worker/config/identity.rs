//! The keys that say how messages are told apart and ordered: `id`, `key`, `scope` and `on_missing_id`.
//!
//! A source is a text, or in `id` a table of two texts. What sources may be combined is judged with the other options.

use super::read::Section;
use super::tree::{Node, Value};
use super::values;
use crate::identity::{IdentityRules, OnMissingId, ParseSourceError, Scope, Source};

const ON_MISSING_ID: &[(&str, OnMissingId)] =
    &[("dead-letter", OnMissingId::DeadLetter), ("fingerprint", OnMissingId::Fingerprint)];

/// Reads the keys that are written over what holds without them.
pub(crate) fn read(section: &mut Section<'_>, rules: &mut IdentityRules) {
    let on_missing_id = section.read("on_missing_id", values::one_of(ON_MISSING_ID));
    rules.on_missing_id = on_missing_id.unwrap_or(rules.on_missing_id);
    if let Some(id) = read_ids(section) {
        rules.id = id;
    }
    if let Some(key) = section.read("key", keys) {
        rules.key = key;
    }
    if let Some(scope) = section.read("scope", scope) {
        rules.scope = scope;
    }
}

/// `None` if anything in it is wrong, which is noted.
fn read_ids(section: &mut Section<'_>) -> Option<Vec<Source>> {
    const WANTED: &str = "must be an array such as [\"message-id\"]";
    let mut ids = Some(Vec::new());
    for (node, item) in section.items("id", WANTED)? {
        let id = match &node.value {
            Value::Table(_) => sequence(item),
            Value::String(text) => match source(text) {
                Ok(source) => Some(source),
                Err(problem) => {
                    section.error("id", problem);
                    None
                }
            },
            other => {
                section.error("id", format!("{WANTED}, found {} in it", other.type_name()));
                None
            }
        };
        ids = ids.zip(id).map(|(ids, id)| [ids, vec![id]].concat());
    }
    ids
}

fn sequence(mut section: Section<'_>) -> Option<Source> {
    let plain = |node: &Node| source(&values::string(node)?);
    let producer = section.required("producer", r#""header:x-producer""#, plain);
    let sequence = section.required("sequence", r#""header:x-sequence""#, plain);
    section.finish();
    Some(Source::Sequence { producer: producer?.into(), sequence: sequence?.into() })
}

fn keys(node: &Node) -> Result<Vec<Source>, String> {
    values::strings(node)?.iter().map(|text| source(text)).collect()
}

fn source(text: &str) -> Result<Source, String> {
    text.parse().map_err(|error: ParseSourceError| error.to_string())
}

fn scope(node: &Node) -> Result<Scope, String> {
    let text = values::string(node)?;
    match text.split_once(':') {
        Some(("header", name)) if !name.is_empty() => Ok(Scope::Header(name.to_owned())),
        _ if text == "queue" => Ok(Scope::Queue),
        _ if text == "global" => Ok(Scope::Global),
        _ => Err(format!(r#"{text:?} is not known; write "queue", "global" or "header:NAME""#)),
    }
}
