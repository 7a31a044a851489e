//! Cloud Storage by its two APIs, from memory, in this process or in one of its own.
//!
//! The emulator that tests use sends 2 GB/s, which a benchmark would measure in the place of its clients. This one sends
//! what the kernel takes, or as slowly as a real bucket does: see [`Shape`]. It knows what clients ask that read and write
//! models: objects with generations, preconditions, ranges, listings, uploads of every kind; not what is said of
//! objects without writing them, copies, or who may read what.

mod answer;
mod compose;
mod content;
mod listing;
mod multipart;
mod object;
mod options;
mod place;
mod process;
mod refusal;
mod request;
mod serving;
mod session;
mod shape;
mod store;
mod upload;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::spawn_blocking};

pub use options::{BucketOptions, Placed};
pub use process::BucketProcess;
pub use shape::Shape;

use self::{
    answer::Shared,
    content::Content,
    object::Described,
    request::{Conditions, Named},
    serving::Accepting,
    session::Sessions,
    store::Store,
};
use crate::{RequestLog, Upload, Uploaded, tls::Tls};

/// How connections share the way to their clients.
const CONGESTION: &str = "reno";

/// A running server, ended with its connections when dropped.
///
/// What [`FakeGcs`](crate::FakeGcs) has too is called and shaped the same, so that a test can have either.
#[derive(Debug)]
pub struct BucketServer {
    shared: Arc<Shared>,
    tls: Option<Tls>,
    _accepting: Accepting,
    _certificates: Option<TempDir>,
}

impl BucketServer {
    /// Starts one without buckets.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        Self::start_with(BucketOptions::default()).await
    }

    /// Starts one that speaks TLS.
    ///
    /// # Errors
    /// When no port can be bound, or no certificate made.
    pub async fn start_tls() -> Result<Self> {
        let certificates = tempfile::tempdir()?;
        let options = BucketOptions { tls: Some(certificates.path().to_owned()), ..BucketOptions::default() };
        let server = Self::start_with(options).await?;
        Ok(Self { _certificates: Some(certificates), ..server })
    }

    /// Starts one. Whoever connects before everything is in its place waits.
    ///
    /// # Errors
    /// When the port cannot be bound, no certificate made, or a directory not read.
    pub async fn start_with(options: BucketOptions) -> Result<Self> {
        let tls = options.tls.as_deref().map(Tls::create).transpose()?;
        let acceptor = tls.as_ref().map(serving::acceptor).transpose()?;
        let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let address = SocketAddr::new(address, options.port.unwrap_or(0));
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("listening on {address}"))?;
        // What fits a wide network (BBR) paces its connections, which starves some of many on loopback and costs all of them.
        rustix::net::sockopt::set_tcp_congestion(&listener, CONGESTION)
            .with_context(|| format!("choosing {CONGESTION} for connections"))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            store: Store::default(),
            sessions: Sessions::default(),
            endpoint: format!("{scheme}://{}", listener.local_addr()?),
            first_byte: options.shape.first_byte,
            log: options.log.then(RequestLog::default),
            requests: AtomicU64::new(0),
            sent: Arc::default(),
        });
        let filled = Arc::clone(&shared);
        let filling = spawn_blocking(move || {
            options.place.iter().try_for_each(|placed| {
                place::place(&filled.store, &placed.bucket, &placed.prefix, &placed.directory)
            })
        });
        filling.await??;
        let accepting = Accepting::start(listener, acceptor, options.shape, Arc::clone(&shared));
        Ok(Self { shared, tls, _accepting: accepting, _certificates: None })
    }

    /// What a client is given, as in `STORAGE_EMULATOR_HOST`: scheme, host and port without a slash at the end.
    pub fn endpoint(&self) -> String {
        self.shared.endpoint.clone()
    }

    /// The certificate to trust, as in `SSL_CERT_FILE`, when it speaks TLS.
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.ca.as_path())
    }

    /// Bytes of objects that were sent.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Relaxed)
    }

    /// Requests so far.
    pub fn request_count(&self) -> u64 {
        self.shared.requests.load(Relaxed)
    }

    /// All requests so far, where they are kept.
    pub fn requests(&self) -> Option<&RequestLog> {
        self.shared.log.as_ref()
    }

    /// Makes a bucket. Names of less than three letters are refused, as by Cloud Storage.
    ///
    /// # Errors
    /// When it is there, or cannot be.
    pub async fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.shared.store.create(bucket).with_context(|| format!("creating bucket {bucket}"))
    }

    /// Stores an object, or overwrites it with a new generation. Its bytes are not copied.
    ///
    /// # Errors
    /// When there is no such bucket.
    pub async fn upload(&self, bucket: &str, name: &str, bytes: impl Into<Bytes>) -> Result<Uploaded> {
        self.upload_with(bucket, name, bytes, Upload::default()).await
    }

    /// Stores an object with what is said about it.
    ///
    /// # Errors
    /// When there is no such bucket.
    pub async fn upload_with(
        &self,
        bucket: &str,
        name: &str,
        bytes: impl Into<Bytes>,
        upload: Upload<'_>,
    ) -> Result<Uploaded> {
        let bytes = bytes.into();
        let content = spawn_blocking(move || Content::of(bytes, true)).await?;
        let described = Described {
            content_type: upload.content_type.map(str::to_owned),
            content_encoding: upload.content_encoding.map(str::to_owned),
            ..Described::default()
        };
        self.put(bucket, name, content, described)
    }

    /// Stores a file as an object.
    ///
    /// # Errors
    /// When the file cannot be read, or there is no such bucket.
    pub async fn upload_file(&self, bucket: &str, name: &str, file: &Path) -> Result<Uploaded> {
        let path = file.to_owned();
        let content = spawn_blocking(move || Content::read(&path)).await?;
        let content = content.with_context(|| format!("reading {}", file.display()))?;
        self.put(bucket, name, content, Described::default())
    }

    /// Reads every file below `directory` into an object named `prefix/path`; makes the bucket if there is none.
    ///
    /// # Errors
    /// When a file cannot be read, or the bucket not be made.
    pub fn place_directory(&self, bucket: &str, prefix: &str, directory: &Path) -> Result<()> {
        place::place(&self.shared.store, bucket, prefix, directory)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn delete(&self, bucket: &str, name: &str) -> Result<()> {
        let deleted = self.shared.store.delete(&named(bucket, name), None, &Conditions::default());
        deleted.with_context(|| format!("deleting gs://{bucket}/{name}"))
    }

    /// An object's bytes.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn download(&self, bucket: &str, name: &str) -> Result<Bytes> {
        let found = self.shared.store.get(&named(bucket, name), None, &Conditions::default());
        Ok(found.with_context(|| format!("reading gs://{bucket}/{name}"))?.content.bytes.clone())
    }

    /// What is said of an object now.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn stat(&self, bucket: &str, name: &str) -> Result<Uploaded> {
        let found = self.shared.store.get(&named(bucket, name), None, &Conditions::default());
        Ok(found.with_context(|| format!("looking up gs://{bucket}/{name}"))?.uploaded())
    }

    fn put(&self, bucket: &str, name: &str, content: Content, described: Described) -> Result<Uploaded> {
        let named = named(bucket, name);
        let stored = self.shared.store.put(&named, content, described, &Conditions::default());
        Ok(stored.with_context(|| format!("uploading gs://{bucket}/{name}"))?.uploaded())
    }
}

fn named(bucket: &str, name: &str) -> Named {
    Named { bucket: bucket.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
mod tests;
