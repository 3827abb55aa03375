//! The bed: builds a world, runs a worker on it, and kills it when told.
//!
//! Its calls are synchronous: it has a runtime of its own whose time is paused, and nothing moves between two calls. So
//! a test is a plain `#[test]`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::runtime::{Builder, Handle, Runtime};

use super::fault::Fault;
use super::world::{Consumed, World};
use crate::batch::{Batch, BatchHandler};
use crate::broker::MemoryBroker;
use crate::clock::Clock;
use crate::context::Context;
use crate::handler::{Handler, Result};
use crate::message::Message;
use crate::options::QueueOptions;
use crate::payload::FromMessage;
use crate::runtime::Worker;
use crate::store::SimulatedDisk;
use crate::telemetry::Readiness;

/// A worker with handlers of yours, on a broker in the process, a simulated disk and a clock that is paused.
///
/// What hangs is a panic that says so. Handlers must not wait for real sockets, files or threads: virtual time passes
/// at once while they do, and timeouts with it.
pub struct Testbed {
    pub(super) world: World,
    pub(super) observations: Vec<Observation>,
    /// Each message is published this many times.
    pub(super) copies: usize,
    /// Last: it ends what still runs in the world.
    pub(super) runtime: Runtime,
}

/// A name, and how what it names is read.
pub(super) type Observation = (String, Box<dyn Fn() -> String>);

impl fmt::Debug for Testbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Testbed")
            .field("is_running", &self.world.is_running())
            .finish_non_exhaustive()
    }
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}

