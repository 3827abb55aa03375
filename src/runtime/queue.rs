//! What consumer, actors and committer share of one queue, and the transitions of its messages.
//!
//! Mailboxes and claims lie under one lock, held for a few map operations and never across an await. A claim
//! ends in one of two ways: with a proof that its outcome is durable, which settles its tags, or by a release,
//! which leaves them to the broker.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tracing::info;

use super::admission::{ActorKey, Admission, Admitted};
use super::claims::{Claimed, Claims};
use super::crew::Crew;
use super::draining::Draining;
use super::gate::Gate;
use super::identity_lock::IdentityLocks;
use super::load::InFlight;
use super::mailbox::Mailboxes;
use super::pace::Pace;
use super::roster;
use super::settle::Settlements;
use super::unacked::Unacked;
use super::under_way::CommitsUnderWay;
use crate::clock::duration_ms;
use crate::effects::Limits;
use crate::failpoint::{self, Point};
use crate::handler::AnyHandler;
use crate::identity::{Identity, Scope};
use crate::message::{HeaderValue, Message};
use crate::options::{OnDuplicate, OnUnroutable, QueueOptions};
use crate::outbox::{Otherwise, Relay, Sender};
use crate::planted::{self, Bug};
use crate::store::{KeyId, Persisted, QueueId, QueueIds, Store, StoreError};
use crate::telemetry::{Health, QueueMetrics};

/// One queue of a running worker.
pub(crate) struct Queue {
    pub(crate) options: QueueOptions,
    pub(crate) name: Arc<str>,
    pub(crate) id: QueueId,
    pub(crate) ids: QueueIds,
    pub(crate) handler: AnyHandler,
    pub(crate) store: Store,
    pub(crate) relay: Relay,
    /// Sends what its handler publishes.
    pub(crate) outgoing: Arc<Sender>,
    /// Sends its dead letters.
    pub(crate) letters: Arc<Sender>,
    pub(crate) health: Health,
    pub(crate) admission: Admission,
    pub(crate) settlements: Settlements,
    pub(crate) metrics: QueueMetrics,
    /// Of what handlers stage.
    pub(crate) limits: Limits,
    /// Before every attempt.
    pub(crate) gate: Gate,
    /// Handlers that may run at once.
    pub(crate) permits: Semaphore,
    /// Messages that may have ended the process, one at a time.
    pub(crate) suspects: Semaphore,
    /// Set if ids are unique beyond this queue.
    pub(crate) shared_identities: Option<Arc<IdentityLocks>>,
    /// When it begins: no new run, and nobody waits for a retry.
    pub(crate) draining: Draining,
    dispatch: Mutex<Dispatch>,
    /// What `Dispatch::claims` says of bytes.
    pub(crate) in_flight: InFlight,
    pub(crate) unacked: Unacked,
    /// Deliveries in `Dispatch::readmit`.
    pub(crate) contested: Notify,
    /// Actors are to be started: [`Self::actors_to_start`].
    pub(crate) short_of_actors: Notify,
    /// Where actors rest, until one of its permits is for them; closed when they are dismissed.
    pub(crate) called: Semaphore,
    /// Commits that were handed in and have not settled yet.
    pub(super) commits: CommitsUnderWay,
    said_no_key: std::sync::Once,
    /// Why nothing may end well any more: what a run read of the store is not what was written.
    pub(super) unreadable: OnceLock<StoreError>,
}

#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) claims: Claims,
    pub(super) mailboxes: Mailboxes,
    pub(super) crew: Crew,
    /// Contested deliveries whose claim has ended.
    readmit: Vec<Admitted>,
}

/// What a [`Queue`] is made of.
pub(crate) struct QueueParts {
    pub(crate) options: QueueOptions,
    pub(crate) ids: QueueIds,
    pub(crate) handler: AnyHandler,
    pub(crate) store: Store,
    pub(crate) relay: Relay,
    pub(crate) health: Health,
    pub(crate) draining: Draining,
    pub(crate) identity_locks: Arc<IdentityLocks>,
}

