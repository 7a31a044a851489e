//! A bucket server with a process of its own: what it costs is not counted to whoever measures.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use reqwest::Client;
use serde::Deserialize;

use super::BucketOptions;
use crate::{
    binary,
    process::{Program, Server, Unready},
    tls::Tls,
};

/// A running `test-bucket`, ended when dropped.
#[derive(Debug)]
pub struct BucketProcess {
    server: Server,
    endpoint: String,
    ca: Option<PathBuf>,
    client: Client,
}

/// What it counts.
#[derive(Debug, Deserialize)]
struct Counters {
    bytes_sent: u64,
    requests: u64,
}

impl BucketProcess {
    /// Starts one, and waits until all that shall be in it is. It listens on a port of its own choice.
    ///
    /// # Errors
    /// When it does not come up, or a directory cannot be read.
    ///
    /// # Panics
    /// When `test-bucket` is not built.
    pub async fn start(options: &BucketOptions) -> Result<Self, Unready> {
        let failed = |error: anyhow::Error| Unready::failed("test-bucket", &format!("{error:#}"));
        let directory = tempfile::tempdir().map_err(|error| failed(error.into()))?;
        let mut args = BucketOptions { port: None, ..options.clone() }.arguments();
        args.extend(["--port", "{0}"].map(Into::into));
        let path = binary("test-bucket");
        let program = Program { name: "test-bucket", path, args, ports: 1, env: vec![] };
        let server = Server::start(&program, directory).await?;
        let ca = options.tls.as_deref().map(|directory| Tls::at(directory).ca);
        let scheme = if ca.is_some() { "https" } else { "http" };
        let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let endpoint = format!("{scheme}://{}", SocketAddr::new(address, server.port(0)));
        let client = client(ca.as_deref()).map_err(failed)?;
        let mut process = Self { server, endpoint, ca, client };
        // It listens from the beginning, and answers when everything is in its place.
        match process.counters().await {
            Ok(_) => Ok(process),
            Err(error) => Err(failed(error.context(process.server.last_words().await))),
        }
    }

    /// Scheme, host and port without a slash at the end.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The certificate to trust, when it speaks TLS.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Its process, for measuring.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Bytes of objects that it has sent.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn bytes_sent(&self) -> Result<u64> {
        Ok(self.counters().await?.bytes_sent)
    }

    /// Requests that it got.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn request_count(&self) -> Result<u64> {
        Ok(self.counters().await?.requests)
    }

    async fn counters(&self) -> Result<Counters> {
        let answer = self.client.get(format!("{}/_weightd/counters", self.endpoint)).send().await;
        let answer = answer.context("asking the bucket server what it counts")?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }
}

fn client(ca: Option<&Path>) -> Result<Client> {
    let Some(ca) = ca else { return Ok(crate::serve::client()) };
    let pem = std::fs::read(ca).with_context(|| format!("reading {}", ca.display()))?;
    let ca = reqwest::Certificate::from_pem(&pem)?;
    Ok(Client::builder().no_proxy().tls_certs_only([ca]).build()?)
}
