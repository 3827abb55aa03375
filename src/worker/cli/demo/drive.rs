//! The run of the demo: publishes and consumes, cuts connections, tears the runtime down, and waits until all is
//! settled.
//!
//! Owns the tasks of producer and runtime. What goes wrong on purpose goes wrong at fixed shares of the orders, always
//! all of it. Judges nothing: that is the ledger's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::handler::Charge;
use super::ledger::Ledger;
use super::observe::{ObservedBroker, Traffic};
use super::orders::{KEY_HEADER, Plan};
use super::progress::Progress;
use super::publish::{Producer, PublishingError};
use super::report::thousands;
use crate::{Declare, Options, QueueOptions, RunError, Source, StoreOptions, Worker};

/// The queue that the demo consumes.
pub(super) const QUEUE: &str = "onceward-demo";

/// Its dead-letter queue.
pub(super) const DEAD_LETTERS: &str = "onceward-demo.dead";

/// Without any progress for so long, the demo is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// All is settled when nothing has been delivered for so long and nothing is outstanding.
const QUIET: Duration = Duration::from_millis(300);

const TICK: Duration = Duration::from_millis(20);

/// How often the recorder of metrics tidies up.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// How long running handlers may go on at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// What is done to the runtime, and at which share of the orders in per mille.
const INCIDENTS: [(usize, Incident); 5] = [
    (200, Incident::Loss),
    (333, Incident::Teardown),
    (450, Incident::Loss),
    (667, Incident::Teardown),
    (700, Incident::Loss),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incident {
    /// The connection to the broker breaks.
    Loss,
    /// The runtime is dropped where it stands, and a new one opens its store.
    Teardown,
}

/// What the run of the demo needs.
pub(super) struct Setup {
    pub(super) broker: Arc<ObservedBroker>,
    pub(super) plan: Arc<Plan>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) store: StoreOptions,
    pub(super) metrics: PrometheusHandle,
}

/// What was done in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Driven {
    pub(super) losses: u32,
    pub(super) teardowns: u32,
    /// From the first publish until all was settled.
    pub(super) elapsed: Duration,
}

/// Why the demo ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error("interrupted")]
    Interrupted,
    #[error("no progress for {} s", STUCK_AFTER.as_secs())]
    Stuck,
    #[error("the runtime did not end within {} s of its drain", DRAIN.as_secs())]
    NotDrained,
    #[error("the runtime ended by itself")]
    RuntimeEnded,
    #[error(transparent)]
    Runtime(RunError),
    #[error(transparent)]
    Publishing(PublishingError),
    #[error("a task of the demo panicked: {0}")]
    Panicked(#[source] JoinError),
}

pub(super) struct Drive {
    setup: Setup,
    progress: Progress,
    runtime: JoinSet<Result<(), RunError>>,
    draining: CancellationToken,
    producer: JoinSet<Result<(), PublishingError>>,
    incidents: VecDeque<(usize, Incident)>,
    driven: Driven,
}

