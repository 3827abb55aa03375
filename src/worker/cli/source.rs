//! Where a command takes its configuration from: the file, this process's environment, and `--set`.
//!
//! The one place that reads them; what they mean is `worker::config`'s business.

use std::io;
use std::path::{Path, PathBuf};

use crate::worker::config::{Config, ConfigErrors, SecretContents, VARIABLE_PREFIX};

/// Read if it is there and no other file is named.
const DEFAULT_FILE: &str = "config.toml";

/// The options by which every command finds its configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file [default: config.toml]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key over file and environment, such as queues.orders.prefetch=100; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration with all its secrets.
    ///
    /// Without `--config` a missing `config.toml` is no error if environment or `--set` say
    /// anything.
    ///
    /// # Errors
    ///
    /// If the file or a file of secrets cannot be read, or anything in the configuration is wrong.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                // Bytes that are no UTF-8 in a value of ours become a wrong value, which is
                // reported.
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect();
        let prefix = VARIABLE_PREFIX.to_lowercase();
        let set_elsewhere = !self.set.is_empty()
            || variables.iter().any(|(name, _)| name.to_lowercase().starts_with(&prefix));
        let path = self.path();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.config.is_none()
                    && set_elsewhere =>
            {
                None
            }
            Err(error) => {
                let problem = format!("cannot be read: {error}; name another with --config");
                return Err(ConfigErrors::whole_file(path, problem));
            }
        };
        let file = text.as_deref().map(|text| (path, text));
        let mut config = Config::load(file, variables, &self.set)?;
        config.resolve_secrets(SecretContents::read)?;
        Ok(config)
    }

    /// The file that is read.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.config.as_deref().unwrap_or_else(|| Path::new(DEFAULT_FILE))
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    const FILE: &str = "[broker]\nurl_file = 'SECRET'\n\
        [queues.orders]\nprefetch = 7\ndeliver = { type = 'log' }\n";

    #[test]
    fn the_options_fit_together() {
        ConfigArgs::augment_args(clap::Command::new("onceward")).debug_assert();
    }

    #[test]
    fn file_arguments_and_secrets_come_together() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("url");
        std::fs::write(&secret, "amqp://me:hunter2@mq/%2f\n").unwrap();
        let file = directory.path().join("onceward.toml");
        std::fs::write(&file, FILE.replace("SECRET", &secret.display().to_string())).unwrap();
        let args =
            ConfigArgs { config: Some(file), set: vec!["queues.orders.concurrency=3".to_owned()] };
        let config = args.load().unwrap();
        let options = &config.queues.first().unwrap().options;
        assert_eq!((options.prefetch.get(), options.concurrency.get()), (7, 3));
        assert_eq!(config.broker.url.expose(), "amqp://me:hunter2@mq/%2f");
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let args = ConfigArgs {
            config: Some("/nowhere/onceward.toml".into()),
            set: vec!["queues.orders.deliver.type=log".to_owned()],
        };
        let problem = args.load().unwrap_err().to_string();
        assert!(problem.starts_with("/nowhere/onceward.toml: cannot be read: "), "{problem}");
    }
}
