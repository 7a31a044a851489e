//! The HTTP client of the sources that speak HTTP themselves.

use std::time::Duration;

use reqwest::{Client, redirect::Policy};

use crate::{SourceError, answer::chain};

/// How long a server may stay silent within a listing. Bodies of objects are watched by the fetch room, which
/// knows how fast they ought to come.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const USER_AGENT: &str = concat!("weightd/", env!("CARGO_PKG_VERSION"));

/// A client that follows no redirect by itself and speaks HTTP/1.1: one connection per request in flight is
/// faster for bodies than sharing one. Nothing is decompressed, whatever features other crates switch on. Certificates are checked against the system's authorities, or those in
/// the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
///
/// # Errors
/// [`SourceError::Configuration`] when this machine has no authorities.
pub fn client(connect_timeout: Duration, what: &str) -> Result<Client, SourceError> {
    let failed = |error: reqwest::Error| SourceError::Configuration {
        what: what.to_owned(),
        why: format!(
            "no HTTP client: {}; install the package ca-certificates, or set SSL_CERT_FILE",
            chain(&error)
        ),
    };
    Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .connect_timeout(connect_timeout)
        .read_timeout(READ_TIMEOUT)
        .redirect(Policy::none())
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .build()
        .map_err(failed)
}
