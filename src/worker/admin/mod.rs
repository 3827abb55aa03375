//! The admin server: metrics for Prometheus, liveness and readiness for whoever starts and stops the worker.
//!
//! Owns the routes and the upkeep of the metrics recorder. Reads only: no route changes anything, and none needs the
//! store or the broker to answer. Without authentication: it belongs on a loopback or private address.

mod metrics;

use std::future::{Future, pending};
use std::io;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

pub(crate) use self::metrics::install_recorder;
use crate::{Health, Readiness};

/// How often the recorder moves what histograms collected into their buckets; unmoved it grows without bound.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// How long open requests are waited for after the shutdown: nobody's message hangs on them.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: PrometheusHandle,
}

/// Answers on `listener` until `shutdown` is done, and at the most a second longer.
///
/// # Errors
///
/// If the listener fails for good; errors of single connections are not.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    health: Health,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (closing, mut closed) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        closing.send_replace(true);
    };
    let upkeep = metrics.clone();
    let server = axum::serve(listener, router(Admin { health, metrics }));
    // Dropping any of these loses nothing: requests that are cut off may be made again.
    tokio::select! {
        served = server.with_graceful_shutdown(shutdown) => served,
        never = keep_up(&upkeep) => never,
        () = async {
            // An error means that the server is gone, which the first branch reports.
            if closed.wait_for(|closing| *closing).await.is_err() {
                pending::<()>().await;
            }
            tokio::time::sleep(CLOSE_WAIT).await;
        } => Ok(()),
    }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(show_readiness))
        .with_state(admin)
}

async fn keep_up<T>(metrics: &PrometheusHandle) -> T {
    let mut period = tokio::time::interval(UPKEEP_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        metrics.run_upkeep();
    }
}

async fn show_metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, admin.metrics.render())
}

async fn show_readiness(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let readiness = admin.health.readiness();
    let status =
        if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if accepts_json(&headers) {
        (status, Json(json(&readiness))).into_response()
    } else {
        (status, text(&readiness)).into_response()
    }
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|mime| mime.trim().eq_ignore_ascii_case("application/json"))
}

fn json(readiness: &Readiness) -> serde_json::Value {
    let faults = readiness.faults.iter();
    let faults = faults.map(|(part, reason)| serde_json::json!({ "part": part, "reason": reason }));
    serde_json::json!({ "ready": readiness.is_ready(), "faults": faults.collect::<Vec<_>>() })
}

/// One reason a line; a line feed in a reason does not make it two.
fn text(readiness: &Readiness) -> String {
    if readiness.is_ready() {
        return "ready".to_owned();
    }
    let lines = readiness.faults.iter();
    let lines = lines.map(|(part, reason)| format!("{part}: {reason}").replace(['\r', '\n'], " "));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use reqwest::{Client, Method};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    use super::*;

    struct Fixture {
        address: std::net::SocketAddr,
        health: Health,
        client: Client,
        shutdown: oneshot::Sender<()>,
        server: JoinSet<io::Result<()>>,
    }

    async fn fixture() -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (shutdown, asked) = oneshot::channel();
        let recorder = metrics::builder().expect("legal buckets").build_recorder();
        ::metrics::with_local_recorder(&recorder, || {
            ::metrics::counter!("onceward_test_total", "queue" => "orders").increment(7);
        });
        let health = Health::default();
        let served = serve(listener, health.clone(), recorder.handle(), async {
            // Dropped or sent: either way the test is over.
            let _ = asked.await;
        });
        let mut server = JoinSet::new();
        server.spawn(served);
        let client = Client::builder().no_proxy().build().expect("a client");
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
}
