//! Starts everything, owns every task, and ends everything: by a drain, or at the first failure.
//!
//! A part of our own that panics or a store that fails stops the whole worker: a worker that limps would ack less than
//! it did or more than it may.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::RunError;
use super::consumer::Consumer;
use super::draining::Draining;
use super::identity_lock::IdentityLocks;
use super::queue::{Queue, QueueParts};
use crate::broker::{Publisher, PublisherTask};
use crate::handler::AnyHandler;
use crate::options::{Options, QueueOptions};
use crate::outbox::{Otherwise, RelayParts, RelayTask, Sender};
use crate::store::{Committer, QueueId, QueueIds, QueueRetention, Store};
use crate::telemetry::{Health, describe_all};

/// How long tasks may take to let go after a failure.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// A queue with the handler of its messages.
pub(crate) type Registered = (QueueOptions, AnyHandler);

pub(crate) struct Supervisor {
    pub(crate) options: Options,
    pub(crate) queues: Vec<Registered>,
    pub(crate) health: Health,
    pub(crate) publisher: Publisher,
    pub(crate) publisher_task: PublisherTask,
}

/// What a task that the supervisor owns is for.
enum Task {
    Consumer,
    Committer,
    Publisher,
    Relay,
}

impl Task {
    const fn name(&self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Committer => "committer",
            Self::Publisher => "publisher",
            Self::Relay => "relay",
        }
    }
}

impl Supervisor {
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        describe_all();
        let mut names = HashSet::new();
        if let Some((twice, _)) = self.queues.iter().find(|(queue, _)| !names.insert(&queue.queue))
        {
            return Err(RunError::Twice { queue: twice.queue.clone() });
        }
        self.health.fault("store", "opening");
        let Self { options, queues, health, publisher, mut publisher_task } = self;
        let (store, committer, ids) = open_store(&options, &queues).await?;
        health.clear("store");
        let (draining, stopping) = (Draining::default(), CancellationToken::new());
        let dead_letters: BTreeSet<String> =
            queues.iter().map(|(queue, _)| queue.dead_letter.clone()).collect();
        publisher_task.keep_queues(dead_letters);

        let mut tasks: JoinSet<(Task, Result<(), RunError>)> = JoinSet::new();
        tasks.spawn({
            let stopping = stopping.clone();
            async move {
                let ended = committer.run(stopping).await;
                (Task::Committer, ended.map_err(RunError::StoreFailed))
            }
        });
        tasks.spawn({
            let stopping = stopping.clone();
            async move {
                publisher_task.run(stopping).await;
                (Task::Publisher, Ok(()))
            }
        });
        let (relay, mut relay_task) = RelayTask::new(RelayParts {
            store: store.clone(),
            publisher: publisher.clone(),
            health: health.clone(),
            draining: draining.token(),
        });
        let identity_locks = Arc::new(IdentityLocks::default());
        let queues: Vec<Arc<Queue>> = queues
            .into_iter()
            .zip(ids)
            .map(|((queue_options, handler), ids)| {
                Arc::new(Queue::new(QueueParts {
                    options: queue_options,
                    ids,
                    handler,
                    store: store.clone(),
                    relay: relay.clone(),
                    health: health.clone(),
                    draining: draining.clone(),
                    identity_locks: Arc::clone(&identity_locks),
                }))
            })
            .collect();
        // Before the first delivery: a redelivery of what is unsent must find that out.
        recover(&store, &mut relay_task, &queues);
        let relay_stopping = CancellationToken::new();
        tasks.spawn({
            let stopping = relay_stopping.clone();
            async move {
                let ended = relay_task.run(stopping).await;
                (Task::Relay, ended.map_err(RunError::StoreFailed))
            }
        });
        let mut consumers = queues.len();
        for queue in queues {
            let consumer = Consumer::new(queue, Arc::clone(&options.broker), options.drain);
            tasks.spawn(async move { (Task::Consumer, consumer.run().await) });
        }
        let supervised = async {
            let mut shutdown = std::pin::pin!(shutdown);
            while consumers > 0 {
                tokio::select! {
                    biased;
                    Some(ended) = tasks.join_next() => match Self::ended(ended)? {
                        Task::Consumer => consumers -= 1,
                        // No other ends before it is told to.
                        other => return Err(RunError::Ended { task: other.name() }),
                    },
                    () = &mut shutdown, if !draining.has_begun() => {
                        info!(drain = ?options.drain, "draining: no new run, running handlers finish");
                        draining.begin();
                    }
                }
            }
            // It publishes and commits, so it ends before those who do it.
            relay_stopping.cancel();
            if let Some(ended) = tasks.join_next().await {
                match Self::ended(ended)? {
                    Task::Relay => {}
                    other => return Err(RunError::Ended { task: other.name() }),
                }
            }
            stopping.cancel();
            while let Some(ended) = tasks.join_next().await {
                Self::ended(ended)?;
            }
            Ok(())
        };
        let ended = supervised.await;
        // Kept until here: committer and publisher end when they are told to, not when the last one that uses them lets
        // go. The news of their end could come before that of the other's.
        drop((store, publisher));
        if ended.is_err() {
            // Whoever starts the next worker at once is not to find handlers of this one at work.
            let _ = tokio::time::timeout(ABORT_GRACE, tasks.shutdown()).await;
        }
        ended.inspect(|()| info!("stopped"))
    }

    fn ended(ended: Result<(Task, Result<(), RunError>), JoinError>) -> Result<Task, RunError> {
        match ended {
            Ok((task, Ok(()))) => Ok(task),
            Ok((_, Err(failed))) => {
                error!(error = %failed, "the worker stops");
                Err(failed)
            }
            Err(error) => {
                let failed = RunError::Bug { task: "supervised task", queue: String::new(), error };
                error!(error = %failed, "the worker stops");
                Err(failed)
            }
        }
    }
}

/// Hands the relay what an earlier process left unsent.
fn recover(store: &Store, relay: &mut RelayTask, queues: &[Arc<Queue>]) {
    let by_id: HashMap<QueueId, &Arc<Queue>> =
        queues.iter().map(|queue| (queue.id, queue)).collect();
    let mut of_others: Option<Arc<Sender>> = None;
    for row in store.take_unsent() {
        let (sender, otherwise) = match by_id.get(&row.key.queue) {
            Some(queue) => (Arc::clone(&queue.outgoing), queue.otherwise()),
            None => {
                let others = || Arc::new(Sender::of_messages("(not configured)"));
                (Arc::clone(of_others.get_or_insert_with(others)), Otherwise::Hold)
            }
        };
        relay.recover(row, sender, otherwise);
    }
}

async fn open_store(
    options: &Options,
    queues: &[Registered],
) -> Result<(Store, Committer, Vec<QueueIds>), RunError> {
    let retentions: Vec<QueueRetention> =
        queues.iter().map(|(queue, _)| retention_of(queue)).collect();
    let progress = |records: u64| info!(records, "reading the store");
    Store::open(&options.store, &retentions, &progress).await.map_err(RunError::StoreFailed)
}

/// The queue's retention, and those of its classes in the order of their values.
fn retention_of(queue: &QueueOptions) -> QueueRetention {
    let values = queue.retention_by.iter().flat_map(|by| &by.values);
    let classes = values.map(|(value, retention)| (value.clone(), *retention));
    QueueRetention {
        name: queue.queue.clone(),
        retention: queue.retention,
        classes: classes.collect(),
    }
}
