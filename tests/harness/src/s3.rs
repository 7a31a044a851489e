//! moto: S3, as a process.

use anyhow::{Context, Result};
use bytes::Bytes;
use reqwest::{Client, Method};

use crate::{
    name,
    process::{Program, Server, Unready},
    serve, tools,
};

/// Good enough for a server that only looks whether there is one.
const SIGNATURE: &str = "AWS any:signature";

/// A running S3 server. It takes any signature, and refuses to read for a client that does not sign at all.
#[derive(Debug)]
pub struct S3Server {
    server: Server,
    client: Client,
}

impl S3Server {
    /// Starts one.
    ///
    /// # Errors
    /// When it is not installed, or does not come up.
    pub async fn start() -> Result<Self, Unready> {
        let path = tools::python_program("moto_server")?;
        let directory = tempfile::tempdir().map_err(|error| Unready::failed("moto_server", &error))?;
        let args = ["-H", "127.0.0.1", "-p", "{0}"].map(Into::into).into();
        let program = Program { name: "moto_server", path, args, ports: 1, env: vec![] };
        Ok(Self { server: Server::start(&program, directory).await?, client: serve::client() })
    }

    /// What a client is given, as in `AWS_ENDPOINT`; buckets are the first part of the path. Region `us-east-1`,
    /// any key.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port(0))
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.send(Method::PUT, bucket, None, Bytes::new()).await.map(drop)
    }

    /// Stores an object, or overwrites it. Returns its etag, with the quotes.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn upload(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) -> Result<String> {
        let answer = self.send(Method::PUT, bucket, Some(key), bytes.into()).await?;
        let etag = answer.headers().get("etag").context("an answer without etag")?;
        Ok(etag.to_str()?.to_owned())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        self.send(Method::DELETE, bucket, Some(key), Bytes::new()).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        bucket: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<reqwest::Response> {
        let key = key.map(|key| format!("/{}", name::path(key))).unwrap_or_default();
        let url = format!("{}/{bucket}{key}", self.endpoint());
        let request = self.client.request(method.clone(), &url).header("authorization", SIGNATURE);
        let answer = request.body(body).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        answer.with_context(|| format!("{method} s3://{bucket}{key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[tokio::test]
    async fn objects_are_kept_and_read_in_ranges_of_one_version() {
        let s3 = require!(S3Server::start().await);
        s3.create_bucket("demo").await.unwrap();
        let etag = s3.upload("demo", "m/a b.bin", "0123456789").await.unwrap();
        let url = format!("{}/demo/m/a%20b.bin", s3.endpoint());
        let unsigned = || s3.client.get(&url).header("range", "bytes=2-4").header("if-match", &etag);
        let get = || unsigned().header("authorization", SIGNATURE);
        assert_eq!(unsigned().send().await.unwrap().status(), 403);
        let answer = get().send().await.unwrap();
        assert_eq!(answer.status(), 206);
        assert_eq!(answer.text().await.unwrap(), "234");
        assert_ne!(s3.upload("demo", "m/a b.bin", "9876543210").await.unwrap(), etag);
        assert_eq!(get().send().await.unwrap().status(), 412);
        s3.delete("demo", "m/a b.bin").await.unwrap();
        assert_eq!(get().send().await.unwrap().status(), 404);
    }
}
