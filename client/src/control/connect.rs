//! A channel over a Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service, service_fn};

use super::ConnectError;

/// Connects now, so that a socket nobody serves is an error here and not in the first call; reconnects by itself
/// when the agent was restarted.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, ConnectError> {
    endpoint().connect_with_connector(dial(socket)).await.map_err(|error| match io_error(&error) {
        Some(io) => ConnectError::from_io(socket.to_owned(), io),
        None => ConnectError::Other { socket: PathBuf::from(socket), cause: error.into() },
    })
}

/// Connects when it is used. Each call tries once, so that it fails at once while no agent is there.
pub(crate) fn lazy(socket: &Path) -> Channel {
    endpoint().connect_with_connector_lazy(dial(socket))
}

/// gRPC wants an authority; nobody resolves this one.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://weightd.local")
}

fn dial(
    socket: &Path,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + use<> {
    let socket = socket.to_owned();
    service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}

/// The system's error behind a transport error.
fn io_error(error: &tonic::transport::Error) -> Option<io::Error> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(match io.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(io.kind(), io.to_string()),
            });
        }
        cause = error.source();
    }
    None
}
