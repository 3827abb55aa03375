//! What must be true in the end, of what was seen from outside and of the store that is left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use onceward::simulation::checker::{Commits, QueueRules, Rules, Sees, check};
use onceward::simulation::{StoredNames, history};
use onceward::{StoreOptions, export, verify};
use serde_json::Value;

use crate::book::{Book, Pages};
use crate::traffic::{End, Kind, Order};

/// How long it may take until a worker has learned of a signal, and the book of what the worker says.
const TOLD_MS: u64 = 400;

/// How orders end, by number.
pub(crate) type Ends = BTreeMap<u64, (Order, End)>;

/// All that is wrong with what is downstream, with the runs and with the calls of the ledger.
pub(crate) fn outside(book: &Book, ends: &Ends, attempts_max: u32) -> Vec<String> {
    let pages = book.pages();
    let mut wrong = pages.wrong.clone();
    let mut receipts: HashMap<u64, (BTreeSet<&str>, BTreeSet<&str>)> = HashMap::new();
    for (key, number) in &pages.calls {
        receipts.entry(*number).or_default().0.insert(key);
    }
    downstream(&pages, ends, &mut receipts, &mut wrong);
    deaths(&pages, ends, attempts_max, &mut wrong);
    runs(&pages, ends, attempts_max, &mut wrong);
    for (number, (order, _)) in ends {
        let (keys, receipts) = receipts.remove(number).unwrap_or_default();
        let charged = usize::from(order.kind == Kind::Charge);
        if keys.len() != charged || receipts.len() != charged {
            wrong.push(format!("{number}: {charged} charges, but {keys:?} and {receipts:?}"));
        }
    }
    wrong
}

/// What the checker says of all that was seen.
pub(crate) fn checked(history: &history::History, queue: &str, attempts_max: u32) -> Vec<String> {
    let mut rules = QueueRules::new(queue);
    rules.max_attempts = attempts_max;
    let sees = Sees {
        accepted: true,
        runs: true,
        commits: Commits::AtRest,
        published: true,
        ..Sees::NOTHING
    };
    let told_ms = TOLD_MS;
    let rules = Rules { queues: vec![rules], sees, told_ms, ..Rules::default() };
    check(history, &rules).iter().map(ToString::to_string).collect()
}

/// Each change is there once by its id, with the same bytes, in the order of its key, and right.
fn downstream<'a>(
    pages: &'a Pages,
    ends: &Ends,
    receipts: &mut HashMap<u64, (BTreeSet<&'a str>, BTreeSet<&'a str>)>,
    wrong: &mut Vec<String>,
) {
    let mut bodies: HashMap<&str, &[u8]> = HashMap::new();
    let mut parts: BTreeMap<u64, usize> = BTreeMap::new();
    let mut last: HashMap<&str, (u64, usize)> = HashMap::new();
    for arrival in &pages.arrivals {
        let (id, change) = (arrival.id.as_str(), &arrival.change);
        let number = change.number;
        if let Some(first) = bodies.insert(id, &arrival.body) {
            if first != arrival.body {
                wrong.push(format!("{id} of {number} is downstream with two bodies"));
            }
            continue;
        }
        let part = parts.entry(number).or_default();
        *part += 1;
        // The numbers of a key rise, and those of one order's messages.
        let place = (number, *part);
        if last.insert(&change.key, place).is_some_and(|last| last > place) {
            wrong.push(format!("{number} of {} is downstream out of order", change.key));
        }
        if let Some(receipt) = &change.receipt {
            receipts.entry(number).or_default().1.insert(receipt);
        }
        match ends.get(&number) {
            Some((order, End::Done { sum, count })) => {
                let is_padded = order.kind == Kind::Large && *part == 2;
                if (change.sum, change.count, change.padding.is_empty())
                    != (*sum, *count, !is_padded)
                {
                    wrong.push(format!(
                        "{number} of {}: {} in {} changes, and not {sum} in {count}",
                        change.key, change.sum, change.count
                    ));
                }
            }
            Some((order, End::Dead { .. })) => {
                wrong.push(format!("{order:?} is dead, and yet downstream"));
            }
            None => wrong.push(format!("{number} is downstream and was never published")),
        }
    }
    for (number, (order, end)) in ends {
        let expected = match (end, &order.kind) {
            (End::Done { .. }, Kind::Large) => 2,
            (End::Done { .. }, _) => 1,
            (End::Dead { .. }, _) => continue,
        };
        let found = parts.get(number).copied().unwrap_or(0);
        if found != expected {
            wrong.push(format!("{order:?}: {found} messages downstream, and not {expected}"));
        }
    }
}

