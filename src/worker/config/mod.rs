//! The configuration of the stock worker, from file, environment and `--set` to checked values.
//!
//! Composes one struct per component and owns the names of the tables. Reading is pure: text,
//! variables and arguments come in as values, and all errors come out at once. Does not look at the
//! broker, the disk or the targets; whether they fit is found out at run time.

mod deliver;
mod error;
pub mod estimate;
mod identity;
mod log;
pub(crate) mod protect;
mod queue;
mod read;
mod retention;
mod secret;
mod sources;
mod tree;
pub mod units;
mod values;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::error::{ConfigError, ConfigErrors};
pub use self::log::{LogConfig, LogFormat};
pub use self::queue::QueueConfig;
pub use self::secret::Secret;
pub use self::sources::VARIABLE_PREFIX;
pub use crate::worker::deliver::{CommandOptions, ExchangeOptions, HttpOptions, TargetOptions};

use self::error::{Errors, Origin};
use self::read::Section;
use self::tree::Node;
use crate::store::StoreOptions;
use crate::worker::url;

/// Everything that the stock worker can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Table `[broker]`.
    pub broker: BrokerConfig,
    /// Table `[store]`.
    pub store: StoreOptions,
    /// Tables `[queues.NAME]`, in the order they are written.
    pub queues: Vec<QueueConfig>,
    /// Where metrics and health listen; `None` is nowhere.
    pub http_listen: Option<SocketAddr>,
    /// How long running handlers may go on after the shutdown began.
    pub drain: Duration,
    /// Table `[log]`.
    pub log: LogConfig,
    url_file: Option<SecretFile>,
}

/// How the broker is reached.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `amqp://..`, `amqps://..` or `memory:`.
    pub url: Secret,
    /// Time between heartbeats.
    pub heartbeat: Duration,
}

impl BrokerConfig {
    /// Whether the broker is the in-process one.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        self.url.expose() == url::MEMORY
    }

    /// The address for people: without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        url::shown_broker(self.url.expose())
    }
}

#[derive(Clone, Debug)]
struct SecretFile {
    path: PathBuf,
    origin: Origin,
}

/// Shortest and longest time between heartbeats that AMQP can say, in whole seconds.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(65_535);

/// Less than this is a wrong unit rather than a wish.
const CACHE_BYTES_MIN: u64 = 1 << 20;
const SIZE_BYTES_MIN: u64 = 16 << 20;

impl Config {
    /// Reads the configuration: defaults, then the file's path and text, then variables, then
    /// `--set` arguments.
    ///
    /// Files of secrets are not read here: see [`Self::resolve_secrets`].
    ///
    /// # Errors
    ///
    /// All that is wrong, at once. After a syntax error in the file only those are reported, as
    /// everything else would be its consequence.
    pub fn load(
        file: Option<(&Path, &str)>,
        env: impl IntoIterator<Item = (String, String)>,
        set: &[String],
    ) -> Result<Self, ConfigErrors> {
        let errors = Errors::default();
        let table = sources::merged(file, env, set, &errors);
        errors.check()?;
        let mut root = Section::root(&table, &errors);
        let (broker, url_file) = read_broker(root.section("broker"));
        let store = read_store(root.section("store"));
        let mut defaults = root.section("defaults");
        let shared = queue::read_defaults(&mut defaults);
        defaults.finish();
        let queues = queue::read_queues(&root.section("queues"), &shared);
        let http_listen = read_http(root.section("http"));
        let drain = read_shutdown(root.section("shutdown"));
        let log = log::read(root.section("log"));
        root.finish();
        errors.check()?;
        Ok(Self { broker, store, queues, http_listen, drain, log, url_file })
    }

