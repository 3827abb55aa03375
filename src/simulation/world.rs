//! The worker and all that is done to it, in the order of a scenario.
//!
//! A life is one process: it begins, and ends by a crash, by a failure of its disk or by a drain. When the scenario is
//! over, all faults stop, and the last life must settle everything within the patience.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::broker::{Kind, Network};
use super::cast;
use super::history::Event;
use super::log::Log;
use super::names::Names;
use super::scenario::{Action, REPLIES, SINKS, Scenario};
use super::stage::Stage;
use crate::clock::{Clock, duration_ms};
use crate::runtime::RunError;
use crate::store::StoreError;

/// The wall clock of a new run: 14 November 2023.
const START_MS: u64 = 1_700_000_000_000;

/// How long everything may take to come to rest when faults have stopped.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// How much longer than it may a drain takes, and the end after a failure of the disk.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// How long it stays quiet before it counts as rest.
const QUIET: Duration = Duration::from_secs(2);

/// Lives after which something is wrong by itself.
const LIVES_MAX: u32 = 200;

pub(super) struct World {
    scenario: Scenario,
    pub(super) stage: Stage,
    /// What is wrong beside the history.
    pub(super) faults: Vec<String>,
    life: u32,
    running: Option<Running>,
    network: JoinSet<()>,
}

struct Running {
    stop: Option<oneshot::Sender<()>>,
    /// The worker's one task.
    worker: JoinSet<Result<(), RunError>>,
}

