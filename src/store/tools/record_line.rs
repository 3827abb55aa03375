//! A record in an export. Pure.

use serde::{Deserialize, Serialize};

use super::super::outcome::{DeadNote, ForgetNote, Outcome, Reason};
use super::super::record::{QueueId, Record};
use super::super::rows::ResultRow;
use super::line::{Id, Place, Value};
use super::text::{Base64, Hex};
use crate::identity::{Fingerprint, Identity};

/// How a message ended, and where its record lay.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordLine {
    pub(super) queue: u16,
    pub(super) block: u64,
    pub(super) at_ms: u64,
    identity: Id,
    fingerprint: Hex<8>,
    attempts: u32,
    outcome: OutcomeLine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<ResultLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OutcomeLine {
    Done,
    Dead { reason: String, error: String, id: Base64, first_seen_ms: u64 },
    Forgotten { reason: String, id: Base64 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultLine {
    signature: u8,
    checksum: Hex<8>,
    content_type: Option<String>,
    body: Value,
}

impl RecordLine {
    pub(super) fn new(queue: QueueId, block: u64, at_ms: u64, record: &Record) -> Self {
        let outcome = match &record.outcome {
            Outcome::Done => OutcomeLine::Done,
            Outcome::Dead(note) => OutcomeLine::Dead {
                reason: note.reason.name().to_owned(),
                error: note.error.clone(),
                id: Base64(note.id.clone().into()),
                first_seen_ms: note.first_seen_ms,
            },
            Outcome::Forgotten(note) => OutcomeLine::Forgotten {
                reason: note.reason.clone(),
                id: Base64(note.id.clone().into()),
            },
        };
        Self {
            queue: queue.0,
            block,
            at_ms,
            identity: Hex(*record.identity.as_bytes()),
            fingerprint: Hex(*record.fingerprint.as_bytes()),
            attempts: record.attempts,
            outcome,
            result: record.result.as_deref().map(|result| ResultLine {
                signature: result.signature,
                checksum: Hex(result.checksum),
                content_type: result.content_type.clone(),
                body: Value::new(&result.body),
            }),
        }
    }

    pub(super) fn record(self, place: Place<'_>) -> Result<Record, String> {
        let outcome = match self.outcome {
            OutcomeLine::Done => Outcome::Done,
            OutcomeLine::Dead { reason, error, id, first_seen_ms } => {
                let known = Reason::ALL.into_iter().find(|known| known.name() == reason);
                let reason = known.ok_or_else(|| format!("the reason {reason:?} is unknown"))?;
                Outcome::Dead(Box::new(DeadNote { reason, error, id: id.0.into(), first_seen_ms }))
            }
            OutcomeLine::Forgotten { reason, id } => {
                Outcome::Forgotten(Box::new(ForgetNote { reason, id: id.0.into() }))
            }
        };
        Ok(Record {
            identity: Identity::from_bytes(self.identity.0),
            fingerprint: Fingerprint::from_bytes(self.fingerprint.0),
            attempts: self.attempts,
            outcome,
            result: self.result.map(|result| {
                Box::new(ResultRow {
                    signature: result.signature,
                    checksum: result.checksum.0,
                    content_type: result.content_type,
                    body: result.body.stored(place),
                })
            }),
        })
    }
}