impl Drive {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            progress: Progress::new(setup.plan.orders().len()),
            setup,
            runtime: JoinSet::new(),
            draining: CancellationToken::new(),
            producer: JoinSet::new(),
            incidents: INCIDENTS.into(),
            driven: Driven::default(),
        }
    }

    /// Runs until all is settled or something stops it, and says in both cases what was done.
    pub(super) async fn run(mut self) -> (Driven, Result<(), Stopped>) {
        let begun = Instant::now();
        self.start_runtime();
        self.start_producer();
        let settled = self.until_settled().await;
        self.driven.elapsed = begun.elapsed();
        let ended = match settled {
            Ok(()) => self.drain().await,
            Err(stopped) => Err(stopped),
        };
        self.runtime.shutdown().await;
        self.producer.shutdown().await;
        self.progress.end();
        (self.driven, ended)
    }

    fn start_runtime(&mut self) {
        let Setup { broker, plan, ledger, store, .. } = &self.setup;
        let mut options = Options::with_broker(Arc::clone(broker) as _, store.clone());
        options.drain = DRAIN;
        let mut queue = QueueOptions::new(QUEUE);
        queue.declare = Declare::Classic;
        queue.dead_letter = DEAD_LETTERS.to_owned();
        queue.identity.key = vec![Source::Header(KEY_HEADER.to_owned())];
        let handler = Charge { plan: Arc::clone(plan), ledger: Arc::clone(ledger) };
        let worker = Worker::new(options).queue_with(queue, handler);
        let draining = self.draining.clone().cancelled_owned();
        self.runtime.spawn(worker.run_until(draining));
    }

    fn start_producer(&mut self) {
        let producer = Producer {
            broker: Arc::clone(&self.setup.broker) as _,
            plan: Arc::clone(&self.setup.plan),
            ledger: Arc::clone(&self.setup.ledger),
            queue: QUEUE.to_owned(),
        };
        self.producer.spawn(producer.run());
    }

    async fn until_settled(&mut self) -> Result<(), Stopped> {
        let mut ended = self.setup.ledger.ended();
        let (mut tick, mut upkeep) = (every(TICK), every(UPKEEP_PERIOD));
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut calm = Calm::default();
        loop {
            // Every branch is cancel-safe, and what is missed by one turn is seen by the next.
            tokio::select! {
                // Without notice of signals the system ends the process by itself.
                Ok(()) = &mut interrupted => return Err(Stopped::Interrupted),
                Some(runtime) = self.runtime.join_next() => {
                    joined(runtime)?.map_err(Stopped::Runtime)?;
                    return Err(Stopped::RuntimeEnded);
                }
                Some(published) = self.producer.join_next(), if !self.producer.is_empty() => {
                    joined(published)?.map_err(Stopped::Publishing)?;
                }
                Ok(()) = ended.changed() => {}
                _ = tick.tick() => {}
                _ = upkeep.tick() => self.setup.metrics.run_upkeep(),
            }
            let count = *ended.borrow_and_update();
            self.progress.at(count);
            self.make_incidents(count).await;
            let traffic = self.setup.broker.traffic();
            let at_rest = self.is_at_rest(count, &traffic);
            let now = Instant::now();
            let unchanged = calm.since((count, traffic), now);
            if at_rest && unchanged >= QUIET {
                return Ok(());
            }
            if unchanged >= STUCK_AFTER {
                return Err(Stopped::Stuck);
            }
        }
    }

    fn is_at_rest(&self, ended: usize, traffic: &Traffic) -> bool {
        let all = self.setup.plan.orders().len();
        self.producer.is_empty()
            && self.incidents.is_empty()
            && ended == all
            && traffic.outstanding == 0
            && traffic.sessions_open > 0
    }

    /// Does what is due, one thing for each session: there is nothing to break while there is no connection.
    async fn make_incidents(&mut self, ended: usize) {
        let all = self.setup.plan.orders().len();
        let due = |&(per_mille, _): &(usize, Incident)| ended * 1000 >= per_mille * all;
        let is_due = self.incidents.front().is_some_and(due);
        if !is_due || self.setup.broker.traffic().sessions_open == 0 {
            return;
        }
        let at = thousands(ended as u64);
        match self.incidents.pop_front() {
            None => {}
            Some((_, Incident::Loss)) => {
                self.driven.losses += 1;
                self.setup.broker.cut();
                let loss = self.driven.losses;
                let line = format!("       connection loss {loss} after {at} orders");
                self.progress.say(&line);
            }
            Some((_, Incident::Teardown)) => {
                self.driven.teardowns += 1;
                let teardown = self.driven.teardowns;
                self.runtime.shutdown().await;
                let line = format!(
                    "       teardown {teardown} without drain after {at} orders, opening the store again"
                );
                self.progress.say(&line);
                self.start_runtime();
            }
        }
    }

    async fn drain(&mut self) -> Result<(), Stopped> {
        self.draining.cancel();
        // More than the drain itself: what was committed becomes durable after it.
        let ended = timeout(2 * DRAIN, self.runtime.join_next()).await;
        match ended {
            Ok(Some(runtime)) => joined(runtime)?.map_err(Stopped::Runtime),
            Ok(None) => Err(Stopped::RuntimeEnded),
            Err(_) => Err(Stopped::NotDrained),
        }
    }
}

/// Since when nothing has changed.
#[derive(Default)]
struct Calm(Option<((usize, Traffic), Instant)>);

impl Calm {
    fn since(&mut self, state: (usize, Traffic), now: Instant) -> Duration {
        match &self.0 {
            Some((before, since)) if *before == state => now.duration_since(*since),
            _ => {
                self.0 = Some((state, now));
                Duration::ZERO
            }
        }
    }
}

fn joined<T>(ended: Result<T, JoinError>) -> Result<T, Stopped> {
    ended.map_err(Stopped::Panicked)
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
