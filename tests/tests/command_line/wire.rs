//! A wire to a server that counts what comes through it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use weightd_harness::Unready;

/// A listening wire; gone when dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    url: String,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Wire {
    /// Starts one to `http://host:port`.
    pub(crate) async fn start(server: &str) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), server)
    }

    /// The same at a port that nobody has to name: the client library leaves it out of what it calls the host, and the emulator
    /// says by that where an upload goes on.
    pub(crate) async fn start_for_uploads(server: &str) -> Result<Self, Unready> {
        let listener = TcpListener::bind("127.80.0.1:80").await;
        let refused = |error: std::io::Error| Unready::NotAllowed {
            what: "port 80 of a loopback address".to_owned(),
            why: error.to_string(),
        };
        Ok(Self::at(listener.map_err(refused)?, server))
    }

    fn at(listener: TcpListener, server: &str) -> Self {
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), Arc::clone(&counter)));
            }
        });
        Self { url, received, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Bytes that clients were sent, headers and what they never read included.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until either side ends; a client that is killed ends in the middle of anything.
async fn carry(mut client: TcpStream, server: String, received: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            if to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
            received.fetch_add(length as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
    }
}
