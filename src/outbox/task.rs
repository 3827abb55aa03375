//! The task behind the relay: a window of publishes over all lanes, and what follows from the broker's answers.
//!
//! A lane whose head the broker does not take is held outside the window, so it costs others nothing. A drain waits for
//! what is under way and for nothing that is held. After a failure of the store nothing is sent and nobody is told.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::ends::Ends;
use super::entry::{Entry, Next, Refused};
use super::flights::{Event, Flights, Landed, Landing};
use super::holds::Holds;
use super::lanes::{LaneId, Lanes};
use super::room::Room;
use super::{End, Kind, Otherwise, Relay, Sender, Shared};
use crate::broker::{PublishError, Publisher};
use crate::message::Message;
use crate::store::{OutgoingRow, Store, StoreError};
use crate::telemetry::Health;

/// How long the end may wait for what is under way when every consumer has ended.
const STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// What a [`RelayTask`] is made of.
pub(crate) struct RelayParts {
    pub(crate) store: Store,
    pub(crate) publisher: Publisher,
    pub(crate) health: Health,
    /// Cancelled when the drain begins.
    pub(crate) draining: CancellationToken,
}

/// Sends until it is stopped; run by the supervisor.
pub(crate) struct RelayTask {
    shared: Arc<Shared>,
    store: Store,
    draining: CancellationToken,
    lanes: Lanes<Entry>,
    holds: Holds,
    flights: Flights,
    ends: Ends,
    room: Room,
    /// Nothing is tried again: lanes that fail are closed.
    gives_up: bool,
}

/// Whatever ends the task lets go of what is left.
impl Drop for RelayTask {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl RelayTask {
    pub(crate) fn new(parts: RelayParts) -> (Relay, Self) {
        let RelayParts { store, publisher, health, draining } = parts;
        let shared = Arc::new(Shared::default());
        let task = Self {
            shared: Arc::clone(&shared),
            draining,
            lanes: Lanes::default(),
            holds: Holds::new(health),
            flights: Flights::new(publisher, store.clone()),
            ends: Ends::new(Arc::clone(&shared), store.clone()),
            store,
            room: Room::default(),
            gives_up: false,
        };
        (Relay { shared }, task)
    }

    /// Takes in what an earlier process left unsent, in commit order, before anything else is sent.
    pub(crate) fn recover(&mut self, row: OutgoingRow, sender: Arc<Sender>, otherwise: Otherwise) {
        let lane = (row.key, Kind::Message);
        self.shared.lock().unsent.entry(row.identity).or_default().rows += 1;
        let refused = self.lanes.push(lane, Entry::recovered(row, sender, otherwise));
        assert!(refused.is_none(), "no lane is closed before the task runs");
    }

    /// Runs until `stopping`, and shortly on for what is under way then.
    ///
    /// # Errors
    ///
    /// The store's, if what was left unsent cannot be read.
    pub(crate) async fn run(mut self, stopping: CancellationToken) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut deadline = None;
        loop {
            if self.store.has_failed() {
                // The committer says why, and the supervisor ends everything.
                drop(self);
                stopping.cancelled().await;
                return Ok(());
            }
            self.take_in();
            self.lanes.release_due(Instant::now());
            self.start();
            self.ends.hand_in().await;
            if deadline.is_some_and(|until| self.flights.is_empty() || Instant::now() >= until) {
                self.ends.hand_in_all().await;
                return Ok(());
            }
            let due = [self.lanes.next_due(), self.ends.next_due(), deadline];
            let wake = due.into_iter().flatten().min();
            // Every branch is cancel-safe: what has not landed stays in the air.
            tokio::select! {
                biased;
                () = self.draining.cancelled(), if !self.gives_up => self.give_up(),
                () = stopping.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + STOP_GRACE);
                    self.give_up();
                }
                Some(event) = self.flights.next() => match event {
                    Event::Landed(landed) => self.land_all(landed)?,
                    Event::Returned(lane) => self.remove_returned(lane),
                },
                () = shared.arrived.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn take_in(&mut self) {
        let arrived = std::mem::take(&mut self.shared.lock().arrived);
        for outgoing in arrived {
            let lane = (outgoing.key, outgoing.sender.kind);
            let mut entry = Entry::new(outgoing);
            let watch = |returned: &CancellationToken| self.flights.watch(lane, returned.clone());
            entry.watched = entry.returned.as_ref().map(watch);
            if let Some(entry) = self.lanes.push(lane, entry) {
                self.end(lane, entry, End::Returned);
            }
        }
    }

    fn start(&mut self) {
        while !self.flights.is_full()
            && let Some(lane) = self.lanes.start()
        {
            self.launch(lane);
        }
    }

