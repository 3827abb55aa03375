//! Where the broker is and how it is spoken to, with the password kept out of every text.
//!
//! What lapin would read wrongly without a word is an error here: an unescaped character in the password, an
//! unknown parameter, a vhost with an empty name, TLS that was not compiled in.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};

/// Query parameters that an AMQP url may have.
const PARAMETERS: [&str; 5] =
    ["auth_mechanism", "channel_max", "connection_timeout", "frame_max", "heartbeat"];

/// How RabbitMQ is reached.
#[derive(Clone, Debug)]
pub struct AmqpOptions {
    /// Time between heartbeats; default 10 seconds, or the url's `heartbeat`; a silent broker is given up after two.
    ///
    /// AMQP counts whole seconds: a fraction is rounded up.
    pub heartbeat: Duration,
    /// What the broker's listings call our connections; default `onceward`.
    pub connection_name: String,
    /// Certificates for `amqps://`; default: the system's CAs are trusted, and we show none.
    pub tls: AmqpTls,
    url: AmqpUrl,
}

/// Files of certificates for `amqps://`, all in PEM; read at each connection, so they can be renewed in their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmqpTls {
    /// Certificates of the CAs that are trusted, and no others; `None` is the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate with those between it and its CA, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl AmqpOptions {
    /// The broker at `url`: `amqp://user:password@host:5672/%2f`, with the vhost percent-encoded.
    ///
    /// # Errors
    ///
    /// If the url is not one of AMQP. The error names what is wrong with it and never repeats the password.
    pub fn new(url: &str) -> Result<Self, AmqpUrlError> {
        let url = AmqpUrl::parse(url)?;
        let heartbeat = u64::from(url.0.query.heartbeat.unwrap_or(10));
        Ok(Self {
            heartbeat: Duration::from_secs(heartbeat),
            connection_name: "onceward".to_owned(),
            tls: AmqpTls::default(),
            url,
        })
    }

    /// Reads the files of [`Self::tls`] if the url is one of `amqps://`, to know before the first connection.
    ///
    /// # Errors
    ///
    /// If one cannot be read or is no certificate, or the key is another's; the text names the file.
    pub fn check_certificates(&self) -> Result<(), AmqpUrlError> {
        #[cfg(feature = "tls")]
        if self.url.0.scheme == AMQPScheme::AMQPS {
            let checked = super::tls::config(&self.tls).map(drop);
            return checked.map_err(AmqpUrlError::Certificates);
        }
        Ok(())
    }

    pub(super) const fn url(&self) -> &AmqpUrl {
        &self.url
    }

    /// The url as lapin takes it, with our heartbeat.
    pub(super) fn uri(&self) -> AMQPUri {
        let mut uri = self.url.0.clone();
        let seconds = self.heartbeat.as_millis().div_ceil(1000);
        // 0 would switch heartbeats off: a dead peer would be noticed by nobody.
        uri.query.heartbeat = Some(u16::try_from(seconds).unwrap_or(u16::MAX).max(1));
        uri
    }
}

/// Why the broker cannot be reached as it is said; never contains the password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmqpUrlError {
    /// The text is not the url of a broker: mend it.
    #[error("not an AMQP url (amqp://user:password@host:port/vhost): {0}")]
    Url(String),
    /// A file of certificates cannot be used: mend it, or name another.
    #[error("{0}")]
    Certificates(String),
}

/// An AMQP url whose password shows in no text.
#[derive(Clone)]
pub(super) struct AmqpUrl(AMQPUri);

