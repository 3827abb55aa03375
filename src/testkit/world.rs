//! What outlives the workers of a bed: broker, disk, clock, handlers; and the worker that runs on them, if any.
//!
//! Time is virtual: the clock that retention goes by moves with tokio's paused one. A worker that ends by itself, or a
//! message that is never settled, is a panic that says what hangs. Judges nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::fault::{Fault, Faults};
use super::wire::{By, Logged, Wire};
use crate::broker::MemoryBroker;
use crate::clock::Clock;
use crate::message::Message;
use crate::options::{Options, QueueOptions};
use crate::runtime::{RunError, Worker};
use crate::store::{SimulatedDisk, StoreOptions};
use crate::telemetry::Health;

/// The clock of a new bed: 14 November 2023.
const START_MS: u64 = 1_700_000_000_000;

/// How long a sync takes, so that something else can happen meanwhile.
const SYNC_DELAY: Duration = Duration::from_millis(1);

/// How long messages may take to be settled, in virtual time.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Longest time between two looks at whether all is settled.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Puts a handler that outlives workers into a new one.
pub(super) type Install = Box<dyn Fn(Worker) -> Worker>;

/// A queue and what handles its messages.
pub(super) struct Consumed {
    pub(super) options: QueueOptions,
    pub(super) install: Install,
}

pub(super) struct World {
    pub(super) broker: MemoryBroker,
    pub(super) disk: SimulatedDisk,
    pub(super) clock: Clock,
    pub(super) faults: Arc<Faults>,
    pub(super) wire: Wire,
    pub(super) queues: Vec<Consumed>,
    /// Exchange, routing key, queue.
    pub(super) bindings: Vec<(String, String, String)>,
    pub(super) patience: Duration,
    /// In which run of several this is; for panics.
    pub(super) run: String,
    running: Option<Running>,
}

struct Running {
    health: Health,
    stop: Option<oneshot::Sender<()>>,
    /// The worker's one task.
    worker: JoinSet<Result<(), RunError>>,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Through,
    /// A fault ended the worker meanwhile.
    Crashed,
}

impl World {
    pub(super) fn new(fault: Option<Fault>) -> Self {
        let broker = MemoryBroker::new();
        let faults = Arc::new(Faults::new(fault));
        let disk = SimulatedDisk::new();
        disk.set_sync_delay(SYNC_DELAY);
        disk.set_witness({
            let (faults, broker) = (Arc::clone(&faults), broker.clone());
            Arc::new(move |ops| faults.at_commit(ops, &broker))
        });
        Self {
            wire: Wire::new(broker.clone(), Arc::clone(&faults)),
            broker,
            disk,
            clock: Clock::manual(START_MS),
            faults,
            queues: Vec::new(),
            bindings: Vec::new(),
            patience: PATIENCE,
            run: String::new(),
            running: None,
        }
    }

    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn health(&self) -> Option<Health> {
        self.running.as_ref().map(|running| running.health.clone())
    }

    /// Queues that the broker gives the message to.
    pub(super) fn goes_to(&self, message: &Message, queue: &str) -> bool {
        let is_direct = message.exchange.is_empty() && message.routing_key == queue;
        let is_bound = |(exchange, routing_key, bound): &(String, String, String)| {
            (exchange, routing_key) == (&message.exchange, &message.routing_key) && bound == queue
        };
        is_direct || self.bindings.iter().any(is_bound)
    }

    /// What the broker gave to the queue, in order of arrival, by either or by both.
    pub(super) fn arrived(&self, queue: &str, by: Option<By>) -> Vec<Arc<Message>> {
        let is_meant = |logged: &Logged| {
            by.is_none_or(|by| logged.by == by) && self.goes_to(&logged.message, queue)
        };
        self.wire.log().into_iter().filter(is_meant).map(|logged| logged.message).collect()
    }

    pub(super) fn publish(&self, message: Message) {
        let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
        assert!(
            self.wire.publish(message),
            "no queue takes a message for exchange {exchange:?} with routing key {routing_key:?}: \
             give the queue a handler, or declare or bind it, before publishing"
        );
    }

    /// Publishes all that the test has published once more.
    pub(super) fn publish_again(&self) {
        for logged in self.wire.log().into_iter().filter(|logged| logged.by == By::Test) {
            self.publish(Message::clone(&logged.message));
        }
    }