    /// Sends what is next of a lane that is under way.
    fn launch(&mut self, lane: LaneId) {
        let Some(entry) = self.lanes.head(&lane) else { return };
        if entry.is_returned() {
            return self.finish(lane, End::Returned);
        }
        match entry.next() {
            Next::Publish(message) => {
                self.flights.publish(lane, message, entry.returned.clone());
            }
            Next::Open(stored) => {
                if self.room.take(lane, entry.open_bytes()) {
                    self.flights.read(lane, stored);
                }
            }
            Next::End => self.finish(lane, End::Sent),
        }
    }

    /// Takes in all that has landed by now: what follows of it becomes one commit.
    fn land_all(&mut self, first: Landed) -> Result<(), StoreError> {
        let mut next = Some(first);
        // Whoever is told of an end settles: not after a failure.
        while let Some(landed) = next
            && !self.store.has_failed()
        {
            self.land(landed)?;
            next = self.flights.landed();
        }
        Ok(())
    }

    fn land(&mut self, Landed { lane, what }: Landed) -> Result<(), StoreError> {
        match what {
            Landing::Published(Ok(())) => {
                if let Some(entry) = self.lanes.head(&lane) {
                    entry.sender.metrics.confirmed.increment(1);
                }
                self.advance(lane);
            }
            Landing::Published(Err(error)) => self.refused(lane, &error),
            Landing::Returned => self.finish(lane, End::Returned),
            Landing::Read(bytes) => {
                let messages: Vec<Message> = postcard::from_bytes(&bytes?)
                    .map_err(|error| self.store.damaged(format!("outgoing messages: {error}")))?;
                if let Some(entry) = self.lanes.head(&lane) {
                    entry.open(messages);
                }
                self.launch(lane);
            }
        }
        Ok(())
    }

    /// Goes on behind the first message of the lane's head.
    fn advance(&mut self, lane: LaneId) {
        let Some(entry) = self.lanes.head(&lane) else { return };
        entry.advance();
        if entry.failing.take().is_some() {
            self.holds.end(&entry.sender);
        }
        match entry.next() {
            Next::End => self.finish(lane, End::Sent),
            Next::Publish(_) | Next::Open(_) => self.lanes.again(lane),
        }
    }

    fn refused(&mut self, lane: LaneId, error: &PublishError) {
        let Some(entry) = self.lanes.head(&lane) else { return };
        if entry.is_returned() {
            return self.finish(lane, End::Returned);
        }
        match entry.refused(error) {
            Refused::Replaced => self.lanes.again(lane),
            Refused::Dropped => {
                let queue = &*entry.sender.queue;
                info!(queue, error = %error, "an outgoing message is dropped");
                self.advance(lane);
            }
            Refused::Held => self.hold(lane, error),
        }
    }

    fn hold(&mut self, lane: LaneId, error: &PublishError) {
        if self.gives_up {
            return self.close_lane(lane);
        }
        let Some(entry) = self.lanes.head(&lane) else { return };
        let now = Instant::now();
        if entry.failing.is_none() {
            self.holds.begin(&entry.sender);
        }
        let delay = entry.failing.get_or_insert_default().delay_after_loss();
        self.holds.failed(&entry.sender, error, delay, now);
        let closed_bytes = entry.close();
        self.lanes.hold(lane, now + delay);
        self.make_room(closed_bytes);
    }

    /// The lane's head has ended.
    fn finish(&mut self, lane: LaneId, end: End) {
        if let Some(entry) = self.lanes.finish(lane) {
            self.end(lane, entry, end);
        }
    }

    fn end(&mut self, lane: LaneId, mut entry: Entry, end: End) {
        if entry.failing.is_some() {
            self.holds.end(&entry.sender);
        }
        self.make_room(entry.close());
        self.ends.end(lane, entry, end);
    }

    fn make_room(&mut self, closed_bytes: u64) {
        if closed_bytes > 0 {
            for lane in self.room.free(closed_bytes) {
                self.lanes.again(lane);
            }
        }
    }

    /// What its token has cancelled leaves its lane, unless it is under way: then its flight tells.
    fn remove_returned(&mut self, lane: LaneId) {
        for entry in self.lanes.remove_if(lane, Entry::is_returned) {
            self.end(lane, entry, End::Returned);
        }
    }

    /// From here on nothing is tried again, and whoever waits for what is held is told that it was not sent.
    fn give_up(&mut self) {
        self.gives_up = true;
        for lane in self.lanes.held() {
            self.close_lane(lane);
        }
    }

    /// Nothing that comes later may overtake what is not sent now.
    fn close_lane(&mut self, lane: LaneId) {
        for entry in self.lanes.close(lane) {
            self.end(lane, entry, End::Returned);
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
