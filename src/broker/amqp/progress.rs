//! Waiting for the broker while something is published: not for ever, and not in silence.
//!
//! A broker in alarm stops reading what publishers send and says so; the log has it once, when it begins and when it
//! ends. Knows nothing of messages.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt as _};
use lapin::{ErrorKind, Event};
use tokio::time::timeout;
use tracing::{info, warn};

use super::link::{Link, Place};
use crate::broker::BrokerError;

/// Longest time without any progress of a group before the connection is given up: the broker is in alarm.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Waits for the broker, and says once why it lets us wait.
pub(super) struct Progress {
    events: BoxStream<'static, Event>,
    place: Place,
}

impl Progress {
    pub(super) fn of_link(link: &Link) -> Self {
        Self { events: link.connection.events_listener().boxed(), place: link.place.clone() }
    }

    /// The step's result, unless nothing happens for too long.
    pub(super) async fn of<T>(
        &mut self,
        doing: &str,
        step: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, BrokerError> {
        let Self { events, place } = self;
        let address = place.url().address();
        let watched = async {
            let mut step = std::pin::pin!(step);
            loop {
                // Both branches are cancel-safe: the step is only borrowed, the stream keeps what it has not given.
                tokio::select! {
                    biased;
                    result = &mut step => return result,
                    Some(event) = events.next() => note(&address, event),
                }
            }
        };
        let stalled = |_| {
            let seconds = STALL_MAX.as_secs();
            place.lost_by(format!(
                "{doing}: nothing happened for {seconds} s, the broker may be in alarm"
            ))
        };
        timeout(STALL_MAX, watched).await.map_err(stalled)
    }

    /// Code and text, if the broker closed only the channel.
    pub(super) fn refusal(&self, error: &lapin::Error) -> Option<(u16, String)> {
        match error.kind() {
            ErrorKind::ProtocolError(refusal) if error.is_amqp_soft_error() => {
                Some((refusal.get_id(), self.place.url().scrub(refusal.get_message().as_str())))
            }
            _ => None,
        }
    }
}

fn note(address: &str, event: Event) {
    match event {
        Event::ConnectionBlocked(reason) => {
            warn!(address, reason, "the broker takes no messages: publishing waits");
        }
        Event::ConnectionUnblocked => info!(address, "the broker takes messages again"),
        _ => {}
    }
}
