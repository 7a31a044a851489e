//! `/metrics`, `/live` and `/ready` over HTTP.

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
use weightd_access::Access;
use weightd_store::Store;

use crate::{StartError, serve::LINGER};

/// What is told of.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) store: Store,
    pub(crate) access: Access,
    /// Cancelled when the agent stops.
    pub(crate) stopping: CancellationToken,
}

/// Takes the port.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|cause| StartError::Metrics { address, cause })
}

/// Serves until the agent stops. The port is taken after the store is open, so whoever is answered at all finds the agent
/// ready, until it stops.
pub(crate) async fn serve(listener: TcpListener, shared: Shared) {
    let stopping = shared.stopping.clone();
    let served =
        axum::serve(listener, router(shared)).with_graceful_shutdown(stopping.clone().cancelled_owned());
    // A client that connects and asks nothing would be waited for.
    let lingered = async {
        stopping.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "metrics and health are no longer served");
        },
        () = lingered => {}
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    shared.store.refresh_metrics().await;
    shared.access.refresh_metrics();
    weightd_daemon::metrics::page(&shared.registry)
}

async fn ready(State(shared): State<Shared>) -> Response {
    if shared.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    "ready\n".into_response()
}
