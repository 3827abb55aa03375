//! Who plays in a run: the real worker with simulated handlers, and the rules by which the checker judges them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::broker::BrokerOf;
use super::checker::{QueueRules, Rules, Sees};
use super::handler::Player;
use super::part::Outages;
use super::scenario::{QueuePlan, Scenario};
use super::stage::Stage;
use crate::clock::duration_ms;
use crate::options::Options;
use crate::runtime::Worker;
use crate::store::StoreOptions;

/// A worker of this life, with all its queues.
pub(super) fn worker(scenario: &Scenario, stage: &Stage, life: u32) -> Worker {
    let mut store = StoreOptions::new("simulated");
    store.simulated = Some(stage.disk.clone());
    store.clock = stage.clock.clone();
    store.size_bytes_max = stage.size_bytes_max();
    let broker = BrokerOf { network: stage.network.clone(), life };
    let mut options = Options::with_broker(Arc::new(broker), store);
    options.drain = Duration::from_millis(scenario.drain_ms);
    let mut worker = Worker::new(options);
    for plan in &scenario.queues {
        let player = player(scenario, stage, plan, life);
        worker = if plan.is_batch {
            worker.batch_queue_with(plan.options.clone(), player)
        } else {
            worker.queue_with(plan.options.clone(), player)
        };
    }
    worker
}

fn player(scenario: &Scenario, stage: &Stage, plan: &QueuePlan, life: u32) -> Player {
    Player {
        log: stage.log.clone(),
        names: Arc::clone(&stage.names),
        casting: scenario.casting,
        life,
        queue: plan.options.queue.as_str().into(),
        targets: plan.targets.clone(),
        has_state: plan.has_state,
        replies: plan.replies,
        other_side: stage.other_side.clone(),
        outages: plan.options.breaker.is_some().then(|| Outages {
            windows_ms: plan.outages_ms.clone(),
            over_ms: scenario.healed_at_ms,
        }),
        batches: Arc::new(AtomicU64::new(u64::from(life) << 32)),
    }
}

fn classes(plan: &QueuePlan) -> Vec<(Arc<str>, u64)> {
    let classes = plan.options.retention_by.iter().flat_map(|by| &by.values);
    classes.map(|(class, retention)| (class.as_str().into(), duration_ms(*retention))).collect()
}

/// By what the checker judges a run of this scenario.
pub(super) fn rules(scenario: &Scenario) -> Rules {
    let of = |plan: &QueuePlan| QueueRules {
        queue: plan.options.queue.as_str().into(),
        dead_letter: plan.options.dead_letter.as_str().into(),
        max_attempts: plan.options.retry.max_attempts.get(),
        prefetch: plan.options.prefetch.get(),
        breaker_failures: plan.options.breaker.map(|breaker| breaker.failures.get()),
        retention_ms: duration_ms(plan.options.retention),
        retention_ms_by: classes(plan),
        on_conflict: plan.options.on_conflict,
        on_expired: plan.options.on_expired,
        on_unroutable: plan.options.on_unroutable,
        // What a watermark passes is in no order that a commit tells.
        has_model_state: plan.has_state && !plan.is_numbered,
        replies: plan.replies,
    };
    Rules {
        queues: scenario.queues.iter().map(of).collect(),
        sees: Sees::ALL,
        may_be_full: scenario.disk.size_bytes_max < u64::MAX,
        frame_ms: scenario.weather.latency_ms_max + 1,
        told_ms: 1,
    }
}
