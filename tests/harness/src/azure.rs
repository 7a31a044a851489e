//! Azurite: Azure Blob Storage, as a process.

use std::time::SystemTime;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, RequestBuilder};
use sha2::Sha256;

use crate::{
    name,
    process::{Program, Server, Unready},
    serve, tools,
};

/// The emulator's only account, and its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// The protocol version of the requests made here.
const VERSION: &str = "2021-12-02";

/// A running Azure Blob Storage emulator.
#[derive(Debug)]
pub struct AzureServer {
    server: Server,
    client: Client,
}

impl AzureServer {
    /// Starts one that keeps its blobs in memory.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start() -> Result<Self, Unready> {
        let path = tools::node_program("azurite-blob")?;
        let directory = tempfile::tempdir().map_err(|error| Unready::failed("azurite-blob", &error))?;
        let args = ["--blobHost", "127.0.0.1", "--blobPort", "{0}", "--inMemoryPersistence"];
        let quiet = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"];
        let args = args.into_iter().chain(quiet).map(Into::into).collect();
        let program = Program { name: "azurite-blob", path, args, ports: 1, env: vec![] };
        Ok(Self { server: Server::start(&program, directory).await?, client: serve::client() })
    }

    /// What a client is given as the blob endpoint: the account is the first part of the path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.server.port(0))
    }

    /// The account's name.
    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    /// The account's key, base64.
    pub fn key(&self) -> &'static str {
        KEY
    }

    /// Makes a container whose blobs anyone may list and read.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn create_container(&self, container: &str) -> Result<()> {
        let resource = format!("/{container}");
        let headers = [("x-ms-blob-public-access", "container")];
        self.put(&resource, "restype=container", &headers, Bytes::new()).await
    }

    /// Stores a blob, or overwrites it.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn upload(&self, container: &str, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let resource = format!("/{container}/{}", name::path(name));
        self.put(&resource, "", &[("x-ms-blob-type", "BlockBlob")], bytes.into()).await
    }

    async fn put(&self, resource: &str, query: &str, headers: &[(&str, &str)], body: Bytes) -> Result<()> {
        let url = format!("{}{resource}?{query}", self.endpoint());
        let now = httpdate::fmt_http_date(SystemTime::now());
        let mut headers = headers.to_vec();
        headers.extend([("x-ms-date", now.as_str()), ("x-ms-version", VERSION)]);
        headers.sort_unstable();
        let text = string_to_sign(resource, query, &headers, body.len());
        let request = headers.iter().fold(self.client.put(url), |request: RequestBuilder, (name, value)| {
            request.header(*name, *value)
        });
        let request = request.header("authorization", format!("SharedKey {ACCOUNT}:{}", sign(&text)?));
        let answer = request.body(body).send().await.and_then(reqwest::Response::error_for_status);
        answer.with_context(|| format!("putting az:/{resource}")).map(drop)
    }
}

/// What Azure's "Shared Key" scheme signs of a PUT whose only standard header is its length.
fn string_to_sign(resource: &str, query: &str, headers: &[(&str, &str)], length: usize) -> String {
    let length = if length == 0 { String::new() } else { length.to_string() };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let query = if query.is_empty() { String::new() } else { format!("\n{}", query.replace('=', ":")) };
    // In the emulator the account is also the first part of the path, so it is there twice.
    format!("PUT\n\n\n{length}\n\n\n\n\n\n\n\n\n{headers}/{ACCOUNT}/{ACCOUNT}{resource}{query}")
}

fn sign(text: &str) -> Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64_STANDARD.decode(KEY)?)?;
    mac.update(text.as_bytes());
    Ok(BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[tokio::test]
    async fn blobs_are_kept_and_listed() {
        let azure = require!(AzureServer::start().await);
        azure.create_container("demo").await.unwrap();
        azure.upload("demo", "m/x y.bin", "0123456789").await.unwrap();
        let url = format!("{}/demo/m/x%20y.bin", azure.endpoint());
        let answer = azure.client.get(url).header("range", "bytes=2-4").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "234");
        let url = format!("{}/demo?restype=container&comp=list", azure.endpoint());
        assert!(azure.client.get(url).send().await.unwrap().text().await.unwrap().contains("m/x y.bin"));
    }
}