    pub(super) fn start(&mut self) {
        assert!(self.running.is_none(), "the worker runs already");
        let mut store = StoreOptions::new("simulated");
        store.simulated = Some(self.disk.clone());
        store.clock = self.clock.clone();
        let mut worker = Worker::new(Options::with_broker(Arc::new(self.wire.clone()), store));
        for queue in &self.queues {
            self.broker.declare(&queue.options.queue);
            worker = (queue.install)(worker);
        }
        let health = worker.health();
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run_until(async { drop(stopped.await) }));
        self.running = Some(Running { health, stop: Some(stop), worker: tasks });
    }

    /// Runs until all is settled, and ends the worker by a drain; through a crash, if a fault is planned.
    pub(super) async fn run(&mut self) {
        loop {
            if self.running.is_none() {
                self.start();
            }
            if self.settle_once().await == Waited::Through
                && (!self.wire.deliver_again() || self.settle_once().await == Waited::Through)
                && self.drain_once().await == Waited::Through
            {
                return;
            }
            self.kill().await;
        }
    }

    /// Waits until all is settled; the worker goes on.
    pub(super) async fn settle(&mut self) {
        while self.settle_once().await == Waited::Crashed {
            self.kill().await;
            self.start();
        }
    }

    /// Ends the worker by a drain.
    pub(super) async fn drain(&mut self) {
        if self.running.is_some() && self.drain_once().await == Waited::Crashed {
            self.kill().await;
        }
    }

    /// Lets virtual time pass.
    pub(super) async fn wait(&mut self, time: Duration) -> bool {
        self.pass(time).await == Waited::Through
    }

    /// Moves the time on in one leap, as a pause of the whole machine does.
    pub(super) async fn leap(&mut self, time: Duration) {
        self.clock.advance(time);
        tokio::time::advance(time).await;
    }

    /// Ends the worker at once: what is not synced is gone, and the broker takes back what is not acked.
    pub(super) async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.worker.shutdown().await;
        }
        self.disk.cut();
        self.broker.disconnect_all();
        self.faults.recover();
        // Tasks that were aborted end in their next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn settle_once(&mut self) -> Waited {
        assert!(self.running.is_some(), "no worker runs: call `start` first, or `run`");
        let mut delay = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        loop {
            if self.pass(delay).await == Waited::Crashed {
                return Waited::Crashed;
            }
            if self.unsettled().is_empty() {
                return Waited::Through;
            }
            waited += delay;
            delay = (delay * 2).min(LOOK_INTERVAL_MAX);
            if waited > self.patience {
                self.hangs();
            }
        }
    }

    async fn drain_once(&mut self) -> Waited {
        let faults = Arc::clone(&self.faults);
        let Some(running) = &mut self.running else { return Waited::Through };
        // A worker that has ended by itself is found below.
        running.stop.take().map(|stop| stop.send(()));
        tokio::select! {
            biased;
            () = faults.crashed() => return Waited::Crashed,
            ended = running.worker.join_next() => match ended {
                None | Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => self.broke(&error),
                Some(Err(error)) => self.broke(&error),
            }
        }
        self.running = None;
        Waited::Through
    }

    async fn pass(&mut self, time: Duration) -> Waited {
        let faults = Arc::clone(&self.faults);
        let ended = async {
            match &mut self.running {
                Some(running) => running.worker.join_next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = faults.crashed() => return Waited::Crashed,
            Some(ended) = ended => match ended {
                Ok(Err(error)) => self.broke(&error),
                Err(error) => self.broke(&error),
                Ok(Ok(())) => self.broke(&"it ended by itself"),
            },
            () = tokio::time::sleep(time) => {}
        }
        self.clock.advance(time);
        Waited::Through
    }

    /// Queues with messages that are not settled, with how many wait and how many are being worked on.
    fn unsettled(&self) -> Vec<(String, (usize, usize))> {
        let unsettled = self
            .queues
            .iter()
            .map(|queue| &queue.options)
            .filter(|options| !self.wire.is_settled(&options.queue, options.prefetch.get()));
        let depth =
            |options: &QueueOptions| (options.queue.clone(), self.broker.depth(&options.queue));
        unsettled.map(depth).collect()
    }

    fn broke(&self, error: &dyn std::fmt::Display) -> ! {
        panic!("{}the worker stopped: {error}", self.run)
    }

    fn hangs(&self) -> ! {
        let mut reasons = Vec::new();
        for (queue, (waiting, unacked)) in self.unsettled() {
            reasons.push(format!(
                "queue {queue:?} has {waiting} waiting and {unacked} unacknowledged"
            ));
        }
        let faults = self.health().map(|health| health.readiness().faults).unwrap_or_default();
        reasons.extend(faults.into_iter().map(|(part, reason)| format!("{part}: {reason}")));
        let (run, patience) = (&self.run, self.patience);
        let reasons = reasons.join("; ");
        panic!("{run}messages are not settled after {patience:?} of virtual time: {reasons}")
    }
}
