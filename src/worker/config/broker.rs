//! The table `[broker]`: where the broker is, and by which certificates it is trusted.
//!
//! Reads no file and connects to nothing; the certificates are read when the broker is.

use std::path::PathBuf;
use std::time::Duration;

use super::read::Section;
use super::secret_file::{SecretFile, Secrets};
use super::{Secret, values};
use crate::worker::url;

/// How the broker is reached.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `amqp://..`, `amqps://..` or `memory:`.
    pub url: Secret,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Files for `amqps://`.
    pub tls: BrokerTls,
}

/// Files of certificates for `amqps://`, all in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerTls {
    /// Certificates of the CAs that are trusted, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and those between it and its CA, with our key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Shortest and longest time between heartbeats that AMQP can say, in whole seconds.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(65_535);

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

    /// What there is to beware of: password and messages in the clear on a network.
    pub(super) fn warning(&self) -> Option<String> {
        url::is_plain_to_elsewhere(self.url.expose()).then(|| {
            format!(
                "{} is on another machine and without TLS: whoever is on the way reads and changes the password and \
                 all messages; write amqps://",
                self.address()
            )
        })
    }
}

pub(super) fn read(mut section: Section<'_>, secrets: &mut Secrets) -> BrokerConfig {
    let url = section.read("url", |node| {
        let text = values::string(node)?;
        url::check_broker(&text, cfg!(feature = "tls"))?;
        Ok(Secret::new(text))
    });
    secrets.url = SecretFile::read(&mut section, "url_file");
    let heartbeat = section.read("heartbeat", |node| {
        let heartbeat = values::duration(HEARTBEAT_MIN)(node)?;
        if heartbeat > HEARTBEAT_MAX || heartbeat.subsec_nanos() > 0 {
            return Err("must be whole seconds, at most 65535s".to_owned());
        }
        Ok(heartbeat)
    });
    let mut file = |key| {
        let path = section.read(key, values::string).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    let (ca_file, cert_file) = (file("ca_file"), file("cert_file"));
    secrets.tls_key = SecretFile::read(&mut section, "key_file");
    let key_file = secrets.tls_key.as_ref().map(|file| file.path.clone());
    match (&cert_file, &key_file) {
        (Some(_), None) => section.error("cert_file", "is of no use without key_file, its key"),
        (None, Some(_)) => section.error("key_file", "is of no use without cert_file"),
        _ => {}
    }
    secrets.tls_origin = ["ca_file", "cert_file", "key_file"]
        .into_iter()
        .zip([&ca_file, &cert_file, &key_file])
        .find(|(_, path)| path.is_some())
        .map(|(key, _)| (section.origin_of(key), section.path_of(key)));
    section.finish();
    BrokerConfig {
        url: url.unwrap_or_else(|| Secret::new("amqp://guest:guest@127.0.0.1:5672/%2f")),
        heartbeat: heartbeat.unwrap_or(Duration::from_secs(10)),
        tls: BrokerTls { ca_file, identity: cert_file.zip(key_file) },
    }
}
