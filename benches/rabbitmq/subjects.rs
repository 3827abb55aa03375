//! Who drains the queue: bare consumers, consumers that ask Redis, and onceward.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use onceward::{
    Body, Context, HandleError, Message, Options, QueueOptions, Source, Worker, stateful,
};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

use crate::child::{Drain, NodeTask};
use crate::node::downstream;
use crate::support::recorder::Recorder;
use crate::watch::{Drained, Watch};

/// Deliveries that one ack of `lapin-multiple` covers.
const MULTIPLE: u64 = 64;

/// How long Redis keeps an id: as long as onceward does by default.
const RETENTION_S: u64 = 7 * 24 * 60 * 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Subject {
    LapinEach,
    LapinMultiple,
    LapinConcurrent,
    LapinRedisLoopAlways,
    LapinRedisLoopEverysec,
    LapinRedisAlways,
    LapinRedisEverysec,
    LapinSendLoop,
    LapinSend,
    Onceward,
    OncewardState,
    OncewardSend,
}

impl Subject {
    pub(crate) const ALL: [Self; 12] = [
        Self::LapinEach,
        Self::LapinMultiple,
        Self::LapinConcurrent,
        Self::LapinRedisLoopAlways,
        Self::LapinRedisLoopEverysec,
        Self::LapinRedisAlways,
        Self::LapinRedisEverysec,
        Self::LapinSendLoop,
        Self::LapinSend,
        Self::Onceward,
        Self::OncewardState,
        Self::OncewardSend,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LapinEach => "lapin-each",
            Self::LapinMultiple => "lapin-multiple",
            Self::LapinConcurrent => "lapin-concurrent",
            Self::LapinRedisLoopAlways => "lapin-redis-loop-always",
            Self::LapinRedisLoopEverysec => "lapin-redis-loop-everysec",
            Self::LapinRedisAlways => "lapin-redis-always",
            Self::LapinRedisEverysec => "lapin-redis-everysec",
            Self::LapinSendLoop => "lapin-send-loop",
            Self::LapinSend => "lapin-send",
            Self::Onceward => "onceward",
            Self::OncewardState => "onceward-state",
            Self::OncewardSend => "onceward-send",
        }
    }

    /// When Redis syncs, if it is asked at all.
    pub(crate) const fn appendfsync(self) -> Option<&'static str> {
        match self {
            Self::LapinRedisLoopAlways | Self::LapinRedisAlways => Some("always"),
            Self::LapinRedisLoopEverysec | Self::LapinRedisEverysec => Some("everysec"),
            _ => None,
        }
    }

    /// How many of so many messages it drains: a loop that waits for an answer each time is slow.
    pub(crate) const fn share(self, messages: u64) -> u64 {
        match self {
            Self::LapinRedisLoopAlways | Self::LapinRedisLoopEverysec | Self::LapinSendLoop => {
                messages.div_ceil(10)
            }
            _ => messages,
        }
    }
}

pub(crate) async fn drain(task: &Drain) -> Result<Drained> {
    match task.subject {
        Subject::LapinEach => lapin(task, 1).await,
        Subject::LapinMultiple => lapin(task, MULTIPLE).await,
        Subject::LapinRedisLoopAlways | Subject::LapinRedisLoopEverysec => asking(task, 1).await,
        Subject::LapinConcurrent | Subject::LapinRedisAlways | Subject::LapinRedisEverysec => {
            asking(task, task.node.prefetch.get().into()).await
        }
        Subject::LapinSendLoop => sending(task, 1).await,
        Subject::LapinSend => sending(task, task.node.prefetch.get().into()).await,
        Subject::Onceward => {
            onceward(task, |worker, queue| worker.queue_with(queue, nothing)).await
        }
        Subject::OncewardState => {
            onceward(task, |worker, queue| worker.queue_with(queue, stateful(count))).await
        }
        Subject::OncewardSend => {
            let to = downstream(&task.node.queue);
            let send = move |cx: &mut Context, Body(body): Body| {
                let (routing_key, body) = (to.clone(), body.clone());
                let sent = cx.emit(Message { routing_key, body, ..Message::default() }).map(drop);
                std::future::ready(sent.map_err(HandleError::from))
            };
            onceward(task, |worker, queue| worker.queue_with(queue, send)).await
        }
    }
}

