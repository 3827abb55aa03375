//! What goes wrong in a run, and when.

use super::super::broker::{Loss, Weather};
use super::super::stage::{DiskWeather, Strike};
use super::Action;
use super::queues::{QueuePlan, REPLIES, SINKS};
use crate::failpoint::Point;
use crate::store::Fate;

/// Most lives that are ended by a strike.
const STRIKES_MAX: usize = 6;

/// Kinds of faults that a run may have.
const KINDS: u8 = 10;

pub(super) struct Faults {
    pub(super) actions: Vec<(u64, Action)>,
    pub(super) strikes: Vec<Option<Strike>>,
    pub(super) pauses_ms: Vec<u64>,
    pub(super) weather: Weather,
    pub(super) disk: DiskWeather,
}

pub(super) fn draw(rng: &mut fastrand::Rng, queues: &[QueuePlan], until_ms: u64) -> Faults {
    let kinds = rng.u16(..);
    let count = rng.usize(0..10);
    let mut actions = Vec::new();
    for _ in 0..count {
        let kind = rng.u8(0..KINDS);
        if kinds & (1 << kind) != 0 {
            actions.push((rng.u64(0..until_ms), action(rng, kind, queues)));
        }
    }
    let strike_percent = rng.choice([0, 50, 95]).unwrap_or_default();
    let strikes = (0..STRIKES_MAX).map(|_| {
        let strikes = rng.u64(0..100) < strike_percent;
        strikes.then(|| strike(rng))
    });
    let strikes = strikes.collect();
    let pause_ms = |rng: &mut fastrand::Rng| if rng.bool() { 0 } else { rng.u64(0..3000) };
    let pauses_ms = (0..2 * STRIKES_MAX).map(|_| pause_ms(rng)).collect();
    let weather = Weather {
        latency_ms_max: rng.choice([0, 2, 50]).unwrap_or_default(),
        consumer_timeout_ms: (rng.u8(0..5) == 0).then(|| rng.u64(3_000..30_000)),
    };
    let disk = DiskWeather {
        sync_ms_max: rng.choice([0, 2, 30]).unwrap_or_default(),
        slow_one_in: if rng.u8(0..4) == 0 { 20 } else { u64::MAX },
        size_bytes_max: if rng.u8(0..6) == 0 { rng.u64(2_000..12_000) } else { u64::MAX },
    };
    Faults { actions, strikes, pauses_ms, weather, disk }
}

fn action(rng: &mut fastrand::Rng, kind: u8, queues: &[QueuePlan]) -> Action {
    match kind {
        0 => Action::Crash,
        1 => Action::Drain,
        2 => Action::Contender,
        3..5 => Action::Lose {
            consuming: kind == 3 || rng.bool(),
            publishing: kind == 4 || rng.bool(),
            loss: Loss {
                arrives: rng.bool(),
                worker_after_ms: late(rng),
                broker_after_ms: late(rng),
            },
        },
        5 => Action::Unreachable { for_ms: rng.u64(100..8_000) },
        6 => Action::Unroutable { queue: target(rng, queues), for_ms: rng.u64(100..10_000) },
        7 => Action::Refuse { messages: rng.u32(1..5) },
        8 => Action::Alarm { for_ms: rng.u64(100..8_000) },
        _ => Action::Jump { by_ms: jump_ms(rng) },
    }
}

/// How long a side takes to notice that a connection is lost: at once, or after heartbeats.
fn late(rng: &mut fastrand::Rng) -> u64 {
    if rng.bool() { 0 } else { rng.u64(0..8_000) }
}

fn target(rng: &mut fastrand::Rng, queues: &[QueuePlan]) -> String {
    let dead = queues.iter().map(|plan| plan.options.dead_letter.clone());
    let inbound = queues.iter().skip(1).map(|plan| plan.options.queue.clone());
    let all: Vec<String> =
        dead.chain(inbound).chain([SINKS[0].to_owned(), REPLIES.to_owned()]).collect();
    all.get(rng.usize(..all.len())).cloned().unwrap_or_default()
}

fn jump_ms(rng: &mut fastrand::Rng) -> i64 {
    let by_ms = rng.choice([1_000, 30_000, 3_600_000, 48 * 3_600_000]).unwrap_or_default();
    if rng.bool() { by_ms } else { -by_ms }
}

fn strike(rng: &mut fastrand::Rng) -> Strike {
    if rng.u8(0..3) > 0 {
        let point = rng.choice(Point::ALL).unwrap_or(Point::Received);
        let hit = if rng.bool() { 1 } else { rng.u32(1..12) };
        return Strike::AtPoint(point, hit);
    }
    let fate = match rng.u8(0..6) {
        0..2 => Fate::CutBefore,
        2..4 => Fate::CutAfter,
        of => Fate::Failed { is_durable: of == 5 },
    };
    let commit = if rng.u8(0..4) == 0 { rng.u32(1..3) } else { rng.u32(1..40) };
    Strike::AtCommit(commit, fate)
}
