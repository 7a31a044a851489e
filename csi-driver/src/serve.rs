//! gRPC over the connections that a socket passes on.

use std::{io, time::Duration};

use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

use crate::calls::Calls;

/// How long connections may take to close once no call is in flight: a client that is stopped would never close its own.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until the end is asked for, then lets calls in flight end.
pub(crate) async fn serve(router: Router, connections: mpsc::Receiver<io::Result<UnixStream>>, calls: Calls) {
    let stopping = calls.stopping.clone();
    let incoming = ReceiverStream::new(connections);
    let served = router.serve_with_incoming_shutdown(incoming, stopping.cancelled_owned());
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "a socket is no longer served");
        },
        () = drained(&calls) => {}
    }
}

async fn drained(calls: &Calls) {
    calls.stopping.cancelled().await;
    calls.running.close();
    calls.running.wait().await;
    tokio::time::sleep(LINGER).await;
}
