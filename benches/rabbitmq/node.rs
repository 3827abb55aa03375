//! The RabbitMQ node, and the queues that are made on it and deleted again.

use std::num::NonZeroU16;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties};

use crate::child::NodeTask;
use crate::mix::Mix;

/// Most publishes that wait for their confirms.
const UNCONFIRMED_MAX: usize = 2_000;

pub(crate) struct Node {
    url: String,
    /// Process id of its Erlang machine, if it runs here.
    pid: Option<String>,
    connection: Connection,
    /// For queues and publishing, with confirms.
    channel: Channel,
    kind: String,
    prefetch: NonZeroU16,
    queues: AtomicU64,
}

/// Where `onceward-send` sends what it gets from this queue.
pub(crate) fn downstream(queue: &str) -> String {
    format!("{queue}.out")
}

impl Node {
    /// The node of `AMQP_URL`, or a private one; queues on it are of this kind and consumed with this prefetch.
    pub(crate) async fn start(kind: &str, prefetch: NonZeroU16) -> Result<Self> {
        let (url, pid) = url_and_pid()?;
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let kind = kind.to_owned();
        let queues = AtomicU64::new(0);
        Ok(Self { url, pid, connection, channel, kind, prefetch, queues })
    }

    pub(crate) fn task(&self, queue: &str) -> NodeTask {
        NodeTask {
            url: self.url.clone(),
            queue: queue.to_owned(),
            prefetch: self.prefetch,
            pid: self.pid.clone(),
        }
    }

    /// A channel with confirms on a connection of its own, for one task.
    pub(crate) async fn publishing(&self) -> Result<(Connection, Channel)> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok((connection, channel))
    }

    /// A new queue, and the one downstream of it.
    pub(crate) async fn declare(&self) -> Result<String> {
        let number = self.queues.fetch_add(1, Ordering::Relaxed);
        let queue = format!("onceward-bench-{}-{number}", std::process::id());
        for name in [queue.clone(), downstream(&queue)] {
            let mut arguments = FieldTable::default();
            if self.kind == "quorum" {
                let quorum = AMQPValue::LongString("quorum".into());
                arguments.insert("x-queue-type".into(), quorum);
                arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
            }
            let options = QueueDeclareOptions::durable();
            self.channel.queue_declare(name.into(), options, arguments).await?;
        }
        Ok(queue)
    }

    /// Deletes a queue and what was made beside it.
    pub(crate) async fn delete(&self, queue: &str) -> Result<()> {
        for name in [queue.to_owned(), downstream(queue), format!("{queue}.dead")] {
            self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    /// Messages that wait in a queue and are with no consumer.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u32> {
        let options = QueueDeclareOptions::durable().passive();
        let declare = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        Ok(declare.await?.message_count())
    }

    pub(crate) async fn preload(&self, queue: &str, mix: &mut Mix, messages: u64) -> Result<()> {
        let mut unconfirmed = Vec::new();
        for _ in 0..messages {
            let made = mix.make(None);
            let options = BasicPublishOptions::default();
            let (body, properties) = (&made.body, made.properties);
            let publish =
                self.channel.basic_publish("".into(), queue.into(), options, body, properties);
            unconfirmed.push(publish.await?);
            if unconfirmed.len() == UNCONFIRMED_MAX {
                confirm(&mut unconfirmed).await?;
            }
        }
        confirm(&mut unconfirmed).await
    }

    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.connection.close(200, "OK".into()).await?)
    }
}

async fn confirm(
    unconfirmed: &mut Vec<impl Future<Output = lapin::Result<Confirmation>>>,
) -> Result<()> {
    for confirm in unconfirmed.drain(..) {
        ensure!(confirm.await?.is_ack(), "the broker refused a message");
    }
    Ok(())
}

fn url_and_pid() -> Result<(String, Option<String>)> {
    if let Ok(url) = std::env::var("AMQP_URL") {
        return Ok((url, std::env::var("ONCEWARD_BROKER_PID").ok()));
    }
    let root = env!("CARGO_MANIFEST_DIR");
    let script = format!("{root}/scripts/rabbitmq");
    let output = Command::new(&script)
        .arg("start")
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| script.clone())?;
    ensure!(output.status.success(), "{script} start failed: set AMQP_URL, or mend it");
    let directory =
        std::env::var("ONCEWARD_RABBITMQ_DIR").unwrap_or_else(|_| format!("{root}/.rabbitmq"));
    let pid = std::fs::read_to_string(format!("{directory}/pid")).ok();
    let url = String::from_utf8(output.stdout)?.trim().to_owned();
    Ok((url, pid.map(|pid| pid.trim().to_owned())))
}
