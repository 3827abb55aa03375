//! The runtime: consumers, per-key actors, claims, retries, settlement, drain.
//!
//! Joins broker and store, which do not know each other. The way of one message is told in ARCHITECTURE.md.

use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use tokio::task::JoinError;

use crate::batch::{BatchHandler, ErasedBatch};
use crate::broker::{BrokerError, Publisher, PublisherTask};
use crate::handler::{AnyHandler, Erased, Handler};
use crate::options::{OptionError, Options, QueueOptions};
use crate::payload::FromMessage;
use crate::store::StoreError;
use crate::telemetry::Health;

mod actor;
mod admission;
mod attempt;
mod batch;
mod breaker;
mod burst;
mod claims;
mod commit;
mod consumer;
mod crew;
mod dead_letter;
mod drain;
mod draining;
mod duplicate;
mod gate;
mod identity_lock;
mod intake;
mod key_memory;
mod load;
mod mailbox;
mod pace;
mod prefetch;
mod queue;
mod rate;
mod reply;
mod roster;
mod run;
mod settle;
mod spare;
mod step_rows;
mod supervisor;
mod thread;
mod unacked;
mod under_way;
mod verdict;
mod window;

use self::supervisor::{Registered, Supervisor};

/// Consumes queues and makes the effect of every message happen once.
///
/// ```no_run
/// use onceward::{Context, Options, Worker};
///
/// #[derive(serde::Deserialize)]
/// struct Order { item: String }
///
/// async fn on_order(cx: &mut Context, order: Order) -> onceward::Result {
///     println!("{}: {}", cx.id(), order.item);
///     Ok(())
/// }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let options = Options::new("amqp://guest:guest@127.0.0.1:5672/%2f", "./onceward-data")?;
/// Worker::new(options).queue("orders", on_order).run().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a worker does nothing until it runs"]
pub struct Worker {
    options: Options,
    queues: Vec<Registered>,
    health: Health,
    publisher: Publisher,
    publisher_task: PublisherTask,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Why a worker stopped, by what is to be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The store could not be opened, or a write failed: mend the disk; nothing was acknowledged since.
    #[error(transparent)]
    StoreFailed(StoreError),
    /// A queue cannot be consumed as it is: change the queue or the options.
    #[error(transparent)]
    Refused(BrokerError),
    /// Options of a queue contradict each other: change the one that is named; nothing was opened or consumed.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// Two handlers were registered for one queue: leave one out.
    #[error("queue {queue:?} is registered twice")]
    Twice {
        /// The queue.
        queue: String,
    },
    /// A second signal ended the drain: what was running is returned to the broker.
    #[error("a second signal ended the drain before running handlers had finished")]
    Interrupted,
    /// A task of the worker ended that never does: a bug of onceward.
    #[error("the {task} ended by itself; this is a bug in onceward, please report it")]
    Ended {
        /// Which task.
        task: &'static str,
    },
    /// A task of the worker panicked: a bug of onceward, as handlers' panics are caught.
    #[error("the {task} of queue {queue:?} panicked; this is a bug in onceward, please report it")]
    Bug {
        /// Which task.
        task: &'static str,
        /// Of which queue, if of one.
        queue: String,
        /// The panic.
        #[source]
        error: JoinError,
    },
    /// The system gives no notice of signals.
    #[error("no notice of signals: {0}")]
    Signals(#[source] std::io::Error),
}

impl Worker {
    /// A worker without queues.
    pub fn new(options: Options) -> Self {
        let health = Health::default();
        let (publisher, publisher_task) =
            PublisherTask::new(Arc::clone(&options.broker), health.clone());
        Self { options, queues: Vec::new(), health, publisher, publisher_task }
    }

    /// Consumes the queue of this name with default options.
    pub fn queue<M, R, H>(self, name: &str, handler: H) -> Self
    where
        M: FromMessage + Send + 'static,
        R: Serialize + Send + 'static,
        H: Handler<M, R>,
    {
        self.queue_with(QueueOptions::new(name), handler)
    }

    /// Consumes a queue with options of its own.
    pub fn queue_with<M, R, H>(mut self, options: QueueOptions, handler: H) -> Self
    where
        M: FromMessage + Send + 'static,
        R: Serialize + Send + 'static,
        H: Handler<M, R>,
    {
        let handler = AnyHandler::Single(Arc::new(Erased::new(handler, options.codec)));
        self.queues.push((options, handler));
        self
    }

    /// Consumes a queue in batches: up to [`QueueOptions::batch`] waiting messages of one key in one run.
    pub fn batch_queue_with<M, H>(mut self, options: QueueOptions, handler: H) -> Self
    where
        M: FromMessage + Send + 'static,
        H: BatchHandler<M>,
    {
        let handler = AnyHandler::Batch(Arc::new(ErasedBatch::new(handler, options.codec)));
        self.queues.push((options, handler));
        self
    }

    /// Publishes over the worker's publishing connection; works while the worker runs.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Whether the worker is ready, and why not.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Runs until SIGTERM or SIGINT, then drains; a second signal ends the drain at once.
    ///
    /// # Errors
    ///
    /// See [`RunError`]. A broker that is not there is no error: the worker connects for ever.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, everything stops as after a crash: nothing is lost, some runs are repeated.
    pub async fn run(self) -> Result<(), RunError> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
        let (first, begun) = tokio::sync::oneshot::channel();
        let second = async move {
            for announce in [Some(first), None] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if let Some(first) = announce {
                    // The worker may have ended by itself just now.
                    let _ = first.send(());
                }
            }
        };
        tokio::select! {
            biased;
            ended = self.run_until(async { drop(begun.await) }) => ended,
            () = second => Err(RunError::Interrupted),
        }
    }

    /// Runs until `shutdown` is ready, then drains: running handlers finish, what is done is acked, the rest goes
    /// back to the broker. Touches no signals.
    ///
    /// # Errors
    ///
    /// See [`RunError`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, everything stops as after a crash: nothing is lost, some runs are repeated.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { options, queues, health, publisher, publisher_task } = self;
        for (queue, handler) in &queues {
            queue.check()?;
            if matches!(handler, AnyHandler::Batch(_)) {
                queue.check_for_batches()?;
            }
        }
        Supervisor { options, queues, health, publisher, publisher_task }.run(shutdown).await
    }
}
