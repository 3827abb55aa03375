//! Where the messages of a queue go: the key `deliver`, checked as far as it can be without acting.
//!
//! Makes no connection and starts no command; that a target is reachable is found out when it is
//! used.

use reqwest::header::{HeaderName, HeaderValue};

use super::read::Section;
use super::secret::Secret;
use super::url;
use super::values;

/// What the stock worker does with a message.
#[derive(Clone, Debug)]
pub enum Deliver {
    /// POSTs the body.
    Http {
        /// Where to; secret because users put tokens into URLs.
        url: Secret,
        /// Further headers, names in lower case; secret because tokens are among them.
        headers: Vec<(String, Secret)>,
    },
    /// Starts a command with the body on stdin.
    Command {
        /// Program and arguments, at least the program.
        argv: Vec<String>,
        /// Most bytes of its output that are kept for errors; default 64 KiB.
        output_bytes_max: usize,
    },
    /// Publishes to an exchange.
    Exchange {
        /// Name of the exchange; empty is the default exchange.
        exchange: String,
        /// Routing key; without it the message's own.
        routing_key: Option<String>,
    },
    /// Logs a line.
    Log,
}

impl std::fmt::Display for Deliver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { url, .. } => write!(f, "http {}", url::shown(url.expose())),
            Self::Command { argv, .. } => {
                write!(f, "command {}", argv.first().map_or("", String::as_str))
            }
            Self::Exchange {
                exchange,
                routing_key: Some(routing_key),
            } => write!(f, "exchange {exchange:?}, routing key {routing_key:?}"),
            Self::Exchange { exchange, .. } => write!(f, "exchange {exchange:?}"),
            Self::Log => f.write_str("log"),
        }
    }
}

const TYPES: &[(&str, Type)] = &[
    ("http", Type::Http),
    ("command", Type::Command),
    ("exchange", Type::Exchange),
    ("log", Type::Log),
];

#[derive(Clone, Copy)]
enum Type {
    Http,
    Command,
    Exchange,
    Log,
}

/// Headers that the worker or the protocol sets, so nobody else may.
const OWN_HEADERS: [&str; 6] = [
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "traceparent",
    "transfer-encoding",
];

const OWN_HEADER_PREFIX: &str = "x-onceward-";

/// Longest output of a command that may be asked for.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

impl Deliver {
    /// Reads the target of the queue whose table this is; `None` if it is missing or wrong, which
    /// is noted.
    pub(crate) fn read(parent: &mut Section<'_>, queue: &str) -> Option<Self> {
        if !parent.has("deliver") {
            parent.missing(
                "deliver",
                r#"{ type = "log" }, or type "http", "command" or "exchange""#,
            );
            return None;
        }
        let mut section = parent.section("deliver");
        if section.is_table() && !section.has("type") {
            section.missing("type", r#""http", "command", "exchange" or "log""#);
        }
        let deliver = match section.read("type", values::one_of(TYPES))? {
            Type::Http => http(&mut section),
            Type::Command => command(&mut section),
            Type::Exchange => exchange(&mut section, queue),
            Type::Log => Some(Self::Log),
        };
        section.finish();
        deliver
    }
}

fn http(section: &mut Section<'_>) -> Option<Deliver> {
    let url = section.required("url", r#""http://127.0.0.1:8080/hook""#, |node| {
        let text = values::string(node)?;
        url::check_http(&text, cfg!(feature = "tls"))?;
        Ok(Secret::new(text))
    });
    let table = section.section("headers");
    let mut headers = Vec::new();
    for (name, node) in table.named_nodes() {
        match values::string(node).and_then(|value| header(name, value)) {
            Ok(header) => headers.push(header),
            Err(problem) => table.error(name, problem),
        }
    }
    Some(Deliver::Http { url: url?, headers })
}

fn header(name: &str, value: String) -> Result<(String, Secret), String> {
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err("not the name of a HTTP header".to_owned());
    };
    let lower = parsed.as_str();
    if OWN_HEADERS.contains(&lower) || lower.starts_with(OWN_HEADER_PREFIX) {
        return Err("set by onceward itself; remove it here".to_owned());
    }
    if HeaderValue::from_str(&value).is_err() {
        return Err("not a value for a HTTP header: it has control characters".to_owned());
    }
    Ok((lower.to_owned(), Secret::new(value)))
}

fn command(section: &mut Section<'_>) -> Option<Deliver> {
    let argv = section.required("argv", r#"["/usr/local/bin/handle"]"#, |node| {
        let argv = values::strings(node)?;
        if argv.first().is_none_or(String::is_empty) {
            return Err("names no program".to_owned());
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err("has a NUL character, which no argument can have".to_owned());
        }
        Ok(argv)
    });
    let output_bytes_max = section.read("max_output", values::size(0, OUTPUT_BYTES_MAX));
    Some(Deliver::Command {
        argv: argv?,
        output_bytes_max: output_bytes_max.map_or(64 << 10, |bytes| bytes as usize),
    })
}

fn exchange(section: &mut Section<'_>, queue: &str) -> Option<Deliver> {
    let exchange = section.required("exchange", r#""clean""#, values::name);
    let routing_key = section.read("routing_key", values::name);
    let exchange = exchange?;
    // The default exchange routes by queue name, and what came over it still has this queue's name
    // on it.
    if exchange.is_empty() && routing_key.as_deref().is_none_or(|key| key == queue) {
        let problem = "would send messages back to the queue they come from; name another queue";
        section.error("routing_key", problem);
        return None;
    }
    Some(Deliver::Exchange {
        exchange,
        routing_key,
    })
}
