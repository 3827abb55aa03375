//! What happens in a run, all of it drawn from its seed: queues, messages, faults and when.
//!
//! Each run has some kinds of faults and not others, so that rare ones are not drowned by frequent ones. A scenario
//! says what is tried; what comes of it depends on the worker. Runs nothing.

mod faults;
mod messages;
mod queues;

use super::broker::{Loss, Weather};
use super::part::Casting;
use super::stage::{DiskWeather, Strike};
use crate::message::Message;

pub(super) use self::queues::{QueuePlan, REPLIES, SINKS};

/// Something that is done to the worker or its world.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Publish(Box<Message>),
    /// The process dies at whatever it does.
    Crash,
    /// It is asked to drain, and started again.
    Drain,
    /// A second worker is started on the same store.
    Contender,
    Lose {
        consuming: bool,
        publishing: bool,
        loss: Loss,
    },
    Unreachable {
        for_ms: u64,
    },
    Unroutable {
        queue: String,
        for_ms: u64,
    },
    Refuse {
        messages: u32,
    },
    Alarm {
        for_ms: u64,
    },
    /// The wall clock jumps.
    Jump {
        by_ms: i64,
    },
}

/// A run, before it is run.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) queues: Vec<QueuePlan>,
    /// By time.
    pub(super) actions: Vec<(u64, Action)>,
    /// What ends each life, as long as there are any.
    pub(super) strikes: Vec<Option<Strike>>,
    /// How long a worker stays away after each life.
    pub(super) pauses_ms: Vec<u64>,
    pub(super) casting: Casting,
    pub(super) weather: Weather,
    pub(super) disk: DiskWeather,
    /// When all faults stop.
    pub(super) healed_at_ms: u64,
    pub(super) drain_ms: u64,
}

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed_0ca5_7e57_0001);
        let rng = &mut rng;
        let queues = queues::draw(rng);
        let span_ms = rng.u64(1000..15_000);
        let mut actions = messages::draw(rng, &queues, span_ms);
        let last_ms = actions.iter().map(|(at_ms, _)| *at_ms).max().unwrap_or_default();
        let faults = faults::draw(rng, &queues, last_ms + 5_000);
        actions.extend(faults.actions);
        actions.sort_by_key(|(at_ms, _)| *at_ms);
        let healed_at_ms = last_ms + 5_000 + rng.u64(0..10_000);
        let mut often = |most: u64| if rng.bool() { 0 } else { rng.u64(0..=most) };
        let casting = Casting {
            seed,
            failing_percent: often(40),
            hopeless_percent: often(10),
            rejected_percent: often(10),
            slow_percent: often(50),
            sending_percent: often(80),
            stepping_percent: often(50),
        };
        let drain_ms = if rng.bool() { 30_000 } else { rng.u64(100..3_000) };
        Self {
            seed,
            queues,
            actions,
            strikes: faults.strikes,
            pauses_ms: faults.pauses_ms,
            casting,
            weather: faults.weather,
            disk: faults.disk,
            healed_at_ms,
            drain_ms,
        }
    }
}
