//! fake-gcs-server: the GCS emulator, as a process.

mod place;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::json;

use crate::{
    name::segment,
    process::{Program, Server, Unready},
    tls::Tls,
    tools,
};
pub(crate) use place::files_below;

/// How the emulator runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct GcsOptions {
    /// Keeps objects in memory instead of in files: for names that no file can have, and very many objects.
    pub memory: bool,
    /// Clients must speak TLS; [`FakeGcs::ca_file`] is what they must trust.
    pub tls: bool,
}

/// What is said about an object beside its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upload<'a> {
    /// `gzip` makes it an object that GCS transcodes. The bytes are stored as given.
    pub content_encoding: Option<&'a str>,
    /// Its media type; `application/octet-stream` if none.
    pub content_type: Option<&'a str>,
}

/// What the emulator says of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Changes with every overwrite.
    pub generation: i64,
    /// Length in bytes.
    pub size: u64,
    /// As GCS gives it: base64 of the big-endian bytes.
    pub crc32c: String,
}

/// A running emulator.
#[derive(Debug)]
pub struct FakeGcs {
    server: Server,
    options: GcsOptions,
    tls: Option<Tls>,
    client: Client,
}

impl FakeGcs {
    /// Starts one that keeps its objects in files.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start() -> Result<Self, Unready> {
        Self::start_with(GcsOptions::default()).await
    }

    /// Starts one that keeps its objects in memory.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start_in_memory() -> Result<Self, Unready> {
        Self::start_with(GcsOptions { memory: true, tls: false }).await
    }

    /// Starts one that speaks TLS.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start_tls() -> Result<Self, Unready> {
        Self::start_with(GcsOptions { memory: false, tls: true }).await
    }

    /// Starts one.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start_with(options: GcsOptions) -> Result<Self, Unready> {
        Self::start_below(&std::env::temp_dir(), options).await
    }

    /// Starts one that has its files in a directory below another, for when that is removed in any case.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start_below(above: &Path, options: GcsOptions) -> Result<Self, Unready> {
        let failed = |error: anyhow::Error| Unready::failed("fake-gcs-server", &format!("{error:#}"));
        let path = tools::fake_gcs_server()?;
        let directory = tempfile::tempdir_in(above).map_err(|error| failed(error.into()))?;
        let tls = options.tls.then(|| Tls::create(directory.path())).transpose().map_err(failed)?;
        let args = arguments(options, directory.path(), tls.as_ref());
        let ports = if options.tls { 2 } else { 1 };
        let program = Program { name: "fake-gcs-server", path, args, ports, env: vec![] };
        let server = Server::start(&program, directory).await?;
        Ok(Self { server, options, tls, client: crate::serve::client() })
    }

    /// What a client is given, as in `STORAGE_EMULATOR_HOST`: scheme, host and port without a slash at the end.
    pub fn endpoint(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.server.port(0))
    }

    /// The certificate to trust, as in `SSL_CERT_FILE`, when it speaks TLS.
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.ca.as_path())
    }

    /// Its process, for measuring.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Makes a bucket. Names of one letter are refused, as by GCS.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn create_bucket(&self, bucket: &str) -> Result<()> {
        let body = json!({ "name": bucket }).to_string();
        let request = self.request(Method::POST, "/storage/v1/b").header("content-type", "application/json");
        sent(request.body(body)).await.with_context(|| format!("creating bucket {bucket}"))?;
        Ok(())
    }

    /// Stores an object, or overwrites it with a new generation.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn upload(&self, bucket: &str, name: &str, bytes: impl Into<Bytes>) -> Result<Uploaded> {
        self.upload_with(bucket, name, bytes, Upload::default()).await
    }

    /// Stores an object with what is said about it.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn upload_with(
        &self,
        bucket: &str,
        name: &str,
        bytes: impl Into<Bytes>,
        upload: Upload<'_>,
    ) -> Result<Uploaded> {
        self.unlink_placed(bucket, name)?;
        let mut url = format!("/upload/storage/v1/b/{bucket}/o?uploadType=media&name={}", segment(name));
        if let Some(encoding) = upload.content_encoding {
            url += &format!("&contentEncoding={encoding}");
        }
        let kind = upload.content_type.unwrap_or("application/octet-stream");
        let request = self.request(Method::POST, &url).header("content-type", kind).body(bytes.into());
        let answer = sent(request).await.with_context(|| format!("uploading gs://{bucket}/{name}"))?;
        uploaded(&answer.text().await?)
    }

    /// Stores a file by the API. The emulator holds all of it in memory, twice: see
    /// [`place_directory`](Self::place_directory) for big ones.
    ///
    /// # Errors
    /// When the file cannot be read, or the emulator refuses.
    pub async fn upload_file(&self, bucket: &str, name: &str, file: &Path) -> Result<Uploaded> {
        let bytes = tokio::fs::read(file).await.with_context(|| format!("reading {}", file.display()))?;
        self.upload(bucket, name, bytes).await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When the emulator refuses.
    pub async fn delete(&self, bucket: &str, name: &str) -> Result<()> {
        let url = format!("/storage/v1/b/{bucket}/o/{}", segment(name));
        sent(self.request(Method::DELETE, &url))
            .await
            .with_context(|| format!("deleting gs://{bucket}/{name}"))?;
        Ok(())
    }

    /// An object's bytes.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn download(&self, bucket: &str, name: &str) -> Result<Bytes> {
        let url = format!("/storage/v1/b/{bucket}/o/{}?alt=media", segment(name));
        let answer = sent(self.request(Method::GET, &url)).await;
        Ok(answer.with_context(|| format!("reading gs://{bucket}/{name}"))?.bytes().await?)
    }

    /// What the emulator says of an object now.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn stat(&self, bucket: &str, name: &str) -> Result<Uploaded> {
        let url = format!("/storage/v1/b/{bucket}/o/{}", segment(name));
        let answer = sent(self.request(Method::GET, &url)).await;
        uploaded(&answer.with_context(|| format!("looking up gs://{bucket}/{name}"))?.text().await?)
    }

    /// Through the plain port, also when clients must use the other.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let port = self.server.port(usize::from(self.options.tls));
        self.client.request(method, format!("http://127.0.0.1:{port}{path}"))
    }

    fn root(&self) -> PathBuf {
        self.server.directory().join("objects")
    }
}

