//! Named points of a message's way, at which tests end the process or cut the power.
//!
//! In a build without the feature `simulation` a point is nothing. With it, a simulation that runs on this thread is
//! told of each point that is reached; and a process that was started with `ONCEWARD_CRASH=ack-written:10` kills itself
//! when it reaches that point for the tenth time. Changes nothing else.

/// A point of a message's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "simulation"), expect(unreachable_pub, reason = "named by tests only"))]
pub enum Point {
    /// A delivery was taken from the stream.
    Received,
    /// Its identity is claimed.
    Claimed,
    /// The store was asked, and does not know it.
    LookedUp,
    /// A failed attempt, or the beginning of one, is durable.
    AttemptRecorded,
    /// A step's row is durable.
    StepStored,
    /// The handler has returned, nothing is handed in.
    HandlerReturned,
    /// A batch is applied, and not synced.
    Applied,
    /// A group is synced, and nobody has been told.
    Synced,
    /// An ack was written.
    AckWritten,
    /// Messages were given to the broker, which has not answered.
    Published,
    /// The broker has confirmed some of them, and nobody has been told.
    Confirmed,
    /// A dead letter is confirmed, and its message not settled.
    DeadLetterPublished,
    /// The rows of confirmed messages were removed.
    OutgoingRemoved,
    /// A batch that is being gathered removes a block that has expired.
    Collecting,
    /// The store is being opened: from its lock to the last row that is read, several times.
    Opening,
    /// A drain has begun, an actor has ended in it, or all that they committed has settled.
    Draining,
}

/// A message, or the worker, is here.
#[inline]
pub(crate) fn reached(point: Point) {
    #[cfg(feature = "simulation")]
    armed::reached(point);
    #[cfg(not(feature = "simulation"))]
    let _ = point;
}

#[cfg(feature = "simulation")]
pub(crate) use self::armed::watch;

#[cfg(feature = "simulation")]
mod armed;
