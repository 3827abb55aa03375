//! Delivers a message as one HTTP POST, with a key by which the receiver can dedupe.
//!
//! Body, content type and content encoding go out as they came; the status line decides. 2xx is Done; 408, 425, 429,
//! 5xx and every failure to get an answer are another attempt, after `Retry-After` if the answer has one; all else
//! rejects the message, redirects too: they are never followed. Ids, keys and queue names are percent-encoded
//! outside visible ASCII (`%` and space too), so decoding gives back the exact bytes. Error texts never show the
//! url's user, password or query. Keeps no time: the runtime drops an attempt that takes too long.

use std::fmt;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};

use super::trace;
use crate::message::escape;
use crate::worker::url;
use crate::{Body, Context, Handler, Reply, Result, reject, retry_after};

/// Longest delay that `Retry-After` can ask for: the message stays unacknowledged all that time.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// Most bytes of an answer's body that go into an error text.
const EXCERPT_BYTES_MAX: usize = 200;

/// Most bytes of an answer's body that are read: a connection can be used again only after the end of the body.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long an answer's body is waited for: the status has decided already.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// Headers that the target sets itself, or that belong to the connection.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "te",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "upgrade",
];

const RESERVED_HEADER_PREFIX: &str = "x-onceward-";

/// Options of the target `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Where to; user and password are sent as basic authorization.
    pub(crate) url: HttpUrl,
    /// Sent with every message.
    pub(crate) headers: HttpHeaders,
}

impl fmt::Display for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// A url that this binary can POST to; shown without user, password and query, which may be secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HttpUrl(Url);

impl HttpUrl {
    /// Reads `http://` or, with the feature `tls`, `https://`; the problem repeats nothing of the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        url::parse_http(text, cfg!(feature = "tls")).map(Self)
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&url::shown(&self.0))
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Headers that a user may set, each once; `Debug` shows no value, as tokens are among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpHeaders(HeaderMap);

impl HttpHeaders {
    /// Takes one more; the problem, if there is one, repeats nothing of the value.
    pub(crate) fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name =
            HeaderName::try_from(name).map_err(|_| "not the name of a HTTP header".to_owned())?;
        let text = name.as_str();
        if RESERVED_HEADERS.contains(&text) || text.starts_with(RESERVED_HEADER_PREFIX) {
            return Err("set by onceward itself; remove it here".to_owned());
        }
        if self.0.contains_key(&name) {
            return Err("written twice: upper and lower case are one name".to_owned());
        }
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| "not a value for a HTTP header: it has control characters".to_owned())?;
        value.set_sensitive(true);
        self.0.insert(name, value);
        Ok(())
    }
}

/// The target `http`.
pub(crate) struct Http {
    options: HttpOptions,
    client: Client,
    /// Whether the answer to a message is kept as its result.
    keeps_answers: bool,
}

impl Http {
    pub(crate) const fn new(options: HttpOptions, client: Client, keeps_answers: bool) -> Self {
        Self { options, client, keeps_answers }
    }

    fn request_headers(&self, cx: &Context) -> Result<HeaderMap, HttpError> {
        let properties = cx.properties();
        let effect_key = format!("\"{}\"", cx.effect_key("http"));
        let visible = |bytes: &[u8]| Some(percent_encoded(bytes));
        let ours = [
            ("content-type", properties.content_type.clone()),
            ("content-encoding", properties.content_encoding.clone()),
            ("idempotency-key", Some(effect_key)),
            ("x-onceward-id", visible(cx.id().as_bytes())),
            ("x-onceward-key", cx.key().and_then(|key| visible(key.as_bytes()))),
            ("x-onceward-attempt", Some(cx.attempt().to_string())),
            ("x-onceward-queue", visible(cx.queue().as_bytes())),
        ];
        let mut headers = self.options.headers.0.clone();
        for (name, text) in ours {
            let Some(text) = text else { continue };
            let value = HeaderValue::from_str(&text)
                .map_err(|_| HttpError::Header { name, text: escape(text.as_bytes()) })?;
            headers.insert(name, value);
        }
        trace::copy(cx.headers(), &mut headers);
        Ok(headers)
    }

