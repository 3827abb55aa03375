//! One queue's life: connect, consume, hand to actors, lose the connection, connect again; at last drain.
//!
//! Owns the queue's actors and the settler of the current generation. A generation is one connection: when it
//! ends, what waits is forgotten and what runs goes on. Nothing here decides about a message.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::RunError;
use super::actor;
use super::admission::Generation;
use super::drain;
use super::intake::Intake;
use super::queue::Queue;
use super::settle::Settler;
use super::window::AckWindow;
use crate::backoff::Reconnect;
use crate::broker::{Broker, BrokerError, Deliveries, Delivery, Session, Subscription};
use crate::clock::duration_ms;
use crate::failpoint::{self, Point};
use crate::store::StoreError;

/// How often gauges are set and ended actors looked for when nothing arrives.
const TICK: Duration = Duration::from_millis(500);

/// How long a key may be ready before one more actor is called: those that are awake may block their threads.
const RELIEF: Duration = Duration::from_millis(2);

/// Deliveries taken in one go before actors and settler get a turn.
const BURST: usize = 64;

/// Unreadable heads in a row after which the queue counts as blocked.
const UNREADABLE_MAX: u32 = 3;

/// How long a blocked queue waits before it looks whether its head was taken out.
const BLOCKED_DELAY: Duration = Duration::from_secs(5);

/// How long a connection must live before it counts as good: a head that cannot be parsed ends it at once.
const PROOF: Duration = Duration::from_secs(2);

/// Consumes one queue until the drain.
pub(crate) struct Consumer {
    queue: Arc<Queue>,
    broker: Arc<dyn Broker>,
    drain_limit: Duration,
    actors: JoinSet<Result<(), StoreError>>,
    intake: Intake,
    generation: Generation,
    reconnect: Reconnect,
    /// Connections in a row that ended at a message that cannot be parsed.
    unreadable: u32,
    /// Messages to take one by one before the full prefetch returns: the unreadable one is among them.
    isolated: u16,
    /// Until when the current connection has to live to count as good; `None` once it does.
    on_trial: Option<Instant>,
    /// Name in [`crate::Health`].
    part: String,
}

/// Why a generation ended without an error of our own.
enum Ended {
    Draining,
    Lost(BrokerError),
    /// Another prefetch is due: every message that could be the unreadable one was read, or sizes have changed.
    Resized,
}

impl Consumer {
    pub(crate) fn new(queue: Arc<Queue>, broker: Arc<dyn Broker>, drain_limit: Duration) -> Self {
        let part = format!("queue {}", queue.name);
        queue.health.fault(&part, "connecting");
        Self {
            intake: Intake::new(Arc::clone(&queue)),
            queue,
            broker,
            drain_limit,
            actors: JoinSet::new(),
            generation: Generation::default(),
            reconnect: Reconnect::default(),
            unreadable: 0,
            isolated: 0,
            on_trial: None,
            part,
        }
    }

