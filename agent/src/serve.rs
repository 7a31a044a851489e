//! gRPC over whatever carries bytes: the Unix socket, or a pipe within the process.

use std::{io, sync::Mutex, time::Duration};

use axum::{
    extract::Request,
    middleware::{self, Next},
};
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, net::UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint, Server, Uri},
};
use tower::service_fn;

/// Bytes that a pipe within the process holds.
const PIPE_BYTES: usize = 256 << 10;

/// How long connections may take to close once no call is in flight. Clients that run close theirs at once; one that
/// is stopped, or has never said a word, would not close its connection at all.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Serves connections of the socket until `stopping` is cancelled, then lets calls in flight end.
pub(crate) async fn socket(listener: UnixListener, routes: Routes, stopping: CancellationToken) {
    let incoming = UnixListenerStream::new(listener);
    let (routes, calls) = counted(routes);
    let served =
        Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, stopping.cancelled());
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "the socket is no longer served");
        },
        () = drained(&calls, &stopping) => tracing::info!("left clients that did not close their connections"),
    }
}

/// The routes, and a tracker with every call that has no answer yet. The tasks behind a streamed answer end by
/// themselves when the agent stops.
fn counted(routes: Routes) -> (Routes, TaskTracker) {
    let calls = TaskTracker::new();
    let counter = calls.clone();
    let count =
        middleware::from_fn(move |request: Request, next: Next| counter.track_future(next.run(request)));
    (routes.into_axum_router().layer(count).into(), calls)
}

/// Waits until the agent stops, no call is in flight, and clients had time to read their answers and to leave.
async fn drained(calls: &TaskTracker, stopping: &CancellationToken) {
    stopping.cancelled().await;
    calls.close();
    calls.wait().await;
    tokio::time::sleep(LINGER).await;
}

/// Serves one pipe until `stopping` is cancelled, then lets calls in flight end.
pub(crate) async fn pipe(far: DuplexStream, routes: Routes, stopping: CancellationToken) {
    // When connections end, the server takes it for the end of its work: none comes after this one, but it stays.
    let incoming = stream::once(async { Ok::<_, io::Error>(far) }).chain(stream::pending());
    let served =
        Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, stopping.cancelled());
    if let Err(error) = served.await {
        tracing::error!(%error, "the connection within the process is no longer served");
    }
}

/// Both ends of a pipe within the process: a client's channel, and what to serve.
pub(crate) fn channel() -> (Channel, DuplexStream) {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let near = Mutex::new(Some(near));
    let dial = service_fn(move |_: Uri| {
        let near = near.lock().ok().and_then(|mut near| near.take());
        async move {
            near.map(TokioIo::new).ok_or_else(|| io::Error::other("the agent in this process has ended"))
        }
    });
    (Endpoint::from_static("http://weightd.local").connect_with_connector_lazy(dial), far)
}
