//! The routes of the admin port, and the sampler that fills the history.

use crate::Readiness;
use crate::metrics_page::{MAIN_SERIES, install_recorder, sum};
use ashlar_host::{Greeted, Host, HttpPort, Listener, PaceLimits, TaskKind, serve_http};
use ashlar_map::History;
use ashlar_types::{ClusterId, NodeId, Role};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const SAMPLE_EVERY: Duration = Duration::from_secs(60);
const PORT: HttpPort = HttpPort {
    name: "admin",
    connections_max: 128,
    handshake: Duration::from_secs(10),
    head: Duration::from_secs(10),
    buffer_bytes: 64 * 1024,
    writes: Some(PaceLimits {
        stall: Duration::from_secs(10),
        grace: Duration::from_secs(10),
        rate_min: 1024,
    }),
    drain: Duration::from_secs(1),
    http2: None,
};
const EVENTS_DEFAULT: usize = 100;
const EVENTS_MAX: usize = 1000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Who the node is.
#[derive(Debug, Clone, Serialize)]
pub struct NodeFacts {
    /// Its cluster.
    #[serde(serialize_with = "as_text")]
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// What fails together with it.
    pub zone: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// How often it was booted.
    pub incarnation: u64,
}

fn as_text<S: serde::Serializer>(cluster: &ClusterId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cluster)
}

/// What the admin port shows.
#[derive(Clone)]
pub struct AdminState {
    host: Host,
    history: History,
    metrics: PrometheusHandle,
    readiness: Readiness,
    facts: NodeFacts,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminState({})", self.facts.node)
    }
}

impl AdminState {
    /// Opens the history in `dir`. One that is damaged is thrown away: it is nobody's only copy.
    pub fn new(
        host: &Host,
        dir: &Path,
        readiness: Readiness,
        facts: NodeFacts,
    ) -> Result<Self, ashlar_catalog::MapError> {
        let history = match History::open(dir) {
            Ok(history) => history,
            Err(error) => {
                tracing::warn!(%error, "the node's history is damaged and begins anew");
                let removed = host.disk.remove_dir_all(dir);
                removed.map_err(|error| ashlar_catalog::MapError(format!("history: {error}")))?;
                History::open(dir)?
            }
        };
        history.event(
            host.clock.wall_ms(),
            "start",
            &format!("incarnation {}", facts.incarnation),
        )?;
        Ok(Self { host: host.clone(), history, metrics: install_recorder(), readiness, facts })
    }

    fn sample(&self) {
        let (page, now) = (self.metrics.render(), self.host.clock.wall_ms());
        for name in MAIN_SERIES {
            let kept =
                sum(&page, name).map_or(Ok(()), |value| self.history.record(name, now, value));
            if let Err(error) = kept {
                tracing::warn!(%error, "a sample could not be kept");
            }
        }
    }
}

/// Serves until shutdown is requested.
pub async fn serve(host: Host, listener: Box<dyn Listener>, state: AdminState) {
    let sampler =
        host.tasks.spawn(TaskKind::Background("history"), Box::pin(sample_for_ever(state.clone())));
    let router = router(state);
    let greet = move |stream| {
        let service = TowerToHyperService::new(router.clone());
        let greeted: BoxFuture<'static, _> =
            Box::pin(async move { Ok(Greeted { stream, service, life: None }) });
        greeted
    };
    serve_http(host, listener, PORT, greet).await;
    sampler.join().await;
}

async fn sample_for_ever(state: AdminState) {
    loop {
        state.sample();
        tokio::select! {
            biased;
            () = state.host.shutdown.requested() => return,
            () = state.host.clock.sleep(SAMPLE_EVERY) => {}
        }
    }
}

fn router(state: AdminState) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/api/v1/node", get(node))
        .route("/api/v1/history", get(history))
        .route("/api/v1/events", get(events))
        .with_state(state)
}

async fn ready(State(state): State<AdminState>) -> Response {
    let (ready, reasons) = (state.readiness.is_ready(), state.readiness.reasons());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let remarks = state.readiness.remarks();
    (status, Json(json!({ "ready": ready, "reasons": reasons, "remarks": remarks })))
        .into_response()
}

async fn metrics_page(State(state): State<AdminState>) -> Response {
    ([("content-type", "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}

async fn node(State(state): State<AdminState>) -> Json<NodeFacts> {
    Json(state.facts)
}

#[derive(Deserialize)]
struct HistoryWish {
    series: String,
    from_ms: Option<u64>,
    to_ms: Option<u64>,
}

async fn history(State(state): State<AdminState>, Query(wish): Query<HistoryWish>) -> Response {
    if !MAIN_SERIES.contains(&wish.series.as_str()) {
        let known = json!({ "error": "no such series", "series": MAIN_SERIES });
        return (StatusCode::NOT_FOUND, Json(known)).into_response();
    }
    let to_ms = wish.to_ms.unwrap_or_else(|| state.host.clock.wall_ms());
    let from_ms = wish.from_ms.unwrap_or_else(|| to_ms.saturating_sub(DAY_MS));
    match state.history.series(&wish.series, from_ms, to_ms) {
        Ok(points) => {
            let points: Vec<_> =
                points.iter().map(|(minute, value)| json!([minute * 60_000, value])).collect();
            Json(json!({ "series": wish.series, "points": points })).into_response()
        }
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
struct EventsWish {
    limit: Option<usize>,
}

async fn events(State(state): State<AdminState>, Query(wish): Query<EventsWish>) -> Response {
    match state.history.events(wish.limit.unwrap_or(EVENTS_DEFAULT).min(EVENTS_MAX)) {
        Ok(events) => {
            let told = events.iter().map(
                |event| json!({ "at_ms": event.at_ms, "kind": event.kind, "text": event.text }),
            );
            Json(told.collect::<Vec<_>>()).into_response()
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &ashlar_catalog::MapError) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": error.to_string() }))).into_response()
}
