//! A channel over a Unix socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::ConnectError;

/// Connects now, so that a socket nobody serves is an error here and not in the first call; reconnects by itself
/// when the agent was restarted.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, ConnectError> {
    let path = socket.to_owned();
    let dial = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // gRPC wants an authority; nobody resolves this one.
    Endpoint::from_static("http://weightd.local").connect_with_connector(dial).await.map_err(|error| {
        match io_error(&error) {
            Some(io) => ConnectError::from_io(socket.to_owned(), io),
            None => ConnectError::Other { socket: PathBuf::from(socket), cause: error.into() },
        }
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