/// What ended a wait.
enum Met {
    Time,
    Crash,
    Ended(Result<(), RunError>),
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let log = Log::new();
        let options: Vec<_> = scenario.queues.iter().map(|plan| &plan.options).collect();
        let hash_key = [scenario.seed.to_le_bytes()[0]; 32];
        let names = Arc::new(Names::new(hash_key, &options));
        let weather = scenario.weather.clone();
        let network = Network::new(log.clone(), Arc::clone(&names), weather, scenario.seed ^ 1);
        for plan in &scenario.queues {
            network.declare(&plan.options.queue, plan.kind);
        }
        for queue in [SINKS[0], REPLIES] {
            network.declare(queue, Kind::Classic);
        }
        let clock = Clock::with_tokio(START_MS);
        let disk = (scenario.disk, scenario.seed ^ 2);
        let stage = Stage::new(log, names, network.clone(), clock, disk);
        stage.disk.give_hash_key(hash_key);
        let mut tasks = JoinSet::new();
        tasks.spawn(network.run());
        Self { scenario, stage, faults: Vec::new(), life: 0, running: None, network: tasks }
    }

    /// Plays the scenario, then waits for rest.
    pub(super) async fn play(&mut self) {
        let began = Instant::now();
        self.start();
        for (at_ms, action) in std::mem::take(&mut self.scenario.actions) {
            self.live_until(began + Duration::from_millis(at_ms)).await;
            self.act(action).await;
        }
        self.live_until(began + Duration::from_millis(self.scenario.healed_at_ms)).await;
        self.heal().await;
        if self.come_to_rest().await && self.drain().await {
            self.stage.log.put(Event::AtRest);
        }
        self.network.shutdown().await;
    }

    async fn heal(&mut self) {
        self.scenario.strikes.clear();
        let had_limit = self.stage.size_bytes_max() < u64::MAX;
        self.stage.heal();
        self.stage.network.heal();
        self.stage.network.declare(SINKS[1], Kind::Classic);
        // A limit that is raised is told to a worker by starting it again.
        if had_limit {
            self.act(Action::Drain).await;
        }
    }

    async fn come_to_rest(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut delay = Duration::from_millis(100);
        loop {
            self.live_until(Instant::now() + delay).await;
            if self.stage.network.left().is_empty() {
                self.live_until(Instant::now() + QUIET).await;
                return true;
            }
            if Instant::now() > deadline {
                let left = self.stage.network.left();
                self.wrong(format!("it does not come to rest, waiting and unacked: {left:?}"));
                return false;
            }
            delay = (delay * 2).min(Duration::from_secs(2));
        }
    }

    async fn act(&mut self, action: Action) {
        let network = &self.stage.network;
        match action {
            Action::Publish(message) => network.publish(&Arc::new(*message)),
            Action::Crash => {
                if self.running.is_some() {
                    self.stage.crash();
                    self.bury().await;
                }
            }
            Action::Drain => {
                self.drain().await;
                self.start_again().await;
            }
            Action::Contender => self.contend().await,
            Action::Lose { consuming, publishing, loss } => {
                network.lose(consuming, publishing, loss)
            }
            Action::Unreachable { for_ms } => network.be_unreachable(for_ms),
            Action::Unroutable { queue, for_ms } => network.block(&queue.into(), for_ms),
            Action::Refuse { messages } => network.refuse_next(messages),
            Action::Alarm { for_ms } => network.alarm(for_ms),
            Action::Jump { by_ms } => self.stage.jump(by_ms),
        }
    }

    /// Goes on until then, over as many lives as it takes.
    async fn live_until(&mut self, until: Instant) {
        loop {
            match self.meet(until).await {
                Met::Time => return,
                Met::Crash => self.bury().await,
                Met::Ended(ended) => {
                    self.exited(&ended);
                    let is_meant = matches!(ended, Err(RunError::StoreFailed(_)));
                    if !is_meant || !self.stage.has_failed() {
                        self.wrong(format!("life {} ended by itself: {}", self.life, said(&ended)));
                    }
                    // As when the process is gone.
                    self.leave().await;
                    self.start_again().await;
                }
            }
        }
    }

    async fn meet(&mut self, until: Instant) -> Met {
        let stage = self.stage.clone();
        let ended = async {
            match &mut self.running {
                Some(running) => running.worker.join_next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stage.crashed(), if !stage.is_over() => Met::Crash,
            Some(ended) = ended => match ended {
                Ok(ended) => Met::Ended(ended),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
            () = tokio::time::sleep_until(until) => Met::Time,
        }
    }

    /// The process is dead: its tasks go, and another one begins.
    async fn bury(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.worker.shutdown().await;
        }
        // Tasks that were aborted end in their next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.start_again().await;
    }

    /// The process has ended by itself, and its connections with it.
    async fn leave(&mut self) {
        self.running = None;
        self.stage.end();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn start_again(&mut self) {
        let pause_ms = self.scenario.pauses_ms.pop().unwrap_or(500);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        self.start();
    }

    fn start(&mut self) {
        self.life += 1;
        assert!(self.life < LIVES_MAX, "so many lives come to no end");
        let strike = self.scenario.strikes.pop().flatten();
        self.stage.begin(self.life, strike);
        let (stop, stopped) = oneshot::channel();
        let mut worker = JoinSet::new();
        worker.spawn(
            cast::worker(&self.scenario, &self.stage, self.life)
                .run_until(async { drop(stopped.await) }),
        );
        self.running = Some(Running { stop: Some(stop), worker });
    }

    /// Asks the worker to drain; `false` if it did not end as it should.
    async fn drain(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        self.stage.log.put_of(self.life, Event::Drain { life: self.life });
        self.stage.tally(|tally| tally.drains += 1);
        running.stop.take().map(|stop| stop.send(()));
        let limit = Duration::from_millis(self.scenario.drain_ms) + END_PATIENCE;
        let met = self.meet(Instant::now() + limit).await;
        let is_well = match met {
            Met::Crash => {
                if let Some(mut running) = self.running.take() {
                    running.worker.shutdown().await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                return false;
            }
            Met::Time => {
                self.wrong(format!("life {} does not end its drain", self.life));
                false
            }
            Met::Ended(ended) => {
                self.exited(&ended);
                let has_failed = self.stage.has_failed();
                if ended.is_err() && !has_failed {
                    self.wrong(format!("life {} drained badly: {}", self.life, said(&ended)));
                }
                ended.is_ok()
            }
        };
        self.leave().await;
        is_well
    }

    /// A second worker on the store of the first: it must be refused.
    async fn contend(&mut self) {
        let life = self.life;
        if !self.stage.has_opened() {
            return;
        }
        self.stage.tally(|tally| tally.takeovers += 1);
        let contender = cast::worker(&self.scenario, &self.stage, self.life + 1000)
            .run_until(std::future::pending());
        match timeout(Duration::from_secs(60), contender).await {
            Ok(Err(RunError::StoreFailed(StoreError::InUse { .. }))) => {}
            // The first one is gone meanwhile.
            _ if self.stage.has_failed() || self.stage.log.is_dead(life) => {}
            Ok(ended) => self.wrong(format!("a second worker ended otherwise: {}", said(&ended))),
            Err(_) => self.wrong("a second worker was let in".to_owned()),
        }
    }

    fn exited(&self, ended: &Result<(), RunError>) {
        let error = ended.as_ref().err().map(|error| error.to_string().into());
        self.stage.log.put_of(self.life, Event::Exited { life: self.life, error });
    }

    fn wrong(&mut self, what: String) {
        let at_ms = duration_ms(self.stage.log.started().elapsed());
        self.faults.push(format!("at {at_ms} ms: {what}"));
    }
}

fn said(ended: &Result<(), RunError>) -> String {
    match ended {
        Ok(()) => "without an error".to_owned(),
        Err(error) => format!("{error}: {error:?}"),
    }
}