impl Testbed {
    /// A bed without queues.
    ///
    /// # Panics
    ///
    /// Inside an asynchronous runtime, as in a `#[tokio::test]`: a bed has a runtime of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::with_fault(None, 1)
    }

    pub(super) fn with_fault(fault: Option<Fault>, copies: usize) -> Self {
        assert!(
            Handle::try_current().is_err(),
            "a Testbed has a runtime of its own, whose time is paused: use it in a plain #[test] function, not in a \
             #[tokio::test]"
        );
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
        Self { world: World::new(fault), observations: Vec::new(), copies, runtime }
    }

    /// Handles the messages of the queue of this name, with default options.
    pub fn queue<M, R, H>(&mut self, name: &str, handler: H)
    where
        M: FromMessage + Send + 'static,
        R: Serialize + Send + 'static,
        H: Handler<M, R>,
    {
        self.queue_with(QueueOptions::new(name), handler);
    }

    /// Handles the messages of a queue, which is made; the handler outlives the workers.
    ///
    /// A second handler for the same queue takes the place of the first, as a new version of the program does.
    pub fn queue_with<M, R, H>(&mut self, options: QueueOptions, handler: H)
    where
        M: FromMessage + Send + 'static,
        R: Serialize + Send + 'static,
        H: Handler<M, R>,
    {
        let handler = Arc::new(handler);
        let of_worker = options.clone();
        self.consume(Consumed {
            options,
            install: Box::new(move |worker: Worker| {
                worker.queue_with::<M, R, _>(of_worker.clone(), Kept(Arc::clone(&handler)))
            }),
        });
    }

    /// As [`queue_with`](Self::queue_with), in batches.
    pub fn batch_queue_with<M, H>(&mut self, options: QueueOptions, handler: H)
    where
        M: FromMessage + Send + 'static,
        H: BatchHandler<M>,
    {
        let handler = Arc::new(handler);
        let of_worker = options.clone();
        self.consume(Consumed {
            options,
            install: Box::new(move |worker: Worker| {
                worker.batch_queue_with::<M, _>(of_worker.clone(), Kept(Arc::clone(&handler)))
            }),
        });
    }

    fn consume(&mut self, queue: Consumed) {
        let name = &queue.options.queue;
        self.world.broker.declare(name);
        match self.world.queues.iter_mut().find(|known| known.options.queue == *name) {
            Some(known) => *known = queue,
            None => self.world.queues.push(queue),
        }
    }

    /// Makes a queue that nobody consumes.
    pub fn declare(&mut self, queue: &str) {
        self.world.broker.declare(queue);
    }

    /// Makes a queue, if it is not there, that gets what is published to the exchange with this routing key.
    pub fn bind(&mut self, exchange: &str, routing_key: &str, queue: &str) {
        self.world.broker.bind(exchange, routing_key, queue);
        let binding = (exchange.to_owned(), routing_key.to_owned(), queue.to_owned());
        self.world.bindings.push(binding);
    }

    /// Publishes a message, such as one of [`message`](super::message).
    ///
    /// # Panics
    ///
    /// If no queue takes it.
    pub fn publish(&mut self, message: impl Into<Message>) {
        let message = message.into();
        for _ in 0..self.copies {
            self.world.publish(message.clone());
        }
    }

    /// Watches something outside, such as what a stand-in for another system was asked to do:
    /// [`assert_idempotent`](super::assert_idempotent) compares what `read` gives at the end of each run.
    pub fn observe(&mut self, name: &str, read: impl Fn() -> String + 'static) {
        self.observations.push((name.to_owned(), Box::new(read)));
    }

    /// Starts the worker, unless it runs, waits until all messages are settled, and ends it by a drain.
    ///
    /// # Panics
    ///
    /// If messages are not settled within an hour of virtual time, with what hangs; if the worker ends by itself.
    pub fn run(&mut self) {
        self.runtime.block_on(self.world.run());
    }

    /// Starts the worker: it runs while one of the other calls waits.
    ///
    /// # Panics
    ///
    /// If it runs already.
    pub fn start(&mut self) {
        self.runtime.block_on(async { self.world.start() });
    }

    /// Waits until all messages are settled; the worker goes on.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run), and if no worker runs.
    pub fn settle(&mut self) {
        self.runtime.block_on(self.world.settle());
    }

    /// Lets this much virtual time pass, for the worker and for the clock that retention goes by.
    ///
    /// # Panics
    ///
    /// If the worker ends by itself.
    pub fn wait(&mut self, time: Duration) {
        let passed = self.runtime.block_on(self.world.wait(time));
        assert!(passed, "{}a crash was planned where the test waits", self.world.run);
    }

    /// Moves the time on at once, as if the machine had been suspended: what fell due meanwhile is due now.
    pub fn leap(&mut self, time: Duration) {
        self.runtime.block_on(self.world.leap(time));
    }

    /// Ends the worker by a drain: running handlers finish, what is not done goes back to the broker.
    ///
    /// # Panics
    ///
    /// If it ends with an error.
    pub fn drain(&mut self) {
        self.runtime.block_on(self.world.drain());
    }

    /// Ends the worker at once, as a power cut does: what is not synced is gone, and what is not acknowledged comes
    /// back.
    pub fn crash(&mut self) {
        self.runtime.block_on(self.world.kill());
    }

    /// A crash, and a start.
    pub fn restart(&mut self) {
        self.crash();
        self.start();
    }

    /// Cuts all connections to the broker, as a restart of the broker does.
    pub fn disconnect(&mut self) {
        self.world.broker.disconnect_all();
    }

    /// How long messages may take to be settled, in virtual time; default an hour.
    pub const fn set_patience(&mut self, patience: Duration) {
        self.world.patience = patience;
    }

    /// Whether the worker is ready, and why not; `None` if none runs.
    #[must_use]
    pub fn readiness(&self) -> Option<Readiness> {
        self.world.health().map(|health| health.readiness())
    }

    /// The broker.
    #[must_use]
    pub const fn broker(&self) -> &MemoryBroker {
        &self.world.broker
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &SimulatedDisk {
        &self.world.disk
    }

    /// The clock that retention goes by.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.world.clock
    }
}

/// A handler that several workers use, one after the other.
struct Kept<H>(Arc<H>);

impl<M, R, H> Handler<M, R> for Kept<H>
where
    M: Send,
    H: Handler<M, R>,
{
    fn handle(&self, cx: &mut Context, message: M) -> impl Future<Output = Result<R>> + Send {
        self.0.handle(cx, message)
    }
}

impl<M, H: BatchHandler<M>> BatchHandler<M> for Kept<H> {
    fn handle(&self, batch: &mut Batch<M>) -> impl Future<Output = Result> + Send {
        self.0.handle(batch)
    }
}
