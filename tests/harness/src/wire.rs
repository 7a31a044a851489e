//! A wire to a server that counts what comes through it, and breaks when it is told to.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Bytes that pass at once.
const AT_ONCE: usize = 64 << 10;

/// A listening wire; gone when dropped.
#[derive(Debug)]
pub struct Wire {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: String,
    received: AtomicU64,
    breaks: Mutex<Breaks>,
}

/// What is left to be broken: so many connections, each when so many bytes of its client have passed.
#[derive(Debug, Default)]
struct Breaks {
    times: u32,
    after: u64,
}

impl Wire {
    /// Starts one to `http://host:port`.
    ///
    /// # Errors
    /// When that is no such address, or no port can be bound.
    pub async fn start(server: &str) -> Result<Self> {
        let server = server.strip_prefix("http://").context("a wire goes to http://host:port")?.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared { server, received: AtomicU64::new(0), breaks: Mutex::default() });
        let carried = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, Arc::clone(&carried)));
            }
        });
        Ok(Self { url, shared, task })
    }

    /// What clients are given in place of the server's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Bytes that clients were sent, headers and what they never read included.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Breaks so many connections, each when `after` bytes of its client have passed; the server has those.
    pub fn break_uploads(&self, times: u32, after: u64) {
        *self.shared.breaks() = Breaks { times, after };
    }

    /// How many of them are left.
    pub fn breaks_left(&self) -> u32 {
        self.shared.breaks().times
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn breaks(&self) -> std::sync::MutexGuard<'_, Breaks> {
        self.breaks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection breaks now.
    fn is_broken(&self, passed: u64) -> bool {
        let mut breaks = self.breaks();
        let is_broken = breaks.times > 0 && passed >= breaks.after;
        breaks.times -= u32::from(is_broken);
        is_broken
    }
}

/// Until either side ends; a client that is killed ends in the middle of anything.
async fn carry(mut client: TcpStream, shared: Arc<Shared>) {
    let Ok(mut server) = TcpStream::connect(&shared.server).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let questions = async {
        let (mut buffer, mut passed) = (vec![0; AT_ONCE], 0);
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            passed += length as u64;
            if to_server.write_all(&buffer[..length]).await.is_err() || shared.is_broken(passed) {
                break;
            }
        }
    };
    let answers = async {
        let mut buffer = vec![0; AT_ONCE];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            if to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
            shared.received.fetch_add(length as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = questions => {}
        () = answers => {}
    }
}
