//! The queues of a run: one to three, each with options of its own, messages going from one to the next.

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::time::Duration;

use super::super::broker::Kind;
use crate::backoff::Retry;
use crate::identity::{IdentityRules, OnMissingId, Scope, Source};
use crate::options::{
    BreakerOptions, OnConflict, OnDuplicate, OnExpired, OnUnroutable, QueueOptions, RateLimit,
    RetentionBy,
};

/// A consumed queue, and how its handler is.
#[derive(Clone, Debug)]
pub(in super::super) struct QueuePlan {
    pub(in super::super) options: QueueOptions,
    pub(in super::super) kind: Kind,
    pub(in super::super) is_batch: bool,
    pub(in super::super) has_state: bool,
    pub(in super::super) replies: bool,
    pub(in super::super) is_numbered: bool,
    /// When what its handler calls is dead: of a queue that has a breaker.
    pub(in super::super) outages_ms: Vec<Range<u64>>,
    /// Where its handler sends to.
    pub(in super::super) targets: Vec<String>,
}

/// A queue that is there, and one that is not before all faults have stopped.
pub(in super::super) const SINKS: [&str; 2] = ["out", "later"];

/// Where replies go.
pub(in super::super) const REPLIES: &str = "replies";

/// The header that names a class of retention, and the classes.
pub(super) const CLASS_HEADER: &str = "class";
pub(super) const CLASSES: [&str; 2] = ["brief", "long"];

/// Longest body that a handler gets.
pub(super) const BODY_BYTES_MAX: usize = 400;

pub(super) fn draw(rng: &mut fastrand::Rng) -> Vec<QueuePlan> {
    let mut names = vec!["a", "b", "c"];
    names.truncate(rng.usize(1..=3));
    let scope = match rng.u8(0..10) {
        0..6 => Scope::Queue,
        6..8 => Scope::Global,
        _ => Scope::Header("tenant".to_owned()),
    };
    // Ids that several queues share are kept for one time.
    let retention = if rng.u8(0..5) < 2 { rng.u64(15..60) } else { 24 * 60 * 60 };
    let classes = (rng.u8(0..4) == 0).then(|| classes(rng, retention));
    let hops = rng.bool();
    let mut plans = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let is_first = at == 0;
        let is_numbered = is_first && scope == Scope::Queue && rng.u8(0..6) == 0;
        let is_batch = rng.u8(0..4) == 0;
        let replies = !is_batch && !is_numbered && rng.u8(0..5) == 0;
        let mut options = options(rng, name, Duration::from_secs(retention));
        options.retention_by.clone_from(&classes);
        options.identity = identity(rng, scope.clone(), is_numbered);
        options.on_duplicate = if replies { OnDuplicate::Replay } else { OnDuplicate::Ack };
        let mut targets = vec![SINKS[0].to_owned()];
        // The next hop takes what has no tenant for what has no id.
        if hops && !matches!(scope, Scope::Header(_)) {
            targets.extend(names.get(at + 1).map(|next| (*next).to_owned()));
        }
        if rng.u8(0..6) == 0 {
            targets.push(SINKS[1].to_owned());
        }
        let kind = if rng.bool() { Kind::Classic } else { Kind::SingleActive };
        let has_state = rng.u8(0..4) > 0;
        let outages_ms = match protect(rng, &mut options) {
            true => (0..rng.u8(0..3)).map(|_| outage_ms(rng)).collect(),
            false => Vec::new(),
        };
        plans.push(QueuePlan {
            options,
            kind,
            is_batch,
            has_state,
            replies,
            is_numbered,
            outages_ms,
            targets,
        });
    }
    plans
}

fn options(rng: &mut fastrand::Rng, name: &str, retention: Duration) -> QueueOptions {
    let mut options = QueueOptions::new(name);
    options.prefetch =
        rng.choice([1, 2, 5, 20, 200]).and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN);
    options.concurrency =
        rng.choice([1, 2, 8, 64]).and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN);
    options.timeout = Duration::from_secs(2);
    options.retention = retention;
    options.retry = Retry {
        max_attempts: NonZeroU32::new(rng.u32(1..=4)).unwrap_or(NonZeroU32::MIN),
        initial: Duration::from_millis(100),
        max: Duration::from_secs(1),
        factor: 2.0,
        jitter: rng.bool(),
    };
    options.on_conflict = if rng.u8(0..10) < 7 { OnConflict::DeadLetter } else { OnConflict::Skip };
    options.on_expired = if rng.bool() { OnExpired::Process } else { OnExpired::DeadLetter };
    options.on_unroutable = if rng.bool() { OnUnroutable::Hold } else { OnUnroutable::DeadLetter };
    options.body_bytes_max = BODY_BYTES_MAX;
    options.batch = NonZeroUsize::new(rng.usize(2..20)).unwrap_or(NonZeroUsize::MIN);
    options
}

/// Messages of one class are forgotten earlier than the others, those of the other one later.
fn classes(rng: &mut fastrand::Rng, retention_s: u64) -> RetentionBy {
    let brief = Duration::from_secs(rng.u64(15..=retention_s));
    let long = Duration::from_secs(retention_s * rng.u64(2..5));
    let values = CLASSES.map(str::to_owned).into_iter().zip([brief, long]).collect();
    RetentionBy { header: CLASS_HEADER.to_owned(), values }
}

/// Gives the queue a breaker and rates at times; says whether it has a breaker.
fn protect(rng: &mut fastrand::Rng, options: &mut QueueOptions) -> bool {
    let count =
        |rng: &mut fastrand::Rng, range| NonZeroU32::new(rng.u32(range)).unwrap_or(NonZeroU32::MIN);
    options.breaker = (rng.u8(0..3) == 0).then(|| BreakerOptions {
        failures: count(rng, 1..5),
        probe: Duration::from_millis(rng.u64(50..2_000)),
        max: Duration::from_millis(rng.u64(2_000..10_000)),
    });
    let mut rate = |one_in| {
        let per = Duration::from_secs(1);
        let (tokens, burst) = (count(rng, 5..50), count(rng, 1..10));
        (rng.u8(0..one_in) == 0).then_some(RateLimit { tokens, per, burst })
    };
    options.rate = rate(8);
    options.tenant_rate = rate(3).filter(|_| matches!(options.identity.scope, Scope::Header(_)));
    options.breaker.is_some()
}

fn outage_ms(rng: &mut fastrand::Rng) -> Range<u64> {
    let begins_ms = rng.u64(0..15_000);
    begins_ms..begins_ms + rng.u64(500..20_000)
}

fn identity(rng: &mut fastrand::Rng, scope: Scope, is_numbered: bool) -> IdentityRules {
    let header = |name: &str| Source::Header(name.to_owned());
    let id = if is_numbered {
        let (producer, sequence) = (header("producer").into(), header("number").into());
        vec![Source::Sequence { producer, sequence }]
    } else {
        vec![Source::MessageId]
    };
    let key = if rng.u8(0..5) == 0 { Vec::new() } else { vec![header("key")] };
    let on_missing_id =
        if rng.u8(0..4) == 0 { OnMissingId::Fingerprint } else { OnMissingId::DeadLetter };
    IdentityRules { id, key, scope, on_missing_id }
}
