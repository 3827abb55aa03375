//! States of keys: P8 (that of the model, applied to what is done, in order) and P2 (in the commit of its record).
//!
//! Runs the model beside the commits: once as the worker goes on from them, and once as they become durable, because a
//! later life goes on from that.

use super::super::history::{Ended, KeyName};
use super::super::model::{State, Touch};
use super::table::Table;
use super::world::{CommitId, KeyId, Now, World};
use super::{Judge, Predicate, Report};

#[derive(Clone, Copy, Default)]
struct Key {
    durable: Option<State>,
    ahead: Option<State>,
    /// The order in which messages of this key are done is not known.
    is_unordered: bool,
}

#[derive(Default)]
pub(super) struct States {
    keys: Table<Key>,
    /// What each commit makes of the keys that it touches.
    made: Table<Vec<(KeyId, Option<State>)>>,
}

impl Judge for States {
    fn see(&mut self, world: &World<'_>, now: &Now<'_>, report: &mut Report<'_>) {
        if let Some(commit) = now.commit {
            self.commit(world, commit, report);
        }
        for commit in &now.synced {
            for (key, state) in std::mem::take(self.made.row_or_default(*commit)) {
                self.keys.row_or_default(key).durable = state;
            }
        }
        for commit in &now.lost {
            for (key, _) in std::mem::take(self.made.row_or_default(*commit)) {
                let key = self.keys.row_or_default(key);
                key.ahead = key.durable;
            }
        }
    }
}

/// Keys whose messages lie in blocks of several classes of one commit: their order in it is not known.
#[derive(Default)]
struct Mixed<'h> {
    seen: Vec<(KeyId, Option<&'h str>)>,
    keys: Vec<KeyId>,
}

impl<'h> Mixed<'h> {
    fn see(&mut self, key: KeyId, class: Option<&'h str>) {
        if self.seen.iter().any(|(other, of)| *other == key && *of != class) {
            self.keys.push(key);
        }
        self.seen.push((key, class));
    }
}

impl States {
    fn commit(&mut self, world: &World<'_>, id: CommitId, report: &mut Report<'_>) {
        if !world.rules().sees.has_effects() {
            return;
        }
        let commit = &world.commits[id];
        let mut made: Vec<(KeyId, Option<State>)> = Vec::new();
        let mut mixed = Mixed::default();
        for record in commit.records.clone().map(|record| &world.records[record]) {
            let Some(message) = record.message else {
                for message in &world.names[record.name].messages {
                    if let Some(key) = world.messages[*message].key {
                        self.keys.row_or_default(key).is_unordered = true;
                    }
                }
                continue;
            };
            let row = &world.messages[message];
            let has_state = row.rules.is_some_and(|rules| rules.has_model_state);
            let is_new = *record.ended == Ended::Done && !record.is_conflict && !record.is_carried;
            let Some(key) = row.key.filter(|_| has_state && is_new) else { continue };
            mixed.see(key, row.class);
            let state = self.keys.row_or_default(key);
            state.ahead = match Touch::of(row.fingerprint) {
                Touch::Keeps => continue,
                Touch::Sets => Some(State::after(state.ahead, row.name, row.fingerprint)),
                Touch::Removes => None,
            };
            made.retain(|(other, _)| *other != key);
            made.push((key, state.ahead));
        }
        for (key, state) in &mut made {
            let name = world.key_text(*key);
            let written = commit.written.states.iter().rfind(|(written, _)| &**written == name);
            let row = self.keys.row_or_default(*key);
            if mixed.keys.contains(key) {
                let bytes = written.and_then(|(_, bytes)| bytes.as_deref());
                *state = bytes.and_then(State::from_bytes);
                row.ahead = *state;
            } else if !row.is_unordered {
                has_made(commit.number, name, *state, written, report);
            }
        }
        for (name, _) in &commit.written.states {
            let is_made = made.iter().any(|(key, _)| world.key_text(*key) == &**name);
            if !is_made && self.is_judged(world, name) {
                let number = commit.number;
                let what = format!(
                    "commit {number} has a state of key {name}, and no record of a message that made it"
                );
                report.broken(Predicate::P2, what);
            }
        }
        *self.made.row_or_default(id) = made;
    }

    fn is_judged(&mut self, world: &World<'_>, key: &str) -> bool {
        let key = world.keys.iter().find(|(_, name)| **name == key).map(|(key, _)| key);
        key.is_some_and(|key| world.has_state(key) && !self.keys.row_or_default(key).is_unordered)
    }
}

fn has_made(
    number: u64,
    key: &str,
    expected: Option<State>,
    written: Option<&(KeyName, Option<Vec<u8>>)>,
    report: &mut Report<'_>,
) {
    let found = match (written, expected) {
        (Some((_, Some(bytes))), _) => match State::from_bytes(bytes) {
            Some(found) => Some(found),
            None => {
                let what =
                    format!("commit {number} has {} bytes as the state of key {key}", bytes.len());
                return report.broken(Predicate::P8, what);
            }
        },
        (Some((_, None)), _) | (None, None) => None,
        (None, Some(_)) => {
            let what = format!(
                "commit {number} has a record of a message of key {key}, and not the state that it makes"
            );
            return report.broken(Predicate::P2, what);
        }
    };
    if found != expected {
        let what = format!(
            "commit {number} makes the state of key {key} {}, the model {}",
            text(found),
            text(expected)
        );
        report.broken(Predicate::P8, what);
    }
}

fn text(state: Option<State>) -> String {
    state.map_or_else(
        || "none".to_owned(),
        |State { count, chain }| format!("{chain:016x} of {count} messages"),
    )
}