    /// Reads the files that secrets are in, by `read_file`; the content without blanks around it
    /// wins over `url`.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or its content is not what the key takes; the content is not
    /// repeated.
    pub fn resolve_secrets(
        &mut self,
        read_file: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Result<(), ConfigErrors> {
        let Some(file) = self.url_file.take() else {
            return Ok(());
        };
        let read = read_file(&file.path).map_err(|error| format!("cannot be read: {error}"));
        let checked = read.and_then(|text| {
            let url = text.trim();
            url::check_broker(url, cfg!(feature = "tls"))?;
            Ok(Secret::new(url))
        });
        let errors = Errors::default();
        match checked {
            Ok(url) => self.broker.url = url,
            Err(problem) => errors.add(
                file.origin,
                "broker.url_file",
                format!("{}: {problem}", file.path.display()),
            ),
        }
        errors.check()
    }

    /// Checks that there is something to consume.
    ///
    /// # Errors
    ///
    /// If there is no table `[queues.NAME]`.
    pub fn require_queues(&self) -> Result<(), ConfigErrors> {
        let errors = Errors::default();
        if self.queues.is_empty() {
            let problem = "none; write a table such as [queues.orders] for each queue to consume";
            errors.add(Origin::Nowhere, "queues", problem);
        }
        errors.check()
    }
}

fn read_broker(mut section: Section<'_>) -> (BrokerConfig, Option<SecretFile>) {
    let url = section.read("url", |node| {
        let text = values::string(node)?;
        url::check_broker(&text, cfg!(feature = "tls"))?;
        Ok(Secret::new(text))
    });
    let url_file = section.read("url_file", values::string);
    let heartbeat = section.read("heartbeat", |node| {
        let heartbeat = values::duration(HEARTBEAT_MIN)(node)?;
        if heartbeat > HEARTBEAT_MAX || heartbeat.subsec_nanos() > 0 {
            return Err("must be whole seconds, at most 65535s".to_owned());
        }
        Ok(heartbeat)
    });
    let url_file = url_file
        .filter(|path| !path.is_empty())
        .map(|path| SecretFile { path: path.into(), origin: section.origin_of("url_file") });
    section.finish();
    let broker = BrokerConfig {
        url: url.unwrap_or_else(|| Secret::new("amqp://guest:guest@127.0.0.1:5672/%2f")),
        heartbeat: heartbeat.unwrap_or(Duration::from_secs(10)),
    };
    (broker, url_file)
}

fn read_store(mut section: Section<'_>) -> StoreOptions {
    let path = section.read("path", values::path);
    let mut store = StoreOptions::new(path.unwrap_or_else(|| "./onceward-data".into()));
    if let Some(bytes) = section.read("cache", values::size(CACHE_BYTES_MIN, u64::MAX)) {
        store.cache_bytes = bytes;
    }
    if let Some(bytes) = section.read("max_size", values::size(SIZE_BYTES_MIN, u64::MAX)) {
        store.size_bytes_max = bytes;
    }
    section.finish();
    store
}

fn read_http(mut section: Section<'_>) -> Option<SocketAddr> {
    let listen = section.read("listen", listen_address);
    section.finish();
    listen.unwrap_or_else(|| Some(SocketAddr::from(([127, 0, 0, 1], 9464))))
}

/// Nobody has to prove who they are at this address, so only this machine may reach it.
fn listen_address(node: &Node) -> Result<Option<SocketAddr>, String> {
    let text = values::string(node)?;
    if text.is_empty() {
        return Ok(None);
    }
    let Ok(address) = text.parse::<SocketAddr>() else {
        let wanted = r#"write for example "127.0.0.1:9464", or "" for none"#;
        return Err(format!("{text:?} is not an address and a port; {wanted}"));
    };
    if !address.ip().is_loopback() {
        return Err(format!(
            "{text:?} can be reached from other machines, and nothing there asks for a password; \
             write \"127.0.0.1:{}\" and put a proxy before it",
            address.port()
        ));
    }
    Ok(Some(address))
}

fn read_shutdown(mut section: Section<'_>) -> Duration {
    let drain = section.read("drain", values::duration(Duration::ZERO));
    section.finish();
    drain.unwrap_or(Duration::from_secs(30))
}

#[cfg(test)]
mod tests;
