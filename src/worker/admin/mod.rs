//! The admin server: metrics for Prometheus, liveness and readiness for whoever starts and stops the worker.
//!
//! Owns the routes and the upkeep of the metrics recorder. Reads only: no route changes anything, none needs the store
//! or the broker to answer, and none shows a message. Who may ask is `guard.rs`, how long and how much
//! `connections.rs`.

mod connections;
mod guard;
mod metrics;

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::MissedTickBehavior;

use self::guard::Guard;
pub(crate) use self::metrics::install_recorder;
use crate::worker::config::Secret;
use crate::{Health, Readiness};

/// How often the recorder moves what histograms collected into their buckets; unmoved it grows without bound.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: PrometheusHandle,
}

/// Answers on `listener` until `shutdown` is done, and at the most a second longer; with a token, those who show it.
///
/// # Errors
///
/// If the listener fails for good; errors of single connections are not.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    health: Health,
    metrics: PrometheusHandle,
    token: Option<&Secret>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let upkeep = metrics.clone();
    let router = guard::guarded(router(Admin { health, metrics }), Guard::new(token));
    // Dropping any of these loses nothing: requests that are cut off may be made again.
    tokio::select! {
        served = connections::serve(listener, router, shutdown) => served,
        never = keep_up(&upkeep) => never,
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
mod tests;
