//! One run of the worker over a preloaded queue.

use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use onceward::{Body, Context, MemoryBroker, Options, StoreOptions, Worker};

use crate::case::{Case, Handling, WAIT};
use crate::subject::Figures;
use crate::support::drain::drained;
use crate::support::load::{nothing, preload, queue};
use crate::support::recorder::Recorder;

async fn one_ms(_: &mut Context, _: Body) -> onceward::Result {
    tokio::time::sleep(WAIT).await;
    Ok(())
}

pub(crate) fn drain(case: Case, messages: u64, recorder: &Recorder) -> Result<Figures> {
    let broker = MemoryBroker::new();
    let different = preload(&broker, case.mix, messages);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut queue = queue();
    queue.prefetch = NonZeroU16::new(case.prefetch).context("a prefetch of 0")?;
    recorder.reset();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut measured = None;
    runtime.block_on(async {
        let store = StoreOptions::new(directory.path());
        let worker = Worker::new(Options::with_broker(Arc::new(broker.clone()), store));
        let worker = match case.handling {
            Handling::Nothing => worker.queue_with(queue, nothing),
            Handling::OneMs => {
                queue.concurrency = NonZeroUsize::from(queue.prefetch);
                worker.queue_with(queue, one_ms)
            }
        };
        let all_acked = async {
            measured = Some(drained(&broker, messages).await);
        };
        worker.run_until(all_acked).await
    })?;
    let drained = measured.context("the worker ended by itself")??;

    let done = recorder.count("done_total");
    ensure!(done == different, "{done} of {different} messages are Done");
    let acked = broker.stats().acked;
    ensure!(acked == messages, "{acked} of {messages} are acked");
    let latency = recorder.histogram("delivery_to_ack_seconds");
    Ok(Figures {
        messages_per_s: drained.messages_per_s(),
        cpu_us: drained.cpu_us_per_message(),
        records: done,
        syncs: recorder.histogram("sync_seconds").count(),
        p50_ms: latency.quantile(0.5) * 1e3,
        p99_ms: latency.quantile(0.99) * 1e3,
    })
}
