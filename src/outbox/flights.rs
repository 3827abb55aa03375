//! What is under way: publishes and reads, each for one lane, and watches of the tokens that can cancel.
//!
//! Owns the futures and their bound. What they land with is for the task to judge.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::lanes::LaneId;
use crate::broker::{PublishError, Publisher};
use crate::message::Message;
use crate::store::{Store, StoreError, Stored};

/// Most publishes under way: two of the publisher's groups, so that one gathers while the other is confirmed.
pub(super) const WINDOW_MAX: usize = 512;

pub(super) struct Flights {
    publisher: Publisher,
    store: Store,
    flights: FuturesUnordered<BoxFuture<'static, Landed>>,
    watches: FuturesUnordered<BoxFuture<'static, Option<LaneId>>>,
}

/// What has happened in the air.
pub(super) enum Event {
    Landed(Landed),
    /// A token was cancelled of something that waits in this lane, or did.
    Returned(LaneId),
}

pub(super) struct Landed {
    pub(super) lane: LaneId,
    pub(super) what: Landing,
}

pub(super) enum Landing {
    Published(Result<(), PublishError>),
    Read(Result<Bytes, StoreError>),
    /// Its token was cancelled first.
    Returned,
}

impl Flights {
    pub(super) fn new(publisher: Publisher, store: Store) -> Self {
        let (flights, watches) = (FuturesUnordered::new(), FuturesUnordered::new());
        Self { publisher, store, flights, watches }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.flights.len() >= WINDOW_MAX
    }

    pub(super) fn publish(
        &self,
        lane: LaneId,
        message: Arc<Message>,
        returned: Option<CancellationToken>,
    ) {
        let publisher = self.publisher.clone();
        let flight = async move {
            let publish = publisher.publish(message);
            let what = match returned {
                None => Landing::Published(publish.await),
                Some(returned) => tokio::select! {
                    biased;
                    published = publish => Landing::Published(published),
                    // The publisher sees that nobody waits for the answer any more.
                    () = returned.cancelled() => Landing::Returned,
                },
            };
            Landed { lane, what }
        };
        self.flights.push(flight.boxed());
    }

    pub(super) fn read(&self, lane: LaneId, stored: Stored) {
        let store = self.store.clone();
        let flight =
            async move { Landed { lane, what: Landing::Read(store.fetch(&stored).await) } };
        self.flights.push(flight.boxed());
    }

    /// Tells when the token is cancelled, unless what this gives is dropped before.
    pub(super) fn watch(&self, lane: LaneId, returned: CancellationToken) -> oneshot::Sender<()> {
        let (ended, has_ended) = oneshot::channel();
        let watch = async move {
            tokio::select! {
                biased;
                () = returned.cancelled() => Some(lane),
                _ = has_ended => None,
            }
        };
        self.watches.push(watch.boxed());
        ended
    }

    /// The next event; `None` if nothing is in the air.
    ///
    /// Cancel-safe. Tokens come first, so that a stream of confirms cannot keep what was cancelled waiting.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                biased;
                Some(watched) = self.watches.next() => if let Some(lane) = watched {
                    return Some(Event::Returned(lane));
                },
                Some(landed) = self.flights.next() => return Some(Event::Landed(landed)),
                else => return None,
            }
        }
    }

    /// What has landed already, without waiting.
    pub(super) fn landed(&mut self) -> Option<Landed> {
        self.flights.next().now_or_never().flatten()
    }
}
