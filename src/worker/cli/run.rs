//! `onceward run`: the worker of a configuration, with its targets and its endpoint for metrics and health.
//!
//! Puts the parts together and maps how they end to an exit code; decides nothing about messages.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{ConfigArgs, Exit, complain, logging, tokio_runtime};
use crate::broker::{AmqpBroker, AmqpOptions, Broker, MemoryBroker};
use crate::options::{OnDuplicate, Options};
use crate::runtime::{RunError, Worker};
use crate::worker::admin;
use crate::worker::config::{BrokerConfig, Config};
use crate::worker::deliver::{
    ClientError, Command, Exchange, Http, Log, Target, TargetOptions, http_client,
};

/// How long handlers that block a thread may hold up the exit.
const EXIT_WAIT: Duration = Duration::from_secs(1);

/// Options of `onceward run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs until a signal: 0 after a drain, 74 if the store failed, 78 if the configuration cannot be run.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    let loaded = args.config.load().and_then(|config| config.require_queues().map(|()| config));
    let config = match loaded {
        Ok(config) => config,
        Err(errors) => {
            complain(&errors);
            return Exit::Configuration.into();
        }
    };
    let started = logging::install(&config.log).and_then(|()| tokio_runtime());
    for warning in config.warnings() {
        warn!(problem = %warning, "the configuration should not stay so");
    }
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(failed) => {
            complain(&format_args!("{failed:#}"));
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(serve(config));
    runtime.shutdown_timeout(EXIT_WAIT);
    exit.into()
}

async fn serve(config: Config) -> Exit {
    let broker = match broker(&config.broker) {
        Ok(broker) => broker,
        Err(failed) => {
            error!("{failed:#}");
            return Exit::Configuration;
        }
    };
    let ended = match start(config, broker).await {
        Ok(ended) => ended,
        Err(failed) => {
            error!("{failed:#}");
            return Exit::Failed;
        }
    };
    let Err(failed) = ended else { return Exit::Ok };
    error!(error = %failed, "the worker has stopped");
    match failed {
        RunError::StoreFailed(_) => Exit::Store,
        RunError::Refused(_) | RunError::Options(_) | RunError::Twice { .. } => Exit::Configuration,
        RunError::Interrupted
        | RunError::Ended { .. }
        | RunError::Bug { .. }
        | RunError::Signals(_) => Exit::Failed,
    }
}

/// The broker that the configuration names; nothing is connected yet.
///
/// # Errors
///
/// As [`amqp_options`].
pub(crate) fn broker(config: &BrokerConfig) -> anyhow::Result<Arc<dyn Broker>> {
    if config.is_memory() {
        return Ok(Arc::new(MemoryBroker::new()));
    }
    Ok(Arc::new(AmqpBroker::new(amqp_options(config)?)))
}

/// How RabbitMQ is reached, with certificates that can be used.
///
/// # Errors
///
/// If the url is not one of AMQP, or a file of certificates cannot be used.
pub(crate) fn amqp_options(config: &BrokerConfig) -> anyhow::Result<AmqpOptions> {
    let mut options = AmqpOptions::new(config.url.expose()).context("broker.url")?;
    options.heartbeat = config.heartbeat;
    options.tls.ca_file.clone_from(&config.tls.ca_file);
    options.tls.identity.clone_from(&config.tls.identity);
    options.check_certificates().context("broker")?;
    Ok(options)
}

async fn start(config: Config, broker: Arc<dyn Broker>) -> anyhow::Result<Result<(), RunError>> {
    let metrics = admin::install_recorder().context("metrics cannot be set up")?;
    let mut options = Options::with_broker(broker, config.store);
    options.drain = config.drain;
    let mut worker = Worker::new(options);
    let mut http = None;
    for queue in config.queues {
        let target = target(queue.deliver, queue.options.on_duplicate, &mut http)
            .with_context(|| format!("queues.{}.deliver", queue.name))?;
        worker = worker.queue_with(queue.options, target);
    }

    let mut endpoint = tokio::task::JoinSet::new();
    let stopping = CancellationToken::new();
    if let Some(address) = config.http_listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("http.listen {address} cannot be bound"))?;
        info!(address = %listener.local_addr().unwrap_or(address), "serving /metrics /livez /readyz");
        let stopped = stopping.clone().cancelled_owned();
        let (health, token) = (worker.health(), config.http_token);
        endpoint.spawn(async move {
            admin::serve(listener, health, metrics, token.as_ref(), stopped).await
        });
    }
    let ended = worker.run().await;
    stopping.cancel();
    while let Some(served) = endpoint.join_next().await {
        if let Ok(Err(failed)) = served {
            error!(error = %failed, "the endpoint for metrics and health has failed");
        }
    }
    Ok(ended)
}

fn target(
    options: TargetOptions,
    on_duplicate: OnDuplicate,
    http: &mut Option<reqwest::Client>,
) -> Result<Target, ClientError> {
    Ok(match options {
        TargetOptions::Http(options) => {
            // Made only if needed: with TLS it reads the system's certificates.
            let client = match http {
                Some(client) => client.clone(),
                None => http.insert(http_client()?).clone(),
            };
            Target::Http(Http::new(options, client, on_duplicate == OnDuplicate::Replay))
        }
        TargetOptions::Command(options) => Target::Command(Command::new(options)),
        TargetOptions::Exchange(options) => Target::Exchange(Exchange::new(options)),
        TargetOptions::Log => Target::Log(Log),
    })
}
