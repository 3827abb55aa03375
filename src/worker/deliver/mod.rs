//! Where the stock worker takes a message: an HTTP endpoint, a command, another exchange, or the log.
//!
//! Owns the choice among the targets; each target is a handler of raw bodies in a file of its own, beside
//! its options. Options are checked when they are made, so a target can be built of any of them. Nothing here decides
//! about retries beyond saying retry or reject: delays, attempts and timeouts are the runtime's.

mod client;
mod command;
mod exchange;
mod http;
mod log;
mod tail;
mod trace;

use std::fmt;

pub(crate) use self::client::{ClientError, http_client};
pub(crate) use self::command::Command;
pub use self::command::CommandOptions;
pub(crate) use self::exchange::Exchange;
pub use self::exchange::ExchangeOptions;
pub use self::http::HttpOptions;
pub(crate) use self::http::{Http, HttpHeaders, HttpUrl};
pub(crate) use self::log::Log;
use crate::{Body, Context, Handler, Reply, Result};

/// One target, as a queue's `deliver` names it.
pub(crate) enum Target {
    Http(Http),
    Command(Command),
    Exchange(Exchange),
    Log(Log),
}

/// Only an answer over HTTP is a result.
impl Handler<Body, Option<Reply>> for Target {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result<Option<Reply>> {
        let done = match self {
            Self::Http(target) => return target.handle(cx, body).await,
            Self::Command(target) => target.handle(cx, body).await,
            Self::Exchange(target) => target.handle(cx, body).await,
            Self::Log(target) => target.handle(cx, body).await,
        };
        done.map(|()| None)
    }
}

/// The options of one target: what a queue's `deliver` is read to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetOptions {
    /// POSTs the body.
    Http(HttpOptions),
    /// Starts a command with the body on stdin.
    Command(CommandOptions),
    /// Publishes to an exchange.
    Exchange(ExchangeOptions),
    /// Logs a line.
    Log,
}

/// For people: nothing secret is in it.
impl fmt::Display for TargetOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(options) => write!(f, "http {options}"),
            Self::Command(options) => write!(f, "command {options}"),
            Self::Exchange(options) => write!(f, "exchange {options}"),
            Self::Log => f.write_str("log"),
        }
    }
}

/// What a target said of one message, in a form that tests can compare.
#[cfg(test)]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    Retry(String, Option<std::time::Duration>),
    Reject(String),
}

#[cfg(test)]
impl From<Result> for Verdict {
    fn from(result: Result) -> Self {
        use crate::handler::{HandleError, error_chain};
        match result {
            Ok(()) => Self::Done,
            Err(HandleError::Retry { error, after }) => {
                Self::Retry(error_chain(error.as_ref(), 4096), after)
            }
            Err(HandleError::Reject { error }) => Self::Reject(error_chain(error.as_ref(), 4096)),
        }
    }
}
