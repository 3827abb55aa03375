//! The rows of the store and their encoding.
//!
//! Pure. A row's value is a format byte, a postcard body and a CRC-32 of both. Records lie in blocks of at most
//! 4 KiB, keyed by queue and a rising number: written once, in order, and removed whole.
//!
//! Key prefixes: `m` the store itself, `q` a queue, `b` a block, `a` attempts of an unfinished message, `d` a dead
//! letter that the broker has not confirmed yet.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::backend::VALUE_BYTES_MAX;
use super::outcome::Outcome;
use super::rows::ResultRow;
use crate::identity::{Fingerprint, Identity};

/// Format of all rows; a change of any encoding below raises it.
pub(crate) const FORMAT: u16 = 2;

/// The outcome of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) identity: Identity,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempts: u32,
    pub(crate) outcome: Outcome,
    /// What its handler returned, if that was a value.
    pub(crate) result: Option<Box<ResultRow>>,
}

/// Records that became durable together.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) committed_at_ms: u64,
    pub(crate) records: Vec<Record>,
}

/// The store itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) format: u16,
    pub(crate) hash_key: [u8; 32],
    /// Rises at each open.
    pub(crate) epoch: u64,
}

/// A queue that has records, kept when it is no longer configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRow {
    pub(crate) name: String,
    /// The value of the header that gives its messages a retention of their own.
    pub(crate) class: Option<String>,
    pub(crate) retention_ms: u64,
}

/// Attempts at a message that has no outcome yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempts {
    pub(crate) queue: QueueId,
    pub(crate) started: u32,
    /// Whether the last one had not ended when this was written.
    pub(crate) unfinished: bool,
    /// Whether the last one ran with no other suspect beside it.
    pub(crate) alone: bool,
    pub(crate) first_seen_ms: u64,
    pub(crate) updated_at_ms: u64,
}

/// Number of a queue in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct QueueId(pub(crate) u16);

/// Where a block is: queue in the upper 16 bits, number in the lower 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location(u64);

const SEQUENCE_BITS: u32 = 48;

/// Highest number of a block.
pub(super) const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;

impl Location {
    pub(crate) fn new(queue: QueueId, sequence: u64) -> Self {
        assert!(sequence < 1 << SEQUENCE_BITS, "2^48 blocks were written");
        Self(u64::from(queue.0) << SEQUENCE_BITS | sequence)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn key(self) -> Vec<u8> {
        [&b"b"[..], &self.0.to_be_bytes()].concat()
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        let bits = key.strip_prefix(b"b")?.try_into().ok()?;
        Some(Self(u64::from_be_bytes(bits)))
    }

    pub(crate) const fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MAX
    }

    pub(crate) const fn queue(self) -> QueueId {
        QueueId((self.0 >> SEQUENCE_BITS) as u16)
    }
}

pub(crate) const META_KEY: &[u8] = b"m";
pub(crate) const QUEUE_PREFIX: &[u8] = b"q";
pub(crate) const BLOCK_PREFIX: &[u8] = b"b";
pub(crate) const ATTEMPTS_PREFIX: &[u8] = b"a";
pub(crate) const PENDING_PREFIX: &[u8] = b"d";

pub(crate) fn queue_key(queue: QueueId) -> Vec<u8> {
    [QUEUE_PREFIX, &queue.0.to_be_bytes()].concat()
}

pub(crate) fn block_prefix(queue: QueueId) -> Vec<u8> {
    [BLOCK_PREFIX, &queue.0.to_be_bytes()].concat()
}

pub(crate) fn attempts_key(identity: Identity) -> Vec<u8> {
    [ATTEMPTS_PREFIX, identity.as_bytes()].concat()
}

pub(crate) fn pending_key(identity: Identity) -> Vec<u8> {
    [PENDING_PREFIX, identity.as_bytes()].concat()
}

/// The identity in a key of this prefix.
pub(crate) fn identity_of_key(prefix: &[u8], key: &[u8]) -> Option<Identity> {
    key.strip_prefix(prefix)?.try_into().ok().map(Identity::from_bytes)
}

/// First byte of every value.
pub(super) const VALUE_FORMAT: u8 = 1;

/// First byte of every value that is encrypted (`encrypted.rs`): never a format of ours.
pub(super) const ENCRYPTED: u8 = 0xe1;

const CHECKSUM_BYTES: usize = 4;

/// Why a value cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnsealError {
    #[error("{0} bytes are too short for a row")]
    Short(usize),
    #[error("it does not decrypt: it was changed, or put in the place of another row")]
    Encrypted,
    #[error("checksum does not match")]
    Checksum,
    #[error("row format {0} is unknown")]
    Format(u8),
    #[error("contents do not decode")]
    Contents,
}

