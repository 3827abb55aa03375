//! What a test asserts of a bed: states, outcomes, and what is downstream.
//!
//! Read from what is durable, and from what the broker confirmed: not from what a worker believes.

use std::fmt::Debug;
use std::sync::Arc;

use super::bed::Testbed;
use super::books::{self, Books, Ending};
use super::origin::{self, inbound};
use super::wire::By;
use crate::effects::State;
use crate::message::{Key, Message, escape};
use crate::options::QueueOptions;
use crate::payload::{Codec, FromMessage};

impl Testbed {
    /// The state of a key of a queue, as it is on stable storage.
    ///
    /// # Panics
    ///
    /// If the queue has no handler, or the state is of another type.
    #[must_use]
    #[track_caller]
    pub fn state<S: State>(&self, queue: &str, key: &str) -> Option<S> {
        let queue = &self.options_of(queue).queue;
        let state = self.runtime.block_on(async {
            let books = Books::open(&self.world).await?;
            books.state(queue, &Key::new(key.as_bytes())).await
        });
        let state = state.unwrap_or_else(|error| panic!("the store cannot be read: {error}"));
        let decode = |state: crate::effects::EncodedState| {
            state.decode().unwrap_or_else(|error| panic!("the state of key {key:?}: {error}"))
        };
        state.and_then(books::value_of).map(decode)
    }

    /// Asserts the state of a key of a queue, as it is on stable storage.
    ///
    /// # Panics
    ///
    /// If it is another one.
    #[track_caller]
    pub fn assert_state<S>(&self, queue: &str, key: &str, expected: Option<&S>)
    where
        S: State + PartialEq + Debug,
    {
        let state = self.state::<S>(queue, key);
        assert_eq!(state.as_ref(), expected, "state of key {key:?} of queue {queue:?}");
    }

    /// What workers published into this queue, once per id, in order of first arrival; a dead-letter queue is one too.
    ///
    /// The order is the same in each run of a scenario. Only that of one key is a promise: which of two keys goes first
    /// may change with a version.
    #[must_use]
    pub fn published(&self, queue: &str) -> Vec<Arc<Message>> {
        origin::once_per_id(self.world.arrived(queue, Some(By::Worker)))
    }

    /// Asserts the bodies of what workers published into this queue, once per id, in order of first arrival.
    ///
    /// # Panics
    ///
    /// If they are others, or do not decode as `T`.
    #[track_caller]
    pub fn assert_published<T>(&self, queue: &str, expected: &[T])
    where
        T: FromMessage + PartialEq + Debug,
    {
        let decode = |message: &Arc<Message>| {
            T::from_message(message, Codec::ByContentType).unwrap_or_else(|error| {
                panic!("a message in {queue:?} with body {:?}: {error}", escape(&message.body))
            })
        };
        let bodies: Vec<T> = self.published(queue).iter().map(decode).collect();
        assert_eq!(bodies, expected, "what is published into queue {queue:?}");
    }

    /// Asserts whose handlers published what is in this queue: the ids of the messages that they handled, in order of
    /// first arrival.
    ///
    /// # Panics
    ///
    /// If they are others.
    #[track_caller]
    pub fn assert_published_by(&self, queue: &str, expected: &[&str]) {
        let origins = origin::origins(&self.world);
        let sender = |message: &Arc<Message>| {
            // A dead letter keeps the id of the message that died.
            let id = message.properties.message_id.as_deref().unwrap_or_default();
            origins.get(id).map_or_else(|| id.to_owned(), |origin| origin.id.clone())
        };
        let senders: Vec<String> = self.published(queue).iter().map(sender).collect();
        assert_eq!(senders, expected, "who published into queue {queue:?}");
    }

    /// How the messages of a queue ended, by id, in order of first arrival: `done`, `dead: REASON` (as in
    /// `dead: rejected`), `forgotten`, `unfinished after N attempts`, or `unknown`.
    ///
    /// Messages without an id are not among them.
    ///
    /// # Panics
    ///
    /// If the queue has no handler.
    #[must_use]
    #[track_caller]
    pub fn outcomes(&self, queue: &str) -> Vec<(String, String)> {
        let options = self.options_of(queue);
        let endings = self.runtime.block_on(self.endings(options));
        endings.into_iter().map(|(id, ending)| (id, ending.outcome)).collect()
    }

    /// Asserts how all messages of a queue ended; see [`outcomes`](Self::outcomes).
    ///
    /// # Panics
    ///
    /// If they ended otherwise.
    #[track_caller]
    pub fn assert_outcomes(&self, queue: &str, expected: &[(&str, &str)]) {
        let outcomes = self.outcomes(queue);
        let outcomes: Vec<(&str, &str)> =
            outcomes.iter().map(|(id, outcome)| (&**id, &**outcome)).collect();
        assert_eq!(outcomes, expected, "outcomes of queue {queue:?}");
    }

    pub(super) async fn endings(&self, options: &QueueOptions) -> Vec<(String, Ending)> {
        let read = async {
            let books = Books::open(&self.world).await?;
            let mut endings = Vec::new();
            for message in inbound(&self.world, options) {
                endings.push((escape(message.id.as_bytes()), books.ending(&message).await?));
            }
            Ok::<_, crate::store::StoreError>(endings)
        };
        read.await.unwrap_or_else(|error| panic!("the store cannot be read: {error}"))
    }

    #[track_caller]
    fn options_of(&self, queue: &str) -> &QueueOptions {
        let found = self.world.queues.iter().find(|known| known.options.queue == queue);
        found.map_or_else(
            || panic!("queue {queue:?} has no handler in this bed"),
            |found| &found.options,
        )
    }
}