impl AmqpUrl {
    fn parse(text: &str) -> Result<Self, AmqpUrlError> {
        let scheme = ["amqp://", "amqps://"];
        let rest = scheme.iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| problem("it must begin with amqp:// or amqps://"))?;
        let (authority, query) = split(rest);
        if rest.contains('@') && !authority.contains('@') {
            return Err(problem(
                "one of / ? # @ in the user or the password must be percent-encoded (%2f %3f %23 %40)",
            ));
        }
        check_parameters(query)?;
        // What remains of lapin's texts are the fixed ones of the url and number parsers.
        let mut uri: AMQPUri = text.parse().map_err(|text: String| {
            AmqpUrlError::Url(if text.contains('\'') { "it has no host".to_owned() } else { text })
        })?;
        // lapin takes an IPv6 address for no host at all, and no host for localhost.
        if let Some((_, host)) =
            authority.rsplit_once('@').unwrap_or(("", authority)).1.split_once('[')
            && let Some((address, _)) = host.split_once(']')
        {
            address.clone_into(&mut uri.authority.host);
        }
        if uri.vhost.is_empty() {
            return Err(problem(
                "its path names a vhost with an empty name: leave the last / out, or write /%2f for the default vhost",
            ));
        }
        if uri.scheme == AMQPScheme::AMQPS && !cfg!(feature = "tls") {
            return Err(problem("amqps needs a build with the feature `tls`"));
        }
        Ok(Self(uri))
    }

    /// User, host, port and vhost.
    pub(super) fn address(&self) -> String {
        let authority = &self.0.authority;
        let (user, host) = (&authority.userinfo.username, &authority.host);
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let vhost = self.0.vhost.replace('/', "%2f");
        format!("{user}@{host}:{}/{vhost}", authority.port)
    }

    #[cfg(feature = "tls")]
    pub(super) fn host(&self) -> &str {
        &self.0.authority.host
    }

    pub(super) fn user(&self) -> &str {
        &self.0.authority.userinfo.username
    }

    pub(super) fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// The text without the password, should somebody else have put it there.
    pub(super) fn scrub(&self, text: &str) -> String {
        let userinfo = &self.0.authority.userinfo;
        if userinfo.password.is_empty() || userinfo.password == userinfo.username {
            return text.to_owned();
        }
        text.replace(&userinfo.password, "***")
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address())
    }
}

/// What is between the scheme and the path, and what is behind the question mark.
fn split(rest: &str) -> (&str, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let query = path.split_once('?').map_or("", |(_, query)| query);
    (authority, query.split_once('#').map_or(query, |(query, _)| query))
}

fn check_parameters(query: &str) -> Result<(), AmqpUrlError> {
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !PARAMETERS.contains(&name) {
            let known = PARAMETERS.join(", ");
            return Err(problem(&format!("it has a parameter that is none of {known}")));
        }
        let known = ["plain", "amqplain", "external", "anonymous"];
        if name == "auth_mechanism" && !known.contains(&value.to_lowercase().as_str()) {
            return Err(problem(&format!("its auth_mechanism is none of {}", known.join(", "))));
        }
    }
    Ok(())
}

fn problem(text: &str) -> AmqpUrlError {
    AmqpUrlError::Url(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> String {
        AmqpOptions::new(url).expect("a good url").url.address()
    }

    #[test]
    fn an_address_has_everything_but_the_password() {
        assert_eq!(address("amqp://u:s3cret@h:1/v%2fw"), "u@h:1/v%2fw");
        assert_eq!(address("amqp://localhost"), "guest@localhost:5672/%2f");
        assert_eq!(address("amqp://u:p@[::1]:5673/%2f"), "u@[::1]:5673/%2f");
        let options = AmqpOptions::new("amqp://u:s3cret@h/%2f").expect("a good url");
        assert!(!format!("{options:?}").contains("s3cret"), "{options:?}");
        assert_eq!(options.url.scrub("login s3cret refused"), "login *** refused");
    }

    #[test]
    fn the_heartbeat_is_ours_or_the_urls_and_never_off() {
        let mut options = AmqpOptions::new("amqp://h?heartbeat=7").expect("a good url");
        assert_eq!(options.heartbeat, Duration::from_secs(7));
        options.heartbeat = Duration::ZERO;
        assert_eq!(options.uri().query.heartbeat, Some(1));
        options.heartbeat = Duration::from_millis(1500);
        assert_eq!(options.uri().query.heartbeat, Some(2));
    }

    #[test]
    fn a_bad_url_is_named_without_its_password() {
        for (url, problem) in [
            ("http://u:s3cret@h", "must begin with"),
            ("u:s3cret@h", "must begin with"),
            ("amqp://u:s3cret/x@h/%2f", "percent-encoded"),
            ("amqp://u:s3cret#x@h", "percent-encoded"),
            ("amqp://u:s3cret@h:port", "port"),
            ("amqp://u:s3cret@h/", "empty name"),
            ("amqp://u:s3cret@h?hartbeat=s3cret", "none of"),
            ("amqp://u:s3cret@h?heartbeat=s3cret", "digit"),
            ("amqp://u:s3cret@h?auth_mechanism=s3cret", "none of"),
        ] {
            let text = AmqpOptions::new(url).expect_err("a bad url").to_string();
            assert!(text.contains(problem), "{url}: {text}");
            assert!(!text.contains("s3cret"), "{url}: {text}");
        }
    }
}
