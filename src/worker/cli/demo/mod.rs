//! `onceward demo`: the promise under fire, on a machine with nothing but Rust.
//!
//! A broker in this process (or a RabbitMQ) delivers orders with twins; connections are lost and the runtime is torn
//! down on the way; a ledger outside the runtime counts what was doubled, lost or out of order. Needs no configuration
//! and asks nothing.

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing_subscriber::EnvFilter;

use self::drive::{DEAD_LETTERS, Drive, QUEUE, Setup, Stopped};
use self::inspect::Scene;
use self::ledger::Ledger;
use self::observe::ObservedBroker;
use self::orders::{Plan, Size};
use self::report::Report;
use super::{Exit, complain, print};
use crate::{
    AmqpBroker, AmqpOptions, Broker, BrokerError, Clock, MemoryBroker, RunError, StoreOptions,
};

mod collect;
mod drive;
mod handler;
mod inspect;
mod ledger;
mod observe;
mod orders;
mod progress;
mod publish;
mod report;
mod samples;

/// How long a broker may take to be there.
const REACHABLE_WITHIN: Duration = Duration::from_secs(15);

const TRY_AGAIN_DELAY: Duration = Duration::from_millis(500);

/// See every message take effect once, through lost connections, redeliveries and crashes
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// RabbitMQ to run on, such as amqp://guest:guest@127.0.0.1:5672/%2f [default: a broker in this
    /// process]
    #[arg(long, value_name = "URL")]
    pub(crate) broker: Option<String>,
    /// Orders to publish
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) messages: u32,
    /// Customers that the orders are of; each one's are handled in their order
    #[arg(long, value_name = "N", default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) keys: u32,
    /// Fraction of the orders that the producer publishes twice
    #[arg(long, value_name = "FRACTION", default_value_t = 0.3, value_parser = fraction)]
    pub(crate) duplicates: f64,
    /// Seed of the orders [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Directory of the store, which is kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Log what the runtime does to stderr, not only its errors
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Runs the command: 0 if every promise was kept, 1 if not, 2 for a bad URL, 69 if the broker cannot be reached, 74 if
/// the store failed.
#[must_use]
pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    start_log(args.verbose);
    match try_run(args) {
        Ok(report) => {
            if args.json {
                print(&report.to_json());
            } else {
                print(&report);
            }
            if report.ok { Exit::Ok.into() } else { Exit::Failed.into() }
        }
        Err(failed) => {
            complain(&failed);
            failed.exit().into()
        }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("--broker: {0}")]
    Url(#[from] crate::AmqpUrlError),
    #[error("{0}; `scripts/rabbitmq start` starts one and prints its URL")]
    Unreachable(BrokerError),
    #[error("the store: {0}")]
    Store(String),
    #[error("{0}")]
    Stopped(Stopped),
    #[error("{0}")]
    System(String),
}

impl Failed {
    const fn exit(&self) -> Exit {
        match self {
            Self::Url(_) => Exit::Usage,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::Store(_) => Exit::Store,
            Self::Stopped(_) | Self::System(_) => Exit::Failed,
        }
    }
}

fn try_run(args: &DemoArgs) -> Result<Report, Failed> {
    let broker: Arc<dyn Broker> = match args.broker.as_deref() {
        None | Some("memory:") => Arc::new(MemoryBroker::new()),
        Some(url) => Arc::new(AmqpBroker::new(AmqpOptions::new(url)?)),
    };
    // Removed when this function ends, which is after the end of the runtime that has it open.
    let temporary;
    let store = match &args.store {
        Some(path) => StoreOptions::new(path),
        None => {
            let made = tempfile::Builder::new().prefix("onceward-demo-").tempdir();
            temporary = made.map_err(|error| Failed::Store(error.to_string()))?;
            StoreOptions::new(temporary.path())
        }
    };
    let system = |error: &dyn fmt::Display| Failed::System(error.to_string());
    let metrics = crate::worker::admin::install_recorder().map_err(|error| system(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| system(&error))?;
    runtime.block_on(demo(args, broker, store, metrics))
}

async fn demo(
    args: &DemoArgs,
    broker: Arc<dyn Broker>,
    store: StoreOptions,
    metrics: PrometheusHandle,
) -> Result<Report, Failed> {
    reach(&*broker).await?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let size = Size {
        orders: args.messages as usize,
        keys: args.keys as usize,
        duplicates: args.duplicates,
    };
    let plan = Arc::new(Plan::new(size, seed, Clock::default().now_ms()));
    let ledger = Arc::new(Ledger::new(Arc::clone(&plan)));
    let observed = ObservedBroker::new(Arc::clone(&broker), Arc::clone(&plan), Arc::clone(&ledger));
    let setup = Setup { broker: Arc::new(observed), plan, ledger, store, metrics };
    announce(args, &*broker, setup.plan.sequence().len(), seed);
    let report = Report {
        seed,
        broker: broker.address(),
        orders: size.orders as u64,
        keys: size.keys as u64,
        ..Report::default()
    };
    let scene = Scene {
        broker,
        observed: Arc::clone(&setup.broker),
        plan: Arc::clone(&setup.plan),
        ledger: Arc::clone(&setup.ledger),
        metrics: setup.metrics.clone(),
    };
    let (driven, ended) = Drive::new(setup).run().await;
    let stopped = match ended {
        Ok(()) => None,
        Err(Stopped::Runtime(RunError::StoreFailed(error))) => {
            return Err(Failed::Store(error.to_string()));
        }
        Err(Stopped::Interrupted) => return Err(Failed::Stopped(Stopped::Interrupted)),
        Err(stopped) => Some(stopped.to_string()),
    };
    Ok(scene.inspect(driven, report, stopped).await)
}

/// Waits for the broker, and makes the demo's queues.
async fn reach(broker: &dyn Broker) -> Result<(), Failed> {
    let deadline = Instant::now() + REACHABLE_WITHIN;
    let mut last = BrokerError::Lost {
        address: broker.address(),
        reason: format!("no answer within {} s", REACHABLE_WITHIN.as_secs()),
    };
    loop {
        match timeout_at(deadline, make_queues(broker)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(Failed::Unreachable(last)),
        }
        if timeout_at(deadline, sleep(TRY_AGAIN_DELAY)).await.is_err() {
            return Err(Failed::Unreachable(last));
        }
    }
}

async fn make_queues(broker: &dyn Broker) -> Result<(), BrokerError> {
    let mut channel = broker.publish_channel().await?;
    for queue in [QUEUE, DEAD_LETTERS] {
        channel.ensure_queue(queue).await?;
    }
    channel.close().await;
    Ok(())
}

fn announce(args: &DemoArgs, broker: &dyn Broker, published: usize, seed: u64) {
    let line = format!(
        "{} orders over {} keys as {} messages, on {} (seed {seed})",
        report::thousands(args.messages.into()),
        report::thousands(args.keys.into()),
        report::thousands(published as u64),
        broker.address(),
    );
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn start_log(verbose: bool) {
    // lapin calls every lost connection an error, and here they are lost on purpose.
    let filter = if verbose { "error,onceward=info,lapin=off" } else { "off,onceward=error" };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr);
    // Who has installed a log already, wants that one.
    let _ = subscriber.try_init();
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        _ => Err("write a fraction between 0 and 1, such as 0.3".to_owned()),
    }
}
