//! The sources of a configuration in one tree: file, then environment, then `--set`, the later one
//! wins.
//!
//! Pure: file text, variables and arguments come in as values. A value replaces the whole value at
//! its path, so `--set queues.orders.deliver='{ type = "log" }'` leaves nothing of the old target.
//! Repeats no value in errors.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::{Errors, Origin};
use super::tree::{self, Table, Value};

/// What the names of our variables begin with; no other variable is looked at.
pub const VARIABLE_PREFIX: &str = "ONCEWARD__";

/// The tree of all sources.
pub(crate) fn merged(
    file: Option<(&Path, &str)>,
    env: impl IntoIterator<Item = (String, String)>,
    set: &[String],
    errors: &Errors,
) -> Table {
    let mut table =
        file.map_or_else(Table::new, |(path, text)| tree::parse_file(path, text, errors));
    add_environment(&mut table, env, errors);
    add_arguments(&mut table, set, errors);
    table
}

/// A variable's keys as they are written, and its value.
struct Variable {
    name: String,
    segments: Vec<String>,
    value: String,
}

fn add_environment(
    table: &mut Table,
    env: impl IntoIterator<Item = (String, String)>,
    errors: &Errors,
) {
    let mut by_lower_name: BTreeMap<String, Variable> = BTreeMap::new();
    for (name, value) in env {
        let Some(keys) = name
            .get(..VARIABLE_PREFIX.len())
            .filter(|prefix| prefix.eq_ignore_ascii_case(VARIABLE_PREFIX))
            .and_then(|prefix| name.get(prefix.len()..))
        else {
            continue;
        };
        let segments = keys.split("__").map(str::to_owned).collect();
        let variable = Variable { segments, value, name };
        let lower_name = variable.name.to_lowercase();
        if let Some(twin) = by_lower_name.get(&lower_name) {
            let problem = format!("the same variable as {}; unset one of them", twin.name);
            errors.add(Origin::Variable(variable.name.into()), "", problem);
            continue;
        }
        by_lower_name.insert(lower_name, variable);
    }
    // From the root inwards: a table first, then what another variable changes in it.
    let mut variables: Vec<Variable> = by_lower_name.into_values().collect();
    variables.sort_by_key(|variable| variable.segments.len());
    for variable in variables {
        let origin = Origin::Variable(variable.name.into());
        if variable.segments.iter().any(String::is_empty) {
            let problem = "a key is empty; write for example ONCEWARD__QUEUES__ORDERS__PREFETCH";
            errors.add(origin, "", problem);
            continue;
        }
        let value = Value::from_text(&variable.value, &origin);
        let added = existing_keys(table, &variable.segments)
            .and_then(|keys| tree::insert(table, &keys, value, &origin));
        if let Err(problem) = added {
            errors.add(origin, "", problem);
        }
    }
}

/// The segments as the keys that are there, whatever their case; lower-case where none is there.
fn existing_keys(root: &Table, segments: &[String]) -> Result<Vec<String>, String> {
    let mut table = Some(root);
    let mut keys = Vec::with_capacity(segments.len());
    for segment in segments {
        let lower = segment.to_lowercase();
        let mut same = table
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .filter(|key| key.to_lowercase() == lower);
        let key = match (same.next(), same.next()) {
            (None, _) => lower,
            (Some(only), None) => only.clone(),
            (Some(_), Some(_)) => {
                return Err(format!("{segment} stands for several keys that differ in case only"));
            }
        };
        table = match table.and_then(|table| table.get(&key)).map(|node| &node.value) {
            Some(Value::Table(inner)) => Some(inner),
            _ => None,
        };
        keys.push(key);
    }
    Ok(keys)
}

fn add_arguments(table: &mut Table, set: &[String], errors: &Errors) {
    for (index, argument) in set.iter().enumerate() {
        // A key in quotes can hold an equals sign: the first one behind a whole key is the right
        // one.
        let split = argument.match_indices('=').find_map(|(at, _)| {
            let (key, value) = argument.split_at_checked(at)?;
            Some((key.trim(), tree::parse_key(key)?, value.get(1..)?))
        });
        let Some((key, keys, value)) = split else {
            let problem = "not KEY=VALUE; write for example queues.orders.prefetch=100";
            errors.add(Origin::SetNumber(index + 1), "", problem);
            continue;
        };
        let origin = Origin::Set(key.into());
        let value = Value::from_text(value, &origin);
        if let Err(problem) = tree::insert(table, &keys, value, &origin) {
            errors.add(origin, "", problem);
        }
    }
}
