//! The HTTP client of the sources that speak HTTP themselves.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use url::Url;

use crate::{SourceError, answer::chain, redirect};

/// How long a server may stay silent within a listing. Bodies of objects are watched by the fetch room, which
/// knows how fast they ought to come, and uploads by whoever sends them.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const USER_AGENT: &str = concat!("weightd/", env!("CARGO_PKG_VERSION"));

/// A client that follows no redirect by itself and speaks HTTP/1.1: one connection per request in flight is
/// faster for bodies than sharing one. Nothing is decompressed, whatever features other crates switch on. Certificates are checked against the system's authorities, or those in
/// the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
///
/// # Errors
/// [`SourceError::Configuration`] when this machine has no authorities.
pub fn client(connect_timeout: Duration, what: &str) -> Result<Client, SourceError> {
    build(builder(connect_timeout).redirect(Policy::none()).read_timeout(READ_TIMEOUT), what)
}

/// The same for requests whose bodies take long: an answer may be waited for as long as whoever sends them likes.
///
/// # Errors
/// As of [`client`].
pub(crate) fn uploading_client(connect_timeout: Duration, what: &str) -> Result<Client, SourceError> {
    build(builder(connect_timeout).redirect(Policy::none()), what)
}

/// The same, and redirects are followed within one origin and below these addresses.
pub(crate) fn confined_client(
    connect_timeout: Duration,
    what: &str,
    addresses: Arc<[Url]>,
) -> Result<Client, SourceError> {
    let builder = builder(connect_timeout)
        .read_timeout(READ_TIMEOUT)
        .redirect(redirect::within(addresses))
        .referer(false);
    build(builder.dns_resolver(Arc::new(Spread::default())), what)
}

fn builder(connect_timeout: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .connect_timeout(connect_timeout)
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
}

fn build(builder: ClientBuilder, what: &str) -> Result<Client, SourceError> {
    let failed = |error: reqwest::Error| SourceError::Configuration {
        what: what.to_owned(),
        why: format!(
            "no HTTP client: {}; install the package ca-certificates, or set SSL_CERT_FILE",
            chain(&error)
        ),
    };
    builder.build().map_err(failed)
}

/// Spreads connections over all addresses of a name, as the clients of `object_store` do: a bucket is served by many.
#[derive(Debug, Default)]
struct Spread(AtomicUsize);

impl Resolve for Spread {
    fn resolve(&self, name: Name) -> Resolving {
        let turn = self.0.fetch_add(1, Relaxed);
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if !found.is_empty() {
                let first = turn % found.len();
                found.rotate_left(first);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
