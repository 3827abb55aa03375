//! The target against receivers that answer as they are told, over real connections on this machine.

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
        let headers = headers
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
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
    cx.limits.result_bytes_max = 9;
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