/// Each dead order has one dead letter by its outgoing id, whole and with its reason, and no other has any.
fn deaths(pages: &Pages, ends: &Ends, attempts_max: u32, wrong: &mut Vec<String>) {
    let mut letters: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for death in &pages.deaths {
        letters.entry(death.number).or_default().insert(&death.outgoing_id);
        let Some((order, end)) = ends.get(&death.number) else {
            wrong.push(format!("{death:?} of what was never published"));
            continue;
        };
        let attempts = match order.kind {
            Kind::Exhaust => attempts_max..=attempts_max + 1,
            Kind::Reject | Kind::Undecodable => 1..=attempts_max + 1,
            _ => 0..=0,
        };
        let is_right = matches!(end, End::Dead { reason } if *reason == death.reason);
        if !is_right || !death.is_whole || !attempts.contains(&death.attempts) {
            wrong.push(format!("{order:?} is dead: {death:?}, and not {end:?}"));
        }
    }
    for (number, (order, end)) in ends {
        let found = letters.get(number).map_or(0, BTreeSet::len);
        let is_right = match (end, &order.kind) {
            (End::Done { .. }, _) => found == 0,
            // Nobody can know it again.
            (End::Dead { .. }, Kind::NoId) => found >= 1,
            (End::Dead { .. }, _) => found == 1,
        };
        if !is_right {
            wrong.push(format!("{order:?}: {found} dead letters, and not {end:?}"));
        }
    }
}

/// Nothing runs after its end, attempts never fall and are not too many.
fn runs(pages: &Pages, ends: &Ends, attempts_max: u32, wrong: &mut Vec<String>) {
    let mut attempts: HashMap<u64, u32> = HashMap::new();
    for run in &pages.runs {
        let Some((order, _)) = ends.get(&run.number) else {
            wrong.push(format!("{run:?} of what was never published"));
            continue;
        };
        if run.is_late {
            wrong.push(format!("{run:?} of {order:?}"));
        }
        let before = attempts.insert(run.number, run.attempt);
        let falls = before.is_some_and(|before| before > run.attempt);
        // A tick that has expired is a new one.
        if run.attempt > attempts_max + 1 || (falls && !order.is_tick()) {
            wrong.push(format!("{run:?} of {order:?} after attempt {before:?}"));
        }
    }
}

/// A record of the store, by the names of a history.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) order: u64,
    pub(crate) reason: Option<String>,
    pub(crate) attempts: u32,
}

/// All that is wrong with a stopped worker's store, and its records.
pub(crate) async fn store(path: &Path, queue: &str, ends: &Ends) -> (Vec<Kept>, Vec<String>) {
    let options = StoreOptions::new(path);
    let mut wrong = Vec::new();
    match verify(&options, &mut ()).await {
        Ok(verified) if verified.damages == 0 && verified.left_over == 0 => {}
        other => wrong.push(format!("the store: {other:?}")),
    }
    let mut exported = Vec::new();
    if let Err(error) = export(&options, false, &mut exported, &mut ()).await {
        wrong.push(format!("the store is not exported: {error}"));
    }
    let text = String::from_utf8_lossy(&exported);
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let names = lines.next().and_then(|header| StoredNames::new(header["hash_key"].as_str()?));
    let Some(names) = names else { return (Vec::new(), wrong) };
    let mut orders: HashMap<String, (u64, &End)> = HashMap::new();
    for (number, (order, end)) in ends {
        let Some(id) = order.id() else { continue };
        let identity = match order.kind {
            Kind::Conflict { .. } => names.conflict(queue, id.as_bytes(), &order.body()),
            _ => names.identity(queue, id.as_bytes()),
        };
        orders.insert(identity, (*number, end));
    }
    let (mut kept, mut found) = (Vec::new(), BTreeMap::new());
    // Under identities of their own: which is whose is not known.
    let mut without_id = ends.iter().filter(|(_, (order, _))| order.kind == Kind::NoId);
    for line in lines {
        if let Some(record) = line.get("record") {
            let identity = record["identity"].as_str().expect("an identity");
            let reason = record["outcome"]["dead"]["reason"].as_str().map(str::to_owned);
            let is_of_none = reason.as_deref() == Some("missing-id");
            let of_none = || without_id.next().map(|(number, (_, end))| (*number, end));
            let order = orders.get(identity).copied();
            let Some((order, end)) = order.or_else(|| is_of_none.then(of_none).flatten()) else {
                continue;
            };
            let is_right = match end {
                End::Done { .. } => record["outcome"] == "done",
                End::Dead { reason: expected } => reason.as_deref() == Some(*expected),
            };
            if !is_right {
                wrong.push(format!("{order} is on record as {record}, and not as {end:?}"));
            }
            *found.entry(order).or_insert(0) += 1;
            let attempts = record["attempts"].as_u64().and_then(|number| number.try_into().ok());
            kept.push(Kept { order, reason, attempts: attempts.unwrap_or(u32::MAX) });
        }
        // Nothing of what has ended is left but its record.
        let unfinished = ["attempts", "pending", "step", "outgoing"];
        if unfinished.iter().any(|kind| line.get(*kind).is_some()) {
            wrong.push(format!("left over in the store: {line}"));
        }
    }
    for (number, (order, _)) in ends {
        let records = found.get(number).copied().unwrap_or(0);
        // The records of ticks expire.
        if records != 1 && !order.is_tick() {
            wrong.push(format!("{order:?}: {records} records"));
        }
    }
    (kept, wrong)
}
