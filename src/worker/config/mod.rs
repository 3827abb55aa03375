//! The configuration of the stock worker, from file, environment and `--set` to checked values.
//!
//! Composes one struct per component and owns the names of the tables. Reading is pure: text,
//! variables and arguments come in as values, and all errors come out at once. Does not look at the
//! broker, the disk or the targets; whether they fit is found out at run time.

mod broker;
mod deliver;
mod error;
pub mod estimate;
mod http;
mod identity;
mod log;
pub(crate) mod protect;
mod queue;
mod read;
mod retention;
mod secret;
mod secret_file;
mod sources;
mod tree;
pub mod units;
mod values;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub use self::broker::{BrokerConfig, BrokerTls};
pub use self::error::{ConfigError, ConfigErrors};
pub use self::log::{LogConfig, LogFormat};
pub use self::queue::QueueConfig;
pub use self::secret::Secret;
pub use self::secret_file::SecretContents;
pub use self::sources::VARIABLE_PREFIX;
pub use crate::worker::deliver::{CommandOptions, ExchangeOptions, HttpOptions, TargetOptions};

use self::error::{Errors, Origin};
use self::read::Section;
use self::secret_file::{SecretFile, SecretFiles, Secrets};
use crate::store::StoreOptions;

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
    /// What whoever asks there must show, with each request but `/livez`; `None` is nothing.
    pub http_token: Option<Secret>,
    /// How long running handlers may go on after the shutdown began.
    pub drain: Duration,
    /// Table `[log]`.
    pub log: LogConfig,
    secrets: Secrets,
    warnings: Vec<String>,
}

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
        let mut secrets = Secrets::default();
        let broker = broker::read(root.section("broker"), &mut secrets);
        let store = read_store(root.section("store"), &mut secrets);
        let mut defaults = root.section("defaults");
        let shared = queue::read_defaults(&mut defaults);
        defaults.finish();
        let queues = queue::read_queues(&root.section("queues"), &shared);
        let http_listen = http::read(root.section("http"), &mut secrets);
        let drain = read_shutdown(root.section("shutdown"));
        let log = log::read(root.section("log"));
        root.finish();
        errors.check()?;
        Ok(Self {
            broker,
            store,
            queues,
            http_listen,
            http_token: None,
            drain,
            log,
            secrets,
            warnings: Vec::new(),
        })
    }

    /// Reads the files that secrets are in, by `read_file`; what `url_file` holds, without blanks around it, wins over
    /// `url`.
    ///
    /// # Errors
    ///
    /// All files that cannot be read, that others may read or write, or whose content is not what the key takes; the
    /// content is not repeated.
    pub fn resolve_secrets(
        &mut self,
        read_file: impl FnMut(&Path) -> io::Result<SecretContents>,
    ) -> Result<(), ConfigErrors> {
        let errors = Errors::default();
        let mut files = SecretFiles { read_file, errors: &errors };
        if let Some((url, warning)) = self.secrets.url.as_ref().and_then(|file| files.url(file)) {
            self.broker.url = url;
            self.warnings.extend(warning.map(|warning| format!("broker.url_file: {warning}")));
        }
        if let Some(file) = &self.secrets.tls_key {
            files.tls_key(file);
        }
        if let Some((origin, key)) = &self.secrets.tls_origin
            && !self.broker.url.expose().starts_with("amqps://")
        {
            errors.add(
                origin.clone(),
                key,
                "is for amqps:// only, and the broker's url is another",
            );
        }
        self.warnings.extend(self.broker.warning());
        self.store.key = self.secrets.store_key.as_ref().and_then(|file| files.store_key(file));
        self.http_token = self.secrets.http_token.as_ref().and_then(|file| files.token(file));
        errors.check()
    }

    /// What runs, and should not be left so; known when the secrets are.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

fn read_store(mut section: Section<'_>, secrets: &mut Secrets) -> StoreOptions {
    let path = section.read("path", values::path);
    let mut store = StoreOptions::new(path.unwrap_or_else(|| "./onceward-data".into()));
    if let Some(bytes) = section.read("cache", values::size(CACHE_BYTES_MIN, u64::MAX)) {
        store.cache_bytes = bytes;
    }
    if let Some(bytes) = section.read("max_size", values::size(SIZE_BYTES_MIN, u64::MAX)) {
        store.size_bytes_max = bytes;
    }
    secrets.store_key = SecretFile::read(&mut section, "key_file");
    section.finish();
    store
}

fn read_shutdown(mut section: Section<'_>) -> Duration {
    let drain = section.read("drain", values::duration(Duration::ZERO));
    section.finish();
    drain.unwrap_or(Duration::from_secs(30))
}

#[cfg(test)]
mod tests;
