//! What is in a queue at the end, taken out through the same trait that the runtime consumes by.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::orders::Plan;
use crate::{
    Broker, BrokerError, Declare, Message, OUTGOING_ID_HEADER, Owner, Session, Subscription,
};

/// A queue that delivers nothing for so long is empty.
const QUIET: Duration = Duration::from_millis(500);

/// How often a queue is tried that its last consumer has not quite left.
const TRIES_MAX: u32 = 20;

const TRY_AGAIN_DELAY: Duration = Duration::from_millis(250);

/// Takes out all that is in the queue, and acks it.
pub(super) async fn take_all(
    broker: &dyn Broker,
    queue: &str,
) -> Result<Vec<Arc<Message>>, BrokerError> {
    let subscription = Subscription {
        queue: queue.to_owned(),
        declare: Declare::Classic,
        owner: Owner::Single,
        prefetch: NonZeroU16::MIN.saturating_add(255),
    };
    let Session { mut deliveries, mut acks } = open(broker, &subscription).await?;
    let mut taken = Vec::new();
    while let Ok(Some(delivery)) = timeout(QUIET, deliveries.next()).await {
        let delivery = delivery?;
        acks.ack(delivery.tag, false).await?;
        taken.push(delivery.message);
    }
    acks.close().await;
    Ok(taken)
}

async fn open(broker: &dyn Broker, subscription: &Subscription) -> Result<Session, BrokerError> {
    let mut tries = 0;
    loop {
        match broker.consume(subscription).await {
            Ok(session) => return Ok(session),
            Err(error) if tries == TRIES_MAX => return Err(error),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(TRY_AGAIN_DELAY).await;
    }
}

/// The orders of this run among dead letters, with the outgoing ids that they carry.
pub(super) fn dead_orders(
    plan: &Plan,
    letters: &[Arc<Message>],
) -> BTreeMap<usize, BTreeSet<String>> {
    let mut dead: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for letter in letters {
        let Some(number) = number(plan, letter) else {
            continue;
        };
        let headers = &letter.properties.headers;
        let outgoing = headers.get(OUTGOING_ID_HEADER);
        let outgoing = outgoing.and_then(|id| id.as_str()).unwrap_or("none");
        dead.entry(number).or_default().insert(outgoing.to_owned());
    }
    dead
}

/// The number of the order, if the message is one of this run.
pub(super) fn number(plan: &Plan, message: &Message) -> Option<usize> {
    let id = message.properties.message_id.as_deref()?;
    plan.number(id)
}