/// Longest time that an option can name: beyond any that the clock can add.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl Queue {
    pub(crate) fn new(parts: QueueParts) -> Self {
        let QueueParts {
            mut options,
            ids,
            handler,
            store,
            relay,
            health,
            draining,
            identity_locks,
        } = parts;
        options.timeout = options.timeout.min(TIME_MAX);
        let admission = Admission {
            resolver: crate::identity::Resolver::new(options.identity.clone(), &options.queue),
            hash_key: store.hash_key().clone(),
            body_bytes_max: options.body_bytes_max,
        };
        Self {
            name: options.queue.as_str().into(),
            metrics: QueueMetrics::new(&options.queue),
            limits: Limits {
                codec: options.codec,
                state_bytes_max: options.state_bytes_max,
                result_bytes_max: options.result_bytes_max,
                outgoing_bytes_max: options.outgoing_bytes_max,
            },
            outgoing: Arc::new(Sender::of_messages(&options.queue)),
            letters: Arc::new(Sender::of_dead_letters(&options.queue, &options.dead_letter)),
            in_flight: InFlight::new(options.in_flight_bytes_max),
            unacked: Unacked::new(store.clone()),
            gate: Gate::new(&options, Pace::new(&options, draining.clone()), health.clone()),
            permits: Semaphore::new(options.concurrency.get().min(Semaphore::MAX_PERMITS)),
            suspects: Semaphore::new(1),
            shared_identities: (options.identity.scope != Scope::Queue).then_some(identity_locks),
            options,
            id: ids.own,
            ids,
            handler,
            store,
            relay,
            health,
            admission,
            settlements: Settlements::default(),
            draining,
            dispatch: Mutex::new(Dispatch {
                claims: Claims::default(),
                mailboxes: Mailboxes::default(),
                crew: Crew::new(roster::threads()),
                readmit: Vec::new(),
            }),
            contested: Notify::new(),
            short_of_actors: Notify::new(),
            called: Semaphore::new(0),
            commits: CommitsUnderWay::default(),
            said_no_key: std::sync::Once::new(),
            unreadable: OnceLock::new(),
        }
    }

    /// Claims the message's identity and puts it into its mailbox; calls an actor if its key has none.
    pub(crate) fn enter(&self, message: Box<Admitted>) {
        if matches!(message.key, ActorKey::Own(_)) && message.id.is_some() {
            self.say_no_key();
        }
        // A twin that asks for a reply needs one of its own.
        let is_answered = self.options.on_duplicate == OnDuplicate::Replay
            && message.message.properties.reply_to.is_some();
        let mut dispatch = self.lock();
        match dispatch.claims.claim(&message, !is_answered) {
            Claimed::New => {
                failpoint::reached(Point::Claimed);
                self.in_flight.set(dispatch.claims.bytes());
                if dispatch.mailboxes.put(message) {
                    let call = dispatch.crew.call();
                    drop(dispatch);
                    self.answer(call);
                }
            }
            Claimed::Joined => {
                drop(dispatch);
                self.metrics.duplicates.increment(1);
            }
            Claimed::Contested => {
                dispatch.claims.contest(*message);
                self.in_flight.set(dispatch.claims.bytes());
            }
        }
    }

    /// The journal that keeps the message's record: by its retention.
    pub(crate) fn lane(&self, message: &Message) -> QueueId {
        let Some(by) = &self.options.retention_by else { return self.ids.own };
        let class = message.properties.headers.get(&by.header).and_then(HeaderValue::as_str);
        let class = class.filter(|_| !planted::is(Bug::ClassRetentionIgnored));
        by.values
            .keys()
            .position(|value| Some(value.as_str()) == class)
            .and_then(|at| self.ids.classes.get(at).copied())
            .unwrap_or(self.ids.own)
    }

    /// Ends the claim with an outcome that is durable: its tags are settled.
    pub(crate) fn finish(&self, identity: Identity, proof: Persisted) {
        let tags = self.end_claim(identity);
        self.settlements.settle(&tags, proof, &self.metrics);
    }

    /// Ends the claim without an outcome: the broker still has the message and delivers it again.
    pub(crate) fn release(&self, identity: Identity) {
        let tags = self.end_claim(identity);
        self.metrics.returned.increment(tags.len() as u64);
    }

    fn end_claim(&self, identity: Identity) -> super::claims::Tags {
        let mut dispatch = self.lock();
        let (tags, contested) = dispatch.claims.end(identity);
        self.in_flight.set(dispatch.claims.bytes());
        if !contested.is_empty() {
            dispatch.readmit.extend(contested);
            self.contested.notify_one();
        }
        tags
    }

    /// Whether no new run may start.
    pub(crate) fn is_leaving(&self) -> bool {
        let is_draining = self.draining.has_begun() && !planted::is(Bug::RunInDrain);
        is_draining || self.store.has_failed()
    }

    /// Contested deliveries to be judged now.
    pub(crate) fn take_readmitted(&self) -> Vec<Admitted> {
        std::mem::take(&mut self.lock().readmit)
    }

    /// The generation is over: what waits is forgotten, as the broker delivers it again, in order.
    ///
    /// What runs goes on: its redelivery joins it.
    pub(crate) fn drop_waiting(&self, generation: u32) {
        let mut dispatch = self.lock();
        let waiting = dispatch.mailboxes.drop_generation(generation);
        let mut returned = dispatch.claims.drop_contested(generation);
        let before = dispatch.readmit.len();
        dispatch.readmit.retain(|message| message.tag.generation != generation);
        returned += before - dispatch.readmit.len();
        for identity in waiting.into_iter().filter(|_| !planted::is(Bug::ClaimNotReleased)) {
            // Nothing contests it any more: that was of this generation too, or went with its own.
            let (tags, _) = dispatch.claims.end(identity);
            returned += tags.len();
        }
        self.in_flight.set(dispatch.claims.bytes());
        drop(dispatch);
        self.metrics.returned.increment(returned as u64);
    }

    /// When the message was delivered, in milliseconds since 1970.
    pub(crate) fn first_seen_ms(&self, message: &Admitted) -> u64 {
        let waited_ms = duration_ms(message.tag.received.elapsed());
        self.store.clock().now_ms().saturating_sub(waited_ms)
    }

    /// Whose order what the message sends goes by: one without a key is its own.
    pub(crate) fn key_of(&self, message: &Admitted) -> KeyId {
        match &message.key {
            ActorKey::Named(key) => self.store.key_id(self.id, key),
            ActorKey::Own(identity) => KeyId { queue: self.id, hash: *identity.as_bytes() },
        }
    }

    /// What happens to a message of its handler that no queue takes.
    pub(crate) fn otherwise(&self) -> Otherwise {
        match self.options.on_unroutable {
            OnUnroutable::Hold => Otherwise::Hold,
            OnUnroutable::DeadLetter => {
                Otherwise::DeadLetter { queue: self.options.dead_letter.as_str().into() }
            }
        }
    }

    fn say_no_key(&self) {
        self.said_no_key.call_once(|| {
            info!(
                queue = &*self.name,
                "messages have no ordering key: each is its own, and they run in any order"
            );
        });
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Dispatch> {
        self.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
