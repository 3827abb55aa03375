//! What it takes to find out that an id is known, or that it is not.
//!
//! A duplicate is a look-up in the index and a read of its block, and no commit. A new id is a look-up in memory and a
//! commit: what the look-up takes of it is the difference between a full store and an empty one.

use std::num::NonZeroU16;

use anyhow::{Context as _, Result, ensure};
use onceward::{MemoryBroker, QueueOptions};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::drain::drained;
use crate::support::load::{QUEUE, nothing};
use crate::support::recorder::Recorder;
use crate::support::rounds::rounded;
use crate::task::{Task, message};

/// One at a time: what each takes, and not how many.
const ALONE: NonZeroU16 = NonZeroU16::MIN;
const ALONE_DIVISOR: u64 = 4;

/// Messages of this kind against a store of so many ids.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct LookUp {
    pub(crate) ids: u64,
    messages: u64,
    kind: Kind,
    prefetch: NonZeroU16,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Duplicates,
    New,
}

/// All kinds, in an order in which new ids do not become known ones of the next.
pub(crate) fn all(ids: u64, messages: u64) -> Vec<LookUp> {
    let usual = QueueOptions::new(QUEUE).prefetch;
    let look_up = |ids, kind, prefetch| LookUp {
        ids,
        messages: if prefetch == ALONE { messages.div_ceil(ALONE_DIVISOR) } else { messages },
        kind,
        prefetch,
    };
    vec![
        look_up(ids, Kind::Duplicates, usual),
        look_up(ids, Kind::Duplicates, ALONE),
        look_up(ids, Kind::New, usual),
        look_up(0, Kind::New, usual),
    ]
}

pub(crate) async fn look_up(task: &Task, look_up: &LookUp, recorder: &Recorder) -> Result<()> {
    let LookUp { ids, messages, kind, prefetch } = *look_up;
    let broker = MemoryBroker::new();
    let mut queue = QueueOptions::new(QUEUE);
    queue.prefetch = prefetch;
    let worker = task.worker(&broker, queue, nothing);
    let mut random = fastrand::Rng::with_seed(17);
    for number in 0..messages {
        let known = kind == Kind::Duplicates;
        broker.publish(message(if known { random.u64(..ids) } else { ids + number }));
    }
    let mut measured = None;
    let all_acked = async {
        measured = Some(drained(&broker, messages).await);
    };
    worker.run_until(all_acked).await?;
    let drained = measured.context("the worker ended by itself")??;
    let (counter, name) = match kind {
        Kind::Duplicates => ("duplicates_total", "duplicates"),
        Kind::New => ("done_total", "new ids"),
    };
    let counted = recorder.count(counter);
    ensure!(counted == messages, "{counted} of {messages} are {name}");

    let latency = recorder.histogram("delivery_to_ack_seconds");
    let (rate, cpu_us) = (drained.messages_per_s(), drained.cpu_us_per_message());
    let us = |part| rounded(latency.quantile(part) * 1e6, 1);
    println!(
        "{}",
        json!({
            "case": format!("look-up of {name}"),
            "ids": ids,
            "prefetch": prefetch,
            "messages": messages,
            "messages_per_s": rounded(rate, 0),
            "cpu_us_per_message": rounded(cpu_us, 2),
            "p50_us": us(0.5),
            "p99_us": us(0.99),
        })
    );
    println!(
        "{name} in a store of {ids}, prefetch {prefetch}: {rate:.0} a second, {cpu_us:.2} us CPU, p50 {:.1} us",
        us(0.5)
    );
    Ok(())
}