    /// # Errors
    ///
    /// A queue that cannot be owned, a failed store, or a panic in our own code.
    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        loop {
            let subscription = self.subscription();
            let broker = Arc::clone(&self.broker);
            let draining = self.queue.draining.clone();
            let connecting = async {
                tokio::select! {
                    biased;
                    () = draining.begun() => None,
                    session = broker.consume(&subscription) => Some(session),
                }
            };
            let ended = match self.watching(connecting).await? {
                None => return self.drain().await,
                Some(Ok(session)) => self.consume(session).await?,
                Some(Err(error)) => Ended::Lost(error),
            };
            match ended {
                Ended::Draining => return Ok(()),
                Ended::Resized => {}
                Ended::Lost(error @ BrokerError::NotOwnable { .. }) => {
                    return Err(RunError::Refused(error));
                }
                Ended::Lost(error) => self.wait_to_reconnect(error).await?,
            }
        }
    }

    fn subscription(&self) -> Subscription {
        let options = &self.queue.options;
        // After an unreadable message one at a time: its neighbours are not to be counted as delivered with it.
        let prefetch = if self.isolated > 0 { NonZeroU16::MIN } else { self.intake.prefetch() };
        Subscription {
            queue: options.queue.clone(),
            declare: options.declare,
            owner: options.owner,
            prefetch,
        }
    }

    async fn consume(&mut self, session: Session) -> Result<Ended, RunError> {
        let Session { mut deliveries, acks } = session;
        self.generation =
            Generation { number: self.generation.number + 1, over: CancellationToken::new() };
        let generation = self.generation.number;
        let queue = Arc::clone(&self.queue);
        queue.settlements.begin(generation, &queue.metrics);
        queue.unacked.begin(self.subscription().prefetch.get());
        if self.unreadable < UNREADABLE_MAX {
            info!(
                queue = &*queue.name, broker = %self.broker.address(), generation,
                prefetch = self.subscription().prefetch, "consuming"
            );
        }
        self.on_trial = Some(Instant::now() + PROOF);
        if self.unreadable == 0 {
            queue.health.clear(&self.part);
        }

        let mut settler = JoinSet::new();
        settler.spawn({
            let queue = Arc::clone(&queue);
            async move {
                let settler = Settler {
                    settlements: &queue.settlements,
                    metrics: &queue.metrics,
                    store: &queue.store,
                    unacked: &queue.unacked,
                    acks,
                    window: AckWindow::default(),
                };
                settler.run().await
            }
        });
        let ended = self.take_in(&mut deliveries, &mut settler).await?;
        queue.drop_waiting(generation);
        if !matches!(ended, Ended::Draining) {
            self.generation.over.cancel();
            // Joined before the next one starts, or it could take that one's tags.
            settler.shutdown().await;
        }
        if let Ended::Draining = ended {
            // The stream is kept until the channel is closed: the broker requeues in order then.
            self.drain().await?;
            queue.settlements.close();
            if let Some(settled) = settler.join_next().await
                && let Err(error) = self.joined("settler", settled)?
            {
                warn!(queue = &*queue.name, error = %error, "the last acks may not have arrived");
            }
        }
        Ok(ended)
    }

    /// Hands deliveries to actors until the generation ends.
    async fn take_in(
        &mut self,
        deliveries: &mut Deliveries,
        settler: &mut JoinSet<Result<(), BrokerError>>,
    ) -> Result<Ended, RunError> {
        let queue = Arc::clone(&self.queue);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut relief = tokio::time::interval(RELIEF);
        relief.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_stopped = self.intake.is_stopped();
            // Every branch is cancel-safe: a delivery that was not taken stays in the stream.
            tokio::select! {
                biased;
                () = queue.draining.begun() => return Ok(Ended::Draining),
                Some(settled) = settler.join_next() => {
                    let error = self.joined("settler", settled)?.err();
                    // What is left in the stream of a dead channel is worth its last item only.
                    let said = std::iter::from_fn(|| deliveries.next().now_or_never().flatten());
                    let error = said.filter_map(Result::err).last().or(error);
                    return Ok(Ended::Lost(error.unwrap_or_else(|| self.closed())));
                }
                Some(ended) = self.actors.join_next(), if !self.actors.is_empty() => {
                    self.actor_ended(ended)?;
                }
                () = queue.short_of_actors.notified() => {
                    for _ in 0..queue.actors_to_start() {
                        self.actors.spawn(actor::run(Arc::clone(&queue)));
                    }
                }
                _ = relief.tick(), if queue.has_ready() => {
                    queue.relieve_actors(Instant::now() - RELIEF);
                }
                _ = tick.tick() => {
                    self.show_load();
                    queue.give_back();
                    self.intake.look(self.generation.number, Instant::now());
                    queue.gate.look(Instant::now());
                    if self.on_trial.is_some_and(|proof| Instant::now() >= proof) {
                        self.proved();
                    }
                }
                () = queue.contested.notified() => {
                    for message in queue.take_readmitted() {
                        queue.enter(Box::new(message));
                    }
                }
                () = self.intake.changed() => {}
                delivery = deliveries.next(), if !is_stopped => {
                    if let Some(ended) = self.take(delivery) {
                        return Ok(ended);
                    }
                    if let Some(ended) = self.take_ready(deliveries) {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Takes what is there already, without waiting: one turn of the loop serves many deliveries.
    fn take_ready(&mut self, deliveries: &mut Deliveries) -> Option<Ended> {
        for _ in 0..BURST {
            if self.intake.is_stopped() {
                return None;
            }
            let Some(delivery) = deliveries.next().now_or_never() else {
                self.intake.drained(Instant::now());
                return None;
            };
            if let Some(ended) = self.take(delivery) {
                return Some(ended);
            }
        }
        None
    }

    fn take(&mut self, delivery: Option<Result<Delivery, BrokerError>>) -> Option<Ended> {
        match delivery {
            Some(Ok(delivery)) => {
                self.queue.metrics.received.increment(1);
                self.queue.unacked.received();
                failpoint::reached(Point::Received);
                let was_isolated = self.isolated > 0;
                let random = || fastrand::u128(..).to_le_bytes();
                let now = Instant::now();
                let admitted = self.queue.admission.admit(delivery, &self.generation, now, random);
                let bytes = admitted.bytes;
                self.queue.enter(admitted);
                self.proved();
                self.isolated = self.isolated.saturating_sub(1);
                let is_readable = was_isolated && self.isolated == 0;
                (self.intake.took(bytes) || is_readable).then_some(Ended::Resized)
            }
            Some(Err(error)) => Some(Ended::Lost(error)),
            None => Some(Ended::Lost(self.closed())),
        }
    }

    /// The connection is good: the next loss starts from the shortest delay, and nothing blocks the queue.
    fn proved(&mut self) {
        if self.on_trial.take().is_some() {
            self.unreadable = 0;
            self.reconnect.connected();
            self.queue.health.clear(&self.part);
            self.queue.metrics.blocked.set(0.0);
        }
    }

    fn closed(&self) -> BrokerError {
        BrokerError::Lost {
            address: self.broker.address(),
            reason: "the stream of deliveries ended".to_owned(),
        }
    }

    async fn wait_to_reconnect(&mut self, error: BrokerError) -> Result<(), RunError> {
        let queue = Arc::clone(&self.queue);
        queue.metrics.reconnects.increment(1);
        let delay = match &error {
            BrokerError::Unreadable { .. } => {
                self.unreadable += 1;
                if self.unreadable < UNREADABLE_MAX {
                    self.isolated = queue.options.prefetch.get();
                    Duration::from_millis(100)
                } else {
                    // It was the head each time: once that can be read, the bad one is gone.
                    self.isolated = 1;
                    BLOCKED_DELAY
                }
            }
            _ => self.reconnect.delay_after_loss(),
        };
        let unreadable = matches!(error, BrokerError::Unreadable { .. });
        if unreadable && self.unreadable >= UNREADABLE_MAX {
            queue.metrics.blocked.set(1.0);
            if self.unreadable == UNREADABLE_MAX {
                error!(
                    queue = &*queue.name, error = %error,
                    "the message at the head of the queue cannot be parsed and blocks it: take it out, \
                     see \"A message that cannot be parsed\" in the README"
                );
            }
        } else {
            warn!(
                queue = &*queue.name, error = %error, delay_ms = duration_ms(delay),
                "not consuming, will connect again"
            );
        }
        queue.health.fault(&self.part, error.to_string());
        let draining = queue.draining.clone();
        let waiting = async move {
            tokio::select! {
                biased;
                () = draining.begun() => {}
                () = tokio::time::sleep(delay) => {}
            }
        };
        self.watching(waiting).await
    }

    async fn drain(&mut self) -> Result<(), RunError> {
        self.queue.health.fault(&self.part, "shutting down");
        let limit = self.drain_limit;
        for ended in drain::finish(&self.queue, &mut self.actors, limit).await {
            self.actor_ended(ended)?;
        }
        Ok(())
    }

    /// Runs `future` and looks after the actors meanwhile.
    async fn watching<T>(&mut self, future: impl Future<Output = T>) -> Result<T, RunError> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                Some(ended) = self.actors.join_next(), if !self.actors.is_empty() => {
                    self.actor_ended(ended)?;
                }
            }
        }
    }

    fn actor_ended(
        &self,
        ended: Result<Result<(), StoreError>, JoinError>,
    ) -> Result<(), RunError> {
        self.joined("actor", ended)?.map_err(RunError::StoreFailed)
    }

    fn joined<T>(&self, task: &'static str, ended: Result<T, JoinError>) -> Result<T, RunError> {
        ended.map_err(|error| RunError::Bug { task, queue: self.queue.name.to_string(), error })
    }

    fn show_load(&self) {
        let (waiting, running) = self.queue.load();
        self.queue.metrics.waiting.set(waiting as f64);
        self.queue.metrics.in_flight.set(running as f64);
        if self.intake.store_is_full() {
            self.queue.health.fault("store", "full: intake is stopped until records expire");
        } else {
            self.queue.health.clear("store");
        }
    }
}
