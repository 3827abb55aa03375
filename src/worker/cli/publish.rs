//! `onceward publish`: one message onto a queue, with the id and key where the queue's rules look for them.
//!
//! There so that trying the worker needs no second tool. The message is persistent, and the command ends when the
//! broker has confirmed it.

use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;

use super::run::broker;
use super::{ConfigArgs, Exit, complain, print, tokio_runtime};
use crate::broker::{BrokerError, Published};
use crate::identity::{IdentityRules, Source};
use crate::message::{HeaderValue, Message, Properties};
use crate::worker::config::Config;

/// Options of `onceward publish`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Queue: a name in the configuration, or else a queue of the broker
    #[arg(short, long)]
    queue: String,
    /// Id, put where the queue's first source looks for it
    #[arg(long)]
    id: Option<String>,
    /// Ordering key, put where the queue's first source looks for it
    #[arg(long)]
    key: Option<String>,
    /// MIME type of the body
    #[arg(long, default_value = "application/json")]
    content_type: String,
    /// Application header; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
}

/// Publishes: 0 when confirmed, 1 if refused, 69 without a broker, 78 with a wrong configuration.
pub(crate) fn run(args: &PublishArgs) -> ExitCode {
    let config = match args.config.load() {
        Ok(config) => config,
        Err(errors) => {
            complain(&errors);
            return Exit::Configuration.into();
        }
    };
    let published = message(args, &config).and_then(|message| {
        let queue = message.routing_key.clone();
        tokio_runtime()?.block_on(publish(&config, message))?;
        print(&format_args!("published to {queue}"));
        Ok(())
    });
    let Err(failed) = published else {
        return Exit::Ok.into();
    };
    complain(&format_args!("{failed:#}"));
    match failed.downcast_ref::<BrokerError>() {
        Some(_) => Exit::Unreachable.into(),
        None => Exit::Failed.into(),
    }
}

fn message(args: &PublishArgs, config: &Config) -> anyhow::Result<Message> {
    let configured = config.queues.iter().find(|queue| queue.name == args.queue);
    let rules =
        configured.map_or_else(IdentityRules::default, |queue| queue.options.identity.clone());
    let queue = configured.map_or(&args.queue, |queue| &queue.options.queue);
    let mut properties = Properties {
        content_type: Some(args.content_type.clone()),
        delivery_mode: Some(2),
        ..Properties::default()
    };
    for header in &args.header {
        let (name, value) =
            header.split_once('=').with_context(|| format!("--header {header:?} has no ="))?;
        properties.headers.insert(name.to_owned(), value.into());
    }
    if let Some(id) = &args.id {
        put(&mut properties, rules.id.first().unwrap_or(&Source::MessageId), id).context("--id")?;
    }
    if let Some(key) = &args.key {
        let default = Source::Header("x-key".to_owned());
        put(&mut properties, rules.key.first().unwrap_or(&default), key).context("--key")?;
    }
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).context("standard input cannot be read")?;
    Ok(Message {
        exchange: String::new(),
        routing_key: queue.clone(),
        properties,
        body: Bytes::from(body),
    })
}

fn put(properties: &mut Properties, source: &Source, value: &str) -> anyhow::Result<()> {
    match source {
        Source::MessageId => properties.message_id = Some(value.to_owned()),
        Source::CorrelationId => properties.correlation_id = Some(value.to_owned()),
        Source::Header(name) => {
            properties.headers.insert(name.clone(), HeaderValue::from(value));
        }
        Source::Json(_) | Source::CloudEvents | Source::RoutingKey | Source::Sequence { .. } => {
            bail!("the queue takes it from {source}; put it there instead")
        }
    }
    Ok(())
}

async fn publish(config: &Config, message: Message) -> anyhow::Result<()> {
    if config.broker.is_memory() {
        bail!(
            "broker.url is \"memory:\", which lives inside a worker: there is nothing to publish to"
        );
    }
    let queue = message.routing_key.clone();
    let mut channel = broker(&config.broker)?.publish_channel().await?;
    let published = channel.publish(&[Arc::new(message)]).await?;
    channel.close().await;
    match published.first() {
        Some(Published::Confirmed) => Ok(()),
        Some(Published::Unroutable(reason)) => Err(anyhow!(
            "queue {queue:?} does not take it ({reason}); create it, or start a worker with \
             declare = \"classic\" or \"quorum\""
        )),
        Some(Published::Refused) => Err(anyhow!("the broker refused it; is queue {queue:?} full?")),
        Some(Published::Unsendable(reason)) => Err(anyhow!("it cannot be sent: {reason}")),
        None => Err(anyhow!("the broker gave no answer")),
    }
}
