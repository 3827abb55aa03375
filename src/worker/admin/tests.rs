//! Goal: the endpoint answers what it should, to whom it should, and nothing makes it do more or stop.
//!
//! Method: a server on a free port, asked by a client and by raw bytes.

use reqwest::{Client, Method};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::*;
use crate::fuzz::fuzz;

struct Fixture {
    address: std::net::SocketAddr,
    health: Health,
    client: Client,
    shutdown: oneshot::Sender<()>,
    server: JoinSet<io::Result<()>>,
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn fixture() -> Fixture {
    fixture_with(None).await
}

async fn fixture_with(token: Option<&'static str>) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (shutdown, asked) = oneshot::channel();
    let recorder = metrics::builder().expect("legal buckets").build_recorder();
    ::metrics::with_local_recorder(&recorder, || {
        ::metrics::counter!("onceward_test_total", "queue" => "orders").increment(7);
    });
    let health = Health::default();
    let mut server = JoinSet::new();
    let (served_health, handle) = (health.clone(), recorder.handle());
    server.spawn(async move {
        let token = token.map(Secret::new);
        serve(listener, served_health, handle, token.as_ref(), async {
            // Dropped or sent: either way the test is over.
            let _ = asked.await;
        })
        .await
    });
    let client = crate::worker::deliver::http_client().expect("a client");
    Fixture { address, health, client, shutdown, server }
}

impl Fixture {
    async fn ask(&self, method: Method, path: &str, accept: &str) -> (u16, String, String) {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.request(method, url).header("accept", accept);
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type");
        let content_type = content_type.map_or("", |value| value.to_str().expect("text"));
        let content_type = content_type.to_owned();
        (status, content_type, response.text().await.expect("a body"))
    }

    /// Sends these bytes on a connection of their own, and reads what comes back until the other side ends it.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("listening");
        // It may have answered and gone before it has read all.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // A reset after the answer is an end too.
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it ends");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn status(&self, head: &str) -> String {
        let answer = self.raw(format!("{head}\r\n\r\n").as_bytes()).await;
        answer.split(' ').nth(1).unwrap_or("none").to_owned()
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        self.ask(Method::GET, path, "*/*").await
    }
}

#[tokio::test]
async fn metrics_are_rendered_for_prometheus() {
    let (status, content_type, body) = fixture().await.get("/metrics").await;
    assert_eq!((status, &*content_type), (200, "text/plain; version=0.0.4"));
    assert!(body.contains("onceward_test_total{queue=\"orders\"} 7\n"), "{body}");
}

#[tokio::test]
async fn a_worker_that_is_not_ready_is_alive_and_says_why() {
    let fixture = fixture().await;
    let plain = "text/plain; charset=utf-8".to_owned();
    assert_eq!(fixture.get("/readyz").await, (200, plain.clone(), "ready".to_owned()));
    fixture.health.fault("queue orders", "connecting\nagain");
    fixture.health.fault("store", "opening");
    let reasons = "queue orders: connecting again\nstore: opening".to_owned();
    assert_eq!(fixture.get("/readyz").await, (503, plain.clone(), reasons));
    let (status, content_type, body) =
        fixture.ask(Method::GET, "/readyz", "text/html, application/json;q=0.9").await;
    assert_eq!((status, &*content_type), (503, "application/json"));
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["ready"], false);
    assert_eq!(body["faults"][1]["part"], "store");
    assert_eq!(body["faults"][1]["reason"], "opening");
    assert_eq!(fixture.get("/livez").await, (200, plain, "ok".to_owned()));
}

