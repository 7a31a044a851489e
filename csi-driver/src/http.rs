//! `/live`, `/ready` and `/metrics` over HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{StartError, agent::Agent, metrics::Metrics, registration::Registered};

/// What is told.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) agent: Agent,
    /// Nothing when kubelet is not told of the driver.
    pub(crate) registered: Option<Registered>,
    pub(crate) stopping: CancellationToken,
}

/// Takes the port.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Http { address, cause })
}

/// Serves until the process ends: whoever asks while it ends hears that it is not ready.
pub(crate) async fn serve(listener: TcpListener, health: Health) {
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    health.metrics.agent_reachable.set(health.agent.reach().await.is_ok().into());
    weightd_daemon::metrics::page(&health.registry)
}

async fn ready(State(health): State<Health>) -> Response {
    let why = if health.stopping.is_cancelled() {
        "stopping".to_owned()
    } else if health.registered.as_ref().is_some_and(|registered| !registered.is_so()) {
        "kubelet has not registered the driver yet".to_owned()
    } else if let Err(error) = health.agent.reach().await {
        error.to_string()
    } else {
        return "ready\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}