fn arguments(options: GcsOptions, directory: &Path, tls: Option<&Tls>) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        ["-host", "127.0.0.1", "-port", "{0}", "-public-host", "127.0.0.1:{0}", "-log-level", "warn"]
            .map(OsString::from)
            .into();
    args.extend(["-backend".into(), if options.memory { "memory" } else { "filesystem" }.into()]);
    args.extend(["-filesystem-root".into(), directory.join("objects").into()]);
    match tls {
        Some(tls) => {
            args.extend(["-scheme", "both", "-port-http", "{1}"].map(OsString::from));
            args.extend(["-cert-location".into(), tls.certificate.clone().into()]);
            args.extend(["-private-key-location".into(), tls.key.clone().into()]);
        }
        None => args.extend(["-scheme", "http"].map(OsString::from)),
    }
    args
}

/// The answer, when it is a success; its words otherwise.
async fn sent(request: RequestBuilder) -> Result<Response> {
    let answer = request.send().await?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    bail!("{}: {}", answer.status(), answer.text().await.unwrap_or_default())
}

fn uploaded(answer: &str) -> Result<Uploaded> {
    /// JSON numbers of 64 bits travel as strings.
    #[derive(Deserialize)]
    struct Resource {
        generation: String,
        size: String,
        crc32c: String,
    }
    let resource: Resource = serde_json::from_str(answer).context("reading the object's metadata")?;
    Ok(Uploaded {
        generation: resource.generation.parse()?,
        size: resource.size.parse()?,
        crc32c: resource.crc32c,
    })
}

#[cfg(test)]
mod tests;
