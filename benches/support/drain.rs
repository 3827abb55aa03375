//! How long a preloaded queue takes to be empty.

use std::time::Duration;

use anyhow::Result;
use onceward::MemoryBroker;
use tokio::time::Instant;

use super::machine;

const LOOK: Duration = Duration::from_millis(1);

/// Time and CPU time of this process from about the first delivery to the last ack.
pub(crate) struct Drained {
    messages: u64,
    elapsed: Duration,
    cpu_us: u64,
}

impl Drained {
    pub(crate) fn messages_per_s(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn cpu_us_per_message(&self) -> f64 {
        self.cpu_us as f64 / self.messages as f64
    }
}

pub(crate) async fn drained(broker: &MemoryBroker, messages: u64) -> Result<Drained> {
    while broker.stats().delivered == 0 {
        tokio::time::sleep(LOOK).await;
    }
    // It is a moment later: what was acked until now took no time of what is measured.
    let (started, cpu_before_us) = (Instant::now(), machine::own_cpu_us()?);
    let acked_before = broker.stats().acked;
    all_acked(broker, messages).await;
    let cpu_us = machine::own_cpu_us()? - cpu_before_us;
    Ok(Drained { messages: messages - acked_before, elapsed: started.elapsed(), cpu_us })
}

/// Until so many messages are acked.
pub(crate) async fn all_acked(broker: &MemoryBroker, messages: u64) {
    while broker.stats().acked < messages {
        tokio::time::sleep(LOOK).await;
    }
}