/// Encodes a value with format and checksum.
pub(crate) fn seal(value: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_extend(value, vec![VALUE_FORMAT]);
    // Only a type that serde cannot encode fails here, and all of ours are plain.
    #[expect(clippy::expect_used, reason = "rows are plain data, which postcard always encodes")]
    let body = body.expect("rows are plain data");
    checksummed(body)
}

/// Decodes what [`seal`] wrote, or says what is wrong with it.
pub(crate) fn unseal<T: DeserializeOwned>(value: &[u8]) -> Result<T, UnsealError> {
    match postcard::take_from_bytes(unsealed(value)?) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(UnsealError::Contents),
    }
}

/// What is between format and checksum, both checked.
fn unsealed(value: &[u8]) -> Result<&[u8], UnsealError> {
    if value.first() == Some(&ENCRYPTED) {
        return Err(UnsealError::Encrypted);
    }
    let Some((body, checksum)) = value.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(UnsealError::Short(value.len()));
    };
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(UnsealError::Checksum);
    }
    match body.split_first() {
        None => Err(UnsealError::Short(value.len())),
        Some((&VALUE_FORMAT, contents)) => Ok(contents),
        Some((&format, _)) => Err(UnsealError::Format(format)),
    }
}

/// The last record of one identity in a block, without decoding the others; with the time of the block.
pub(crate) fn find_in_block(
    value: &[u8],
    identity: Identity,
) -> Result<Option<(u64, Record)>, UnsealError> {
    let contents = unsealed(value)?;
    let decode = |bytes| postcard::take_from_bytes::<Record>(bytes).ok();
    let Ok((committed_at_ms, records)) = postcard::take_from_bytes::<u64>(contents) else {
        return Err(UnsealError::Contents);
    };
    // An identity is a keyed hash: other fields hold its sixteen bytes only by design of whoever read it in a dead
    // letter's header. What begins there must decode as a record, and even then it names this identity.
    let finder = memchr::memmem::Finder::new(identity.as_bytes());
    let (mut from, mut found) = (0, None);
    while let Some(ahead) = records.get(from..).and_then(|rest| finder.find(rest)) {
        let at = from + ahead;
        match decode(records.get(at..).unwrap_or_default()) {
            Some((record, rest)) => {
                from = records.len() - rest.len();
                found = Some(record);
            }
            // One byte further: what only looks like it may overlap with it, if it repeats itself.
            None => from = at + 1,
        }
    }
    Ok(found.map(|record| (committed_at_ms, record)))
}

fn checksummed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&body);
    body.extend_from_slice(&checksum.to_le_bytes());
    body
}

/// Packs records into one block, encoding each once.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    records: Vec<u8>,
    count: u32,
}

/// Room for everything but the records: format, time (10), count (5), checksum.
pub(super) const BLOCK_OVERHEAD_BYTES: usize = 1 + 10 + 5 + CHECKSUM_BYTES;

impl BlockBuilder {
    /// Adds the record, unless it no longer fits.
    pub(crate) fn push(&mut self, record: &[u8]) -> bool {
        let fits = self.records.len() + record.len() + BLOCK_OVERHEAD_BYTES <= VALUE_BYTES_MAX;
        assert!(fits || self.count > 0, "a record larger than a block");
        if fits {
            self.records.extend_from_slice(record);
            self.count += 1;
        }
        fits
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.records.len() + BLOCK_OVERHEAD_BYTES
    }

    /// The block's value; decodes as a [`Block`].
    pub(crate) fn finish(self, committed_at_ms: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.bytes());
        value.push(VALUE_FORMAT);
        varint(committed_at_ms, &mut value);
        varint(u64::from(self.count), &mut value);
        value.extend_from_slice(&self.records);
        checksummed(value)
    }
}

/// Encodes a record for [`BlockBuilder::push`], behind what is there already.
pub(crate) fn encode_record(record: &Record, into: &mut Vec<u8>) {
    #[expect(clippy::expect_used, reason = "records are plain data, which postcard always encodes")]
    let encoded =
        postcard::to_extend(record, std::mem::take(into)).expect("records are plain data");
    *into = encoded;
}

/// Encodes what lies in a block with others.
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "rows are plain data, which postcard always encodes")]
    let encoded = postcard::to_stdvec(value).expect("rows are plain data");
    encoded
}