#[tokio::test]
async fn nothing_but_get_and_head_of_known_paths() {
    let fixture = fixture().await;
    for path in ["/", "/api/v1", "/metrics/", "/livez/x"] {
        assert_eq!(fixture.get(path).await.0, 404, "{path}");
    }
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(fixture.ask(Method::POST, path, "*/*").await.0, 405, "{path}");
        let (status, _, body) = fixture.ask(Method::HEAD, path, "*/*").await;
        assert_eq!((status, &*body), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_does_not_hold_up_the_shutdown() {
    let mut fixture = fixture().await;
    let mut slow = TcpStream::connect(fixture.address).await.expect("listening");
    slow.write_all(b"GET /livez HT").await.expect("open");
    // Connections are accepted in order, so the slow one is accepted too once this is answered.
    assert_eq!(fixture.get("/livez").await.0, 200);
    assert!(fixture.shutdown.send(()).is_ok());
    let ended = tokio::time::timeout(Duration::from_secs(10), fixture.server.join_next()).await;
    assert!(matches!(ended, Ok(Some(Ok(Ok(()))))), "{ended:?}");
}

#[tokio::test]
async fn with_a_token_only_liveness_is_told_without_it() {
    let fixture = fixture_with(Some(TOKEN)).await;
    for path in ["/metrics", "/readyz", "/nothing"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: example.org");
        assert_eq!(fixture.status(&head).await, "401", "{path}");
        for wrong in [
            format!("Bearer {TOKEN}x"),
            format!("Bearer {}", &TOKEN[1..]),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            format!("Basic {TOKEN}"),
            TOKEN.to_owned(),
            format!("Bearer {TOKEN}\r\nauthorization: Bearer {TOKEN}"),
        ] {
            let head = format!("{head}\r\nauthorization: {wrong}");
            assert_eq!(fixture.status(&head).await, "401", "{path} {wrong}");
        }
        let head = format!("{head}\r\nconnection: close\r\nauthorization: bearer {TOKEN}");
        let expected = if path == "/nothing" { "404" } else { "200" };
        assert_eq!(fixture.status(&head).await, expected, "{path}");
    }
    let live = fixture.raw(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("\r\n\r\nok"), "{live}");
    let refused = fixture.raw(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(refused.contains("www-authenticate: Bearer"), "{refused}");
    assert!(!refused.contains("onceward_"), "{refused}");
}

/// A page of another site can have its name lead here, and its requests carry that name.
#[tokio::test]
async fn without_a_token_only_requests_for_this_machine_are_answered() {
    let fixture = fixture().await;
    let port = fixture.address.port();
    for (request, status) in [
        (format!("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:{port}"), "200"),
        ("GET /metrics HTTP/1.1\r\nhost: LocalHost".to_owned(), "200"),
        ("GET /metrics HTTP/1.1\r\nhost: [::1]:1".to_owned(), "200"),
        ("GET /metrics HTTP/1.0".to_owned(), "200"),
        ("GET http://localhost/metrics HTTP/1.1\r\nhost: localhost".to_owned(), "200"),
        (format!("GET /metrics HTTP/1.1\r\nhost: evil.example:{port}"), "421"),
        ("GET /livez HTTP/1.1\r\nhost: evil.example".to_owned(), "421"),
        ("GET /metrics HTTP/1.1\r\nhost: localhost.evil.example".to_owned(), "421"),
        ("GET /metrics HTTP/1.1\r\nhost: localhost\r\nhost: evil.example".to_owned(), "421"),
        ("GET http://evil.example/metrics HTTP/1.1\r\nhost: localhost".to_owned(), "421"),
        ("GET /metrics HTTP/1.1\r\nhost: ".to_owned(), "421"),
        ("GET /metrics HTTP/1.1".to_owned(), "421"),
    ] {
        let head = format!("{request}\r\nconnection: close");
        assert_eq!(fixture.status(&head).await, status, "{request}");
    }
}

#[tokio::test]
async fn a_request_that_brings_too_much_is_refused() {
    let fixture = fixture().await;
    let long = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}", "a".repeat(20_000));
    assert_eq!(fixture.status(&long).await, "431");
    let many = format!("GET /livez HTTP/1.1\r\nhost: localhost{}", "\r\nx: a".repeat(65));
    assert_eq!(fixture.status(&many).await, "431");
    let body = "GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 65537";
    assert_eq!(fixture.status(body).await, "413");
}

#[tokio::test]
async fn no_answer_sets_a_cookie_or_may_be_kept() {
    let fixture = fixture().await;
    for path in ["/metrics", "/livez", "/readyz", "/nothing"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = fixture.raw(head.as_bytes()).await.to_ascii_lowercase();
        assert!(!answer.contains("set-cookie"), "{answer}");
        assert!(answer.contains("cache-control: no-store"), "{answer}");
        assert!(!answer.contains("access-control"), "{answer}");
    }
}

/// More than there are places: those beyond wait until one is free.
#[tokio::test]
async fn connections_that_say_nothing_hold_up_nobody_for_good() {
    let fixture = fixture().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(fixture.address).await.expect("listening"));
    }
    let started = tokio::time::Instant::now();
    let head = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close";
    assert_eq!(fixture.status(head).await, "200");
    assert!(started.elapsed() > Duration::from_secs(5), "there was a place at once");
}

#[test]
fn any_bytes_are_answered_or_refused_and_the_next_request_is_answered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("threads");
    let fixtures = async { (fixture().await, fixture_with(Some(TOKEN)).await) };
    let (open, closed) = runtime.block_on(fixtures);
    fuzz("admin", 1_000, |bytes| {
        runtime.block_on(async {
            let (without, with) = tokio::join!(open.raw(bytes), closed.raw(bytes));
            assert!(without.is_empty() || without.starts_with("HTTP/1."), "{without}");
            assert!(!with.contains("onceward_"), "without the token: {with}");
        });
    });
    runtime.block_on(async { assert_eq!(open.get("/livez").await.0, 200) });
}
