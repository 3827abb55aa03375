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
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::super::{Verdict, http_client};
    use super::*;
    use crate::message::{Key, Message, MessageId, Properties};

    /// A receiver that answers all requests alike and remembers them.
    struct Receiver {
        url: String,
        seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
        _server: JoinSet<()>,
    }

    type Answer = (StatusCode, Vec<(&'static str, &'static str)>, &'static str);

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
        (listener, url)
    }

    async fn receiver(answer: Answer) -> Receiver {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&seen);
        let hook = async move |headers: HeaderMap, body: Bytes| {
            requests.lock().unwrap().push((headers, body));
            let (status, headers, body) = answer;
            let headers = headers.into_iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            (status, headers.collect::<HeaderMap>(), body)
        };
        let (listener, url) = listener().await;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let served = axum::serve(listener, Router::new().fallback(hook)).await;
            served.expect("serves until dropped");
        });
        Receiver { url, seen, _server: server }
    }

    fn options(url: &str) -> HttpOptions {
        HttpOptions { url: HttpUrl::parse(url).expect("a url"), headers: HttpHeaders::default() }
    }

    fn target(options: &HttpOptions) -> Http {
        Http::new(options.clone(), http_client().expect("a client"), false)
    }

    async fn deliver(options: &HttpOptions, cx: &mut Context) -> Verdict {
        target(options).handle(cx, Body("b\0dy".into())).await.map(drop).into()
    }

    /// What a delivery becomes that is answered like this, with `HOOK` for the receiver's address.
    async fn verdict(answer: Answer) -> Verdict {
        let receiver = receiver(answer).await;
        let mut cx = Context::for_tests(Message::default());
        let verdict = deliver(&options(&receiver.url), &mut cx).await;
        assert_eq!(receiver.seen.lock().unwrap().len(), 1, "asked once, never redirected");
        let hidden = |text: String| text.replace(&receiver.url, "HOOK");
        match verdict {
            Verdict::Done => Verdict::Done,
            Verdict::Retry(text, after) => Verdict::Retry(hidden(text), after),
            Verdict::Reject(text) => Verdict::Reject(hidden(text)),
        }
    }

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).expect("a status")
    }

    #[tokio::test]
    async fn the_receiver_gets_exactly_these_headers_and_the_body() {
        let receiver = receiver((StatusCode::OK, vec![], "fine")).await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut cx = Context::for_tests(Message {
            properties: Properties {
                content_type: Some("text/csv; charset=latin1".to_owned()),
                content_encoding: Some("br".to_owned()),
                headers: [("traceparent".to_owned(), trace.into())].into(),
                ..Properties::default()
            },
            ..Message::default()
        });
        cx.id = MessageId::new(&b"m 1%\xff\x1b"[..]);
        cx.key = Some(Key::new("k\u{e9}".as_bytes()));
        cx.attempt = 3;
        let mut options = options(&receiver.url.replace("http://", "http://u:p@"));
        options.headers.add("X-Api", "secret").expect("ours");
        assert_eq!(deliver(&options, &mut cx).await, Verdict::Done);
        let (mut headers, body) = receiver.seen.lock().unwrap().remove(0);
        assert_eq!(body, "b\0dy");
        let effect_key = format!("\"{}\"", cx.effect_key("http"));
        for (name, value) in [
            ("content-type", "text/csv; charset=latin1"),
            ("content-encoding", "br"),
            ("content-length", "4"),
            ("idempotency-key", &effect_key),
            ("x-onceward-id", "m%201%25%FF%1B"),
            ("x-onceward-key", "k%C3%A9"),
            ("x-onceward-attempt", "3"),
            ("x-onceward-queue", "orders"),
            ("traceparent", trace),
            ("x-api", "secret"),
            ("authorization", "Basic dTpw"),
            ("user-agent", concat!("onceward/", env!("CARGO_PKG_VERSION"))),
            ("accept", "*/*"),
        ] {
            assert_eq!(headers.remove(name).expect(name), value);
        }
        assert!(headers.remove("host").is_some());
        assert!(headers.is_empty(), "{headers:?}");
    }

    #[tokio::test]
    async fn what_a_message_lacks_is_not_sent() {
        let receiver = receiver((StatusCode::OK, vec![], "")).await;
        let mut cx = Context::for_tests(Message::default());
        assert_eq!(deliver(&options(&receiver.url), &mut cx).await, Verdict::Done);
        let (headers, _) = receiver.seen.lock().unwrap().remove(0);
        for name in ["content-type", "content-encoding", "x-onceward-key", "traceparent"] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }

    #[tokio::test]
    async fn the_status_decides() {
        for code in [200, 201, 202, 204, 299] {
            assert_eq!(verdict((status(code), vec![], "")).await, Verdict::Done, "{code}");
        }
        for code in [408, 425, 429, 500, 501, 502, 503, 504, 599] {
            let verdict = verdict((status(code), vec![], "")).await;
            assert!(matches!(verdict, Verdict::Retry(_, None)), "{code}: {verdict:?}");
        }
        for code in [300, 304, 400, 401, 403, 404, 409, 410, 413, 422, 499, 600] {
            let verdict = verdict((status(code), vec![], "")).await;
            assert!(matches!(verdict, Verdict::Reject(_)), "{code}: {verdict:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_the_result_if_it_is_wanted_and_fits() {
        let receiver = receiver((status(201), Vec::new(), "0123456789")).await;
        let mut cx = Context::for_tests(Message::default());
        let client = http_client().expect("a client");
        let target = Http::new(options(&receiver.url), client, true);
        let body = Body("b".into());
        let reply = target.handle(&mut cx, body.clone()).await.expect("done").expect("an answer");
        assert_eq!(&*reply.body, b"0123456789");
        cx.limits =
            std::sync::Arc::new(crate::effects::Limits { result_bytes_max: 9, ..*cx.limits });
        let error = target.handle(&mut cx, body).await.expect_err("too large");
        assert!(format!("{error:?}").contains("TooLarge"), "{error:?}");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        for code in [301, 302, 303, 307, 308] {
            let verdict = verdict((status(code), vec![("location", "/elsewhere")], "")).await;
            assert!(matches!(verdict, Verdict::Reject(_)), "{code}: {verdict:?}");
        }
    }

    #[tokio::test]
    async fn the_error_names_url_status_and_the_start_of_the_answer_escaped() {
        let text = "http target HOOK answered 422 Unprocessable Entity: no \\u{1b}[31mcents";
        let answer = (status(422), vec![], " no \u{1b}[31mcents\n");
        assert_eq!(verdict(answer).await, Verdict::Reject(text.to_owned()));
        let long: &'static str = "x".repeat(100_000).leak();
        let text = format!("http target HOOK answered 400 Bad Request: {}", &long[..200]);
        assert_eq!(verdict((status(400), vec![], long)).await, Verdict::Reject(text));
    }

    #[tokio::test]
    async fn retry_after_is_honoured_in_both_forms_and_bounded() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let later = ("retry-after", "Sun, 06 Nov 1994 08:51:07 GMT");
        let earlier = ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        let seconds = |text| ("retry-after", text);
        for (headers, expected_s) in [
            (vec![seconds("7")], Some(7)),
            (vec![seconds("86400")], Some(3600)),
            (vec![seconds("99999999999999999999999")], Some(3600)),
            (vec![date, later], Some(90)),
            (vec![date, earlier], None),
            (vec![seconds("0")], None),
            (vec![seconds("-1")], None),
            (vec![seconds("soon")], None),
        ] {
            for code in [429, 503] {
                let answered = verdict((status(code), headers.clone(), "")).await;
                let Verdict::Retry(_, after) = answered else {
                    panic!("{answered:?}");
                };
                assert_eq!(after, expected_s.map(Duration::from_secs), "{headers:?}");
            }
        }
        let rejected = verdict((status(400), vec![seconds("7")], "")).await;
        assert!(matches!(rejected, Verdict::Reject(_)), "{rejected:?}");
    }

    #[tokio::test]
    async fn a_refused_connection_is_a_retry_and_shows_no_secret() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let url = format!("http://user:pass@{address}/hook?token=secret");
        let mut options = options(&url);
        options.headers.add("x-api", "secret").expect("ours");
        let verdict = deliver(&options, &mut Context::for_tests(Message::default())).await;
        let Verdict::Retry(text, None) = verdict else {
            panic!("{verdict:?}");
        };
        let start = format!("http target http://{address}/hook did not answer: ");
        assert!(text.starts_with(&start), "{text}");
        assert!(text.contains("refused") && !text.contains("secret"), "{text}");
        assert!(!text.contains("pass"), "{text}");
        let shown = format!("{options:?}");
        assert!(!shown.contains("pass") && !shown.contains("secret"), "{shown}");
    }

    #[tokio::test]
    async fn a_connection_cut_before_the_answer_is_a_retry() {
        let (listener, url) = listener().await;
        let options = options(&url);
        let mut cx = Context::for_tests(Message::default());
        let (verdict, ()) = tokio::join!(deliver(&options, &mut cx), async {
            drop(listener.accept().await.expect("a connection"));
            drop(listener);
        });
        assert!(matches!(verdict, Verdict::Retry(_, None)), "{verdict:?}");
    }

    #[tokio::test]
    async fn a_connection_is_used_again_also_if_the_body_comes_after_the_status() {
        let (listener, url) = listener().await;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4096];
            for answer in ["200 OK", "503 Busy", "200 OK"] {
                assert_ne!(connection.read(&mut request).await.expect("a request"), 0);
                let head = format!("HTTP/1.1 {answer}\r\ncontent-length: 4\r\n\r\n");
                connection.write_all(head.as_bytes()).await.expect("open");
                tokio::time::sleep(Duration::from_millis(20)).await;
                connection.write_all(b"fine").await.expect("open");
            }
        });
        let target = target(&options(&url));
        let mut cx = Context::for_tests(Message::default());
        for done in [true, false, true] {
            let handled = target.handle(&mut cx, Body(Bytes::new()));
            let handled = tokio::time::timeout(Duration::from_secs(10), handled).await;
            assert_eq!(handled.expect("no second connection").is_ok(), done);
        }
        assert!(server.join_next().await.expect("the server").is_ok());
    }

    #[tokio::test]
    async fn a_body_that_never_ends_does_not_hold_up_the_verdict() {
        let (listener, url) = listener().await;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut connection, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4096];
            assert_ne!(connection.read(&mut request).await.expect("a request"), 0);
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
            connection.write_all(head).await.expect("open");
            std::future::pending::<()>().await;
        });
        let options = options(&url);
        let mut cx = Context::for_tests(Message::default());
        let handled = deliver(&options, &mut cx);
        let handled = tokio::time::timeout(Duration::from_secs(10), handled).await;
        assert_eq!(handled, Ok(Verdict::Done));
    }

    #[tokio::test]
    async fn a_property_that_cannot_be_a_header_is_rejected() {
        let mut cx = Context::for_tests(Message {
            properties: Properties {
                content_type: Some("text/plain\r\nx-evil: 1".to_owned()),
                ..Properties::default()
            },
            ..Message::default()
        });
        let verdict = deliver(&options("http://127.0.0.1:1/"), &mut cx).await;
        assert!(matches!(verdict, Verdict::Reject(_)), "{verdict:?}");
    }

    #[test]
    fn only_urls_and_headers_that_can_be_sent_are_options() {
        assert!(HttpUrl::parse("http://h/").is_ok());
        assert_eq!(HttpUrl::parse("https://h/").is_ok(), cfg!(feature = "tls"));
        for bad in ["ftp://h/", "/hook"] {
            assert!(HttpUrl::parse(bad).is_err(), "{bad}");
        }
        let mut headers = HttpHeaders::default();
        assert_eq!(headers.add("x-api", "a"), Ok(()));
        for (name, value) in [
            ("X-Api", "again"),
            ("x api", "a"),
            ("x-other", "a\nb"),
            ("Idempotency-Key", "a"),
            ("X-Onceward-What-Comes", "a"),
        ] {
            assert!(headers.add(name, value).is_err(), "{name}: {value:?}");
        }
    }
}