/// Postcard's variable-length integer.
fn varint(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::outcome::{DeadNote, ERROR_BYTES_MAX, ForgetNote, Reason};
    use super::super::rows::{Spilled, Stored};
    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let dead = (
            0..Reason::ALL.len(),
            ".{0,100}",
            proptest::collection::vec(any::<u8>(), 0..1024),
            any::<u64>(),
        )
            .prop_map(|(reason, error, id, first_seen_ms)| {
                let reason = Reason::ALL[reason];
                Outcome::Dead(Box::new(DeadNote { reason, error, id, first_seen_ms }))
            });
        let forgotten = (".{0,100}", proptest::collection::vec(any::<u8>(), 0..1024))
            .prop_map(|(reason, id)| Outcome::Forgotten(Box::new(ForgetNote { reason, id })));
        (
            any::<[u8; 16]>(),
            any::<u64>(),
            any::<u32>(),
            prop_oneof![8 => Just(Outcome::Done), 1 => dead, 1 => forgotten],
            prop_oneof![9 => Just(None), 1 => result()],
        )
            .prop_map(|(identity, fingerprint, attempts, outcome, result)| Record {
                identity: Identity::from_bytes(identity),
                fingerprint: postcard::from_bytes(&fingerprint.to_le_bytes()).unwrap(),
                attempts,
                outcome,
                result,
            })
    }

    fn result() -> impl Strategy<Value = Option<Box<ResultRow>>> {
        let body = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..1000)
                .prop_map(|bytes| Stored::Inline(bytes.into())),
            any::<(u64, u64)>().prop_map(|(id, bytes)| Stored::Spilled(Spilled { id, bytes })),
        ];
        (any::<[u8; 8]>(), proptest::option::of(".{0,50}"), body).prop_map(
            |(checksum, content_type, body)| {
                Some(Box::new(ResultRow { signature: 1, checksum, content_type, body }))
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn blocks_give_back_their_records_and_never_pass_the_limit(
            records in proptest::collection::vec(record(), 1..200), committed_at_ms: u64,
        ) {
            let mut block = BlockBuilder::default();
            let mut bytes = Vec::new();
            let packed = records.iter().take_while(|record| {
                bytes.clear();
                encode_record(record, &mut bytes);
                block.push(&bytes)
            }).count();
            let value = block.finish(committed_at_ms);
            prop_assert!(value.len() <= VALUE_BYTES_MAX);
            let expected = Block { committed_at_ms, records: records[..packed].to_vec() };
            prop_assert_eq!(unseal::<Block>(&value), Ok(expected));
            for record in &records[..packed] {
                let found = find_in_block(&value, record.identity);
                prop_assert_eq!(found, Ok(Some((committed_at_ms, record.clone()))));
            }
            prop_assert_eq!(find_in_block(&value, Identity::from_bytes([3; 16])), Ok(None));
        }

        /// No hash does, but nothing else holds that off.
        #[test]
        fn an_identity_that_repeats_itself_is_found_behind_its_own_bytes(byte: u8, before in 0u64..4) {
            let identity = Identity::from_bytes([byte; 16]);
            let record = Record {
                identity,
                fingerprint: postcard::from_bytes(&[byte; 8]).unwrap(),
                attempts: u32::from(byte),
                outcome: Outcome::Done,
                result: None,
            };
            let other = Identity::from_bytes([byte ^ 0x80; 16]);
            let mut records = vec![Record { identity: other, ..record.clone() }; before as usize];
            records.push(record.clone());
            let value = seal(&Block { committed_at_ms: u64::from(byte), records });
            let found = find_in_block(&value, identity);
            prop_assert_eq!(found, Ok(Some((u64::from(byte), record))));
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..1000, flip in 1u8..) {
            let row = QueueRow { name: "orders".to_owned(), class: None, retention_ms: 7 };
            let mut value = seal(&row);
            let at = at % value.len();
            value[at] ^= flip;
            prop_assert!(unseal::<QueueRow>(&value).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(value in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = unseal::<Block>(&value);
            let _ = unseal::<Block>(&checksummed(value));
        }

        #[test]
        fn locations_sort_by_queue_and_number(queue: u16, sequence in 0u64..1 << 48) {
            let location = Location::new(QueueId(queue), sequence);
            prop_assert_eq!(Location::from_key(&location.key()), Some(location));
            prop_assert!(location.key().starts_with(&block_prefix(QueueId(queue))));
            prop_assert_eq!((location.queue(), location.sequence()), (QueueId(queue), sequence));
        }
    }

    #[test]
    fn the_largest_record_fits_a_block() {
        let largest = Record {
            identity: Identity::from_bytes([255; 16]),
            fingerprint: postcard::from_bytes(&[255; 8]).unwrap(),
            attempts: u32::MAX,
            outcome: Outcome::Dead(Box::new(DeadNote {
                reason: Reason::CrashLoop,
                error: "x".repeat(ERROR_BYTES_MAX),
                id: vec![0; crate::identity::ID_BYTES_MAX],
                first_seen_ms: u64::MAX,
            })),
            result: None,
        };
        let mut bytes = Vec::new();
        encode_record(&largest, &mut bytes);
        assert!(BlockBuilder::default().push(&bytes));
    }
}
