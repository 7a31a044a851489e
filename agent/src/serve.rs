//! gRPC over whatever carries bytes: the Unix socket, or a pipe within the process.

use std::{io, sync::Mutex};

use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, net::UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Channel, Endpoint, Server, Uri},
};
use tower::service_fn;

/// Bytes that a pipe within the process holds.
const PIPE_BYTES: usize = 256 << 10;

/// Serves connections of the socket until `stopping` is cancelled, then lets calls in flight end.
pub(crate) async fn socket(listener: UnixListener, routes: Routes, stopping: CancellationToken) {
    let incoming = UnixListenerStream::new(listener);
    let served =
        Server::builder().add_routes(routes).serve_with_incoming_shutdown(incoming, stopping.cancelled());
    if let Err(error) = served.await {
        tracing::error!(%error, "the socket is no longer served");
    }
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