    async fn judge(&self, response: Response, bytes_max: usize) -> Result<Option<Reply>> {
        let status = response.status();
        if status.is_success() && self.keeps_answers {
            return self.answer(response, bytes_max).await.map(Some);
        }
        let after = retry_delay(response.headers());
        let excerpt = read_answer(response).await;
        if status.is_success() {
            return Ok(None);
        }
        let error = HttpError::Status { url: self.options.url.clone(), status, excerpt };
        match after {
            _ if !is_retryable(status) => Err(reject(error)),
            Some(delay) => Err(retry_after(delay, error)),
            None => Err(error.into()),
        }
    }
}

impl Http {
    /// The whole answer; one over the limit dead-letters the message, as no attempt would have a shorter one.
    async fn answer(&self, mut response: Response, bytes_max: usize) -> Result<Reply> {
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|of| of.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        let cut_off = |source: reqwest::Error| HttpError::CutOff {
            url: self.options.url.clone(),
            source: source.without_url(),
        };
        while let Some(chunk) = response.chunk().await.map_err(cut_off)? {
            if body.len() + chunk.len() > bytes_max {
                let url = self.options.url.clone();
                return Err(reject(HttpError::TooLarge { url, bytes_max }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { content_type, body: body.into() })
    }
}

impl Handler<Body, Option<Reply>> for Http {
    async fn handle(&self, cx: &mut Context, body: Body) -> Result<Option<Reply>> {
        // What cannot be a header now cannot be one in the next attempt.
        let headers = self.request_headers(cx).map_err(reject)?;
        let request = self.client.post(self.options.url.0.clone()).headers(headers).body(body.0);
        let response = request.send().await.map_err(|error| HttpError::Send {
            url: self.options.url.clone(),
            // Its own text would show the query.
            source: error.without_url(),
        })?;
        self.judge(response, cx.limits.result_bytes_max).await
    }
}

#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("property {name} cannot be sent as a header: {text:?}")]
    Header { name: &'static str, text: String },
    #[error("http target {url} did not answer")]
    Send { url: HttpUrl, source: reqwest::Error },
    #[error("http target {url} broke off its answer")]
    CutOff { url: HttpUrl, source: reqwest::Error },
    #[error("the answer of http target {url} is over max_result: {bytes_max} bytes")]
    TooLarge { url: HttpUrl, bytes_max: usize },
    #[error("http target {url} answered {status}{}{excerpt}", if excerpt.is_empty() { "" } else { ": " })]
    Status { url: HttpUrl, status: StatusCode, excerpt: String },
}

fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// The delay that the receiver asks for; `None` leaves it to the backoff, which is longer than no delay.
///
/// A date counts from the answer's own `Date`, so a clock that is wrong on either side does no harm.
fn retry_delay(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(header::RETRY_AFTER)?;
    let is_number = !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit());
    let delay = if is_number {
        Duration::from_secs(asked.parse().unwrap_or(u64::MAX))
    } else {
        let at = httpdate::parse_http_date(asked).ok()?;
        let answered = httpdate::parse_http_date(text(header::DATE)?).ok()?;
        at.duration_since(answered).ok()?
    };
    (!delay.is_zero()).then(|| delay.min(RETRY_AFTER_MAX))
}

/// Reads the body, if it is short and comes soon, and keeps its start, escaped.
async fn read_answer(mut response: Response) -> String {
    let mut start = Vec::with_capacity(EXCERPT_BYTES_MAX);
    let read = async {
        let mut bytes = 0;
        while let (true, Ok(Some(chunk))) = (bytes < ANSWER_BYTES_MAX, response.chunk().await) {
            bytes += chunk.len();
            start.extend(chunk.iter().take(EXCERPT_BYTES_MAX - start.len()));
        }
    };
    // What has come by then is shown.
    let _ = tokio::time::timeout(ANSWER_WAIT, read).await;
    escape(start.trim_ascii())
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' => out.push_str("%25"),
            0x21..=0x7e => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests;
