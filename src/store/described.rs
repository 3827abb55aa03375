//! What a commit says, in words, for whoever reads why a test failed.
//!
//! Reads the rows as they would lie on the disk; a row that cannot be read is named by its kind. Changes nothing and is
//! in no release without `testkit`.

use super::outcome::Outcome;
use super::outgoing::OUTGOING_PREFIX;
use super::record::{self, Attempts, Block, Record};
use super::rows::StepRow;
use super::simulated::Op;
use super::spill::PIECE_PREFIX;
use super::state::STATE_PREFIX;
use super::steps::{self, STEP_PREFIX};
use super::watermark::WATERMARK_PREFIX;
use crate::identity::Identity;

/// What a message is called, by its identity: an identity is a hash.
pub(crate) type NameOf<'a> = &'a dyn Fn(Identity) -> Option<String>;

/// Most things that are listed.
const LISTED_MAX: usize = 4;

/// What the rows mean, such as `step "card" of message "t1"`.
pub(super) fn describe(ops: &[Op], name_of: NameOf<'_>) -> String {
    let mut main = Vec::new();
    let mut beside = Vec::new();
    for op in ops {
        for phrase in phrases(op, name_of) {
            let list = match phrase {
                Phrase::Main(_) => &mut main,
                Phrase::Beside(_) => &mut beside,
            };
            let (Phrase::Main(text) | Phrase::Beside(text)) = phrase;
            if !list.contains(&text) {
                list.push(text);
            }
        }
    }
    let mut list = if main.is_empty() { beside } else { main };
    let more = list.len().saturating_sub(LISTED_MAX);
    list.truncate(LISTED_MAX);
    if more > 0 {
        list.push(format!("{more} more"));
    }
    if list.is_empty() { "nothing but what has expired".to_owned() } else { list.join(", ") }
}

/// What one row says; what goes along with something else is said only where it is alone.
enum Phrase {
    Main(String),
    Beside(String),
}

fn phrases((key, value): &Op, name_of: NameOf<'_>) -> Vec<Phrase> {
    let message = |identity| {
        name_of(identity).unwrap_or_else(|| "a message that nobody has published".to_owned())
    };
    let main = |text: String| vec![Phrase::Main(text)];
    let beside = |text: &str| vec![Phrase::Beside(text.to_owned())];
    let (Some(prefix), value) = (key.first_chunk::<1>(), value.as_deref()) else {
        return Vec::new();
    };
    match (&prefix[..], value) {
        (record::META_KEY, Some(_)) => main("the opening of the store".to_owned()),
        (record::BLOCK_PREFIX, Some(value)) => match record::unseal::<Block>(value) {
            Ok(block) => block.records.iter().map(|record| of_record(record, &message)).collect(),
            Err(_) => beside("records"),
        },
        (STEP_PREFIX, Some(value)) => {
            let of = steps::identity_of_key(key).map_or_else(String::new, message);
            match record::unseal::<StepRow>(value) {
                Ok(StepRow { name, result: Some(_), .. }) => main(format!("step {name:?} of {of}")),
                Ok(StepRow { name, .. }) => main(format!("the beginning of step {name:?} of {of}")),
                Err(_) => beside("a step"),
            }
        }
        (record::ATTEMPTS_PREFIX, Some(value)) => {
            let of = record::identity_of_key(record::ATTEMPTS_PREFIX, key);
            let of = of.map_or_else(String::new, message);
            match record::unseal::<Attempts>(value) {
                Ok(Attempts { started, unfinished: true, .. }) => {
                    main(format!("the beginning of attempt {started} at {of}"))
                }
                Ok(Attempts { started, .. }) => main(format!("failed attempt {started} at {of}")),
                Err(_) => beside("attempts"),
            }
        }
        (record::PENDING_PREFIX, None) => {
            let of = record::identity_of_key(record::PENDING_PREFIX, key);
            main(format!("the sent dead letter of {}", of.map_or_else(String::new, message)))
        }
        (WATERMARK_PREFIX, Some(_)) => main("the numbers of a producer".to_owned()),
        (STATE_PREFIX, _) => beside("the state of a key"),
        (OUTGOING_PREFIX, Some(_)) => beside("outgoing messages"),
        (OUTGOING_PREFIX, None) => beside("outgoing messages that were confirmed"),
        (PIECE_PREFIX, Some(_)) => beside("a piece of a large value"),
        (PIECE_PREFIX, None) => beside("the removal of a large value"),
        _ => Vec::new(),
    }
}

fn of_record(record: &Record, message: &impl Fn(Identity) -> String) -> Phrase {
    let of = message(record.identity);
    Phrase::Main(match &record.outcome {
        Outcome::Done => format!("the end of {of}: done"),
        Outcome::Dead(note) => format!("the end of {of}: dead, {}", note.reason.name()),
        Outcome::Forgotten(_) => format!("the end of {of}: forgotten"),
    })
}