async fn consume(task: &Drain) -> Result<(Connection, Channel, Consumer)> {
    let connection = Connection::connect(&task.node.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(task.node.prefetch.get(), BasicQosOptions::default()).await?;
    let (queue, options) = (task.node.queue.as_str().into(), BasicConsumeOptions::default());
    let consumer = channel.basic_consume(queue, "bench".into(), options, FieldTable::default());
    let consumer = consumer.await?;
    Ok((connection, channel, consumer))
}

async fn lapin(task: &Drain, every: u64) -> Result<Drained> {
    let (connection, channel, mut deliveries) = consume(task).await?;
    let mut watch = None;
    let mut received = 0;
    while received < task.messages {
        let delivery = deliveries.next().await.context("the consumer was cancelled")??;
        if watch.is_none() {
            watch = Some(Watch::start(task)?);
        }
        received += 1;
        if received % every == 0 || received == task.messages {
            let options = BasicAckOptions { multiple: every > 1 };
            channel.basic_ack(delivery.delivery_tag, options).await?;
        }
    }
    let drained = watch.context("there was no message")?.stop(None)?;
    connection.close(200, "OK".into()).await?;
    Ok(drained)
}

/// Whether the id is new, as Redis says, which remembers it from now on.
async fn is_new(mut redis: MultiplexedConnection, id: &str) -> Result<bool> {
    let mut set = redis::cmd("SET");
    set.arg(id).arg(1).arg("NX").arg("EX").arg(RETENTION_S);
    let set: Option<String> = set.query_async(&mut redis).await?;
    Ok(set.is_some())
}

/// So many messages at once, each asking Redis, if there is one, before its own ack.
async fn asking(task: &Drain, at_once: usize) -> Result<Drained> {
    let redis = match &task.redis {
        Some(redis) => {
            let client = redis::Client::open(redis.url.as_str())?;
            Some(client.get_multiplexed_async_connection().await?)
        }
        None => None,
    };
    let (drained, handled) = handling(task, at_once, async |delivery| match redis.clone() {
        Some(redis) => {
            let id = delivery.properties.message_id().as_ref().context("a message without id")?;
            is_new(redis, id.as_str()).await
        }
        None => Ok(true),
    })
    .await?;
    let new = if redis.is_some() { task.distinct } else { task.messages };
    ensure!(handled == new, "{handled} messages were handled, {new} are new");
    Ok(drained)
}

/// So many messages at once, each sent on and confirmed before its own ack.
///
/// On a connection of its own, as a broker in alarm stops those that publish. Whether a message came back, lapin does
/// not say for sure where several are under way.
async fn sending(task: &Drain, at_once: usize) -> Result<Drained> {
    let to = downstream(&task.node.queue);
    let connection = Connection::connect(&task.node.url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (drained, sent) = handling(task, at_once, async |delivery| {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (body, properties) = (&delivery.data, delivery.properties.clone());
        let publish =
            channel.basic_publish("".into(), to.as_str().into(), options, body, properties);
        Ok(publish.await?.await?.is_ack())
    })
    .await?;
    ensure!(sent == task.messages, "{sent} messages were sent on");
    connection.close(200, "OK".into()).await?;
    Ok(drained)
}

/// Handles so many messages at once, with an ack for each; says how many handlers said yes.
///
/// All in one task and on one connection; a task per message costs more than it brings.
async fn handling(
    task: &Drain,
    at_once: usize,
    handle: impl AsyncFn(&Delivery) -> Result<bool>,
) -> Result<(Drained, u64)> {
    let (connection, channel, mut deliveries) = consume(task).await?;
    let first = deliveries.next().await.context("the consumer was cancelled")?;
    let watch = Watch::start(task)?;
    let deliveries = stream::iter([first]).chain(deliveries).take(task.messages as usize);
    let handle_and_ack = |delivery: lapin::Result<Delivery>| async {
        let delivery = delivery?;
        let handled = handle(&delivery).await?;
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        anyhow::Ok(handled)
    };
    let mut handling = std::pin::pin!(deliveries.map(handle_and_ack).buffer_unordered(at_once));
    let (mut acked, mut handled) = (0, 0);
    while let Some(ended) = handling.next().await {
        handled += u64::from(ended?);
        acked += 1;
    }
    let drained = watch.stop(None)?;
    ensure!(acked == task.messages, "the consumer was cancelled");
    connection.close(200, "OK".into()).await?;
    Ok((drained, handled))
}

pub(crate) async fn nothing(_: &mut Context, _: Body) -> onceward::Result {
    Ok(())
}

async fn count(count: &mut u64, _: &mut Context, _: Body) -> onceward::Result {
    *count += 1;
    Ok(())
}

/// What all workers of the bench are told.
pub(crate) fn queue_options(node: &NodeTask) -> QueueOptions {
    let mut queue = QueueOptions::new(&node.queue);
    queue.prefetch = node.prefetch;
    queue.identity.key = vec![Source::Header("x-key".to_owned())];
    queue
}

async fn onceward(
    task: &Drain,
    with_handler: impl FnOnce(Worker, QueueOptions) -> Worker,
) -> Result<Drained> {
    // Each look wakes a thread, which counts as the worker's.
    const LOOK: Duration = Duration::from_millis(5);
    let recorder = Recorder::install()?;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let options = Options::new(&task.node.url, directory.path())?;
    let worker = with_handler(Worker::new(options), queue_options(&task.node));
    let syncs = || recorder.histogram("sync_seconds").count();
    let mut drained = None;
    let all_acked = async {
        while recorder.count("received_total") == 0 {
            tokio::time::sleep(LOOK).await;
        }
        let (watch, before) = (Watch::start(task), syncs());
        while recorder.count("settled_total acked") < task.messages {
            tokio::time::sleep(LOOK).await;
        }
        drained = Some(watch.and_then(|watch| watch.stop(Some(syncs() - before))));
    };
    worker.run_until(all_acked).await?;
    let done = recorder.count("done_total");
    ensure!(done == task.distinct, "{done} of {} messages are Done", task.distinct);
    drained.context("the worker ended by itself")?
}
