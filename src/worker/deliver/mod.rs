//! Where the stock worker takes a message: an HTTP endpoint, a command, another exchange, or the log.
//!
//! Owns the choice among the targets; each target is a handler of raw bodies in a file of its own. Options are
//! checked when a target is built, so a running target never fails on its own configuration. Nothing here decides
//! about retries beyond saying retry or reject: delays, attempts and timeouts are the runtime's.

mod client;
mod command;
mod exchange;
mod http;
mod log;
mod tail;
mod trace;

pub(crate) use self::client::http_client;
pub(crate) use self::command::{Command, CommandOptions};
pub(crate) use self::exchange::{Exchange, ExchangeOptions};
pub(crate) use self::http::{Http, HttpOptions};
pub(crate) use self::log::Log;
use crate::{Body, Context, Handler, Result};

/// One target, as a queue's `deliver` names it.
pub(crate) enum Target {
    Http(Http),
    Command(Command),
    Exchange(Exchange),
    Log(Log),
}

impl Handler<Body> for Target {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result {
        match self {
            Self::Http(target) => target.handle(cx, body).await,
            Self::Command(target) => target.handle(cx, body).await,
            Self::Exchange(target) => target.handle(cx, body).await,
            Self::Log(target) => target.handle(cx, body).await,
        }
    }
}

/// An option that no target can be built with.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {problem}")]
pub(crate) struct TargetError {
    /// Name of the option as configuration writes it.
    pub(crate) option: &'static str,
    /// What is wrong with its value.
    pub(crate) problem: String,
}

impl TargetError {
    fn new(option: &'static str, problem: impl Into<String>) -> Self {
        Self {
            option,
            problem: problem.into(),
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
