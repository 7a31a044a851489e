//! Each server as an origin that the conformance suite can change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{
    ObjectStoreExt,
    azure::{MicrosoftAzure, MicrosoftAzureBuilder},
    path::Path,
};
use weightd_harness::{AzureServer, BucketServer, FakeGcs, HubServer, Repository, S3Server, WebDavServer};
use weightd_source::{
    AzureConfig, Config, Environment, GcsConfig, HubConfig, Opener, Origins, S3Config, conformance::Fixture,
};
use weightd_types::SourceUri;

/// Real origins, with the environment given instead of that of this process.
pub(crate) fn origins(config: &Config, environment: &[(&str, &str)]) -> Arc<Origins> {
    let environment: Environment = environment.iter().copied().collect();
    Arc::new(Origins::new(config.check(&environment).unwrap()))
}

/// Origins that read an emulator of Cloud Storage.
pub(crate) fn gcs_origins(endpoint: &str) -> Arc<Origins> {
    let gcs = GcsConfig { endpoint: Some(endpoint.to_owned()), anonymous: Some(true), user_project: None };
    origins(&Config { gcs, ..Config::default() }, &[])
}

/// Origins that read a hub.
pub(crate) fn hub_origins(endpoint: &str, token: Option<&str>) -> Arc<Origins> {
    let hub = HubConfig { endpoint: Some(endpoint.to_owned()), token_path: None };
    let token = token.map(|token| ("HF_TOKEN", token));
    origins(&Config { hub, ..Config::default() }, token.as_slice())
}

pub(crate) fn uri(text: &str) -> SourceUri {
    text.parse().unwrap()
}

const BUCKET: &str = "models";

pub(crate) struct Gcs {
    server: FakeGcs,
    origins: Arc<Origins>,
}

impl Gcs {
    pub(crate) async fn new(server: FakeGcs) -> Self {
        server.create_bucket(BUCKET).await.unwrap();
        let origins = origins(&Config::default(), &[("STORAGE_EMULATOR_HOST", &server.endpoint())]);
        Self { server, origins }
    }
}

#[async_trait]
impl Fixture for Gcs {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("gs://{BUCKET}/{prefix}"))
    }

    fn nowhere(&self) -> SourceUri {
        uri("gs://nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.server.upload(BUCKET, key, bytes).await.unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        self.server.delete(BUCKET, key).await.is_ok()
    }
}

/// The same by the server that benchmarks use.
pub(crate) struct Bucket {
    server: BucketServer,
    origins: Arc<Origins>,
}

impl Bucket {
    pub(crate) async fn new(server: BucketServer) -> Self {
        server.create_bucket(BUCKET).await.unwrap();
        let origins = origins(&Config::default(), &[("STORAGE_EMULATOR_HOST", &server.endpoint())]);
        Self { server, origins }
    }
}

#[async_trait]
impl Fixture for Bucket {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("gs://{BUCKET}/{prefix}"))
    }

    fn nowhere(&self) -> SourceUri {
        uri("gs://nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.server.upload(BUCKET, key, bytes).await.unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        self.server.delete(BUCKET, key).await.is_ok()
    }
}

pub(crate) struct S3 {
    server: S3Server,
    origins: Arc<Origins>,
}

impl S3 {
    pub(crate) async fn new(server: S3Server) -> Self {
        server.create_bucket(BUCKET).await.unwrap();
        let s3 = S3Config { endpoint: Some(server.endpoint()), ..S3Config::default() };
        let keys = [("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any")];
        let origins = origins(&Config { s3, ..Config::default() }, &keys);
        Self { server, origins }
    }
}

#[async_trait]
impl Fixture for S3 {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("s3://{BUCKET}/{prefix}"))
    }

    fn nowhere(&self) -> SourceUri {
        uri("s3://nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.server.upload(BUCKET, key, bytes).await.unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        self.server.delete(BUCKET, key).await.is_ok()
    }
}

pub(crate) struct Azure {
    _server: AzureServer,
    container: MicrosoftAzure,
    origins: Arc<Origins>,
}

impl Azure {
    pub(crate) async fn new(server: AzureServer) -> Self {
        server.create_container(BUCKET).await.unwrap();
        let azure = AzureConfig {
            account: Some(server.account().to_owned()),
            endpoint: Some(server.endpoint()),
            ..AzureConfig::default()
        };
        let key = [("AZURE_STORAGE_ACCOUNT_KEY", server.key())];
        let origins = origins(&Config { azure, ..Config::default() }, &key);
        let container = MicrosoftAzureBuilder::new()
            .with_account(server.account())
            .with_access_key(server.key())
            .with_endpoint(server.endpoint())
            .with_allow_http(true)
            .with_container_name(BUCKET);
        Self { _server: server, container: container.build().unwrap(), origins }
    }
}

#[async_trait]
impl Fixture for Azure {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("az://{BUCKET}/{prefix}"))
    }

    fn nowhere(&self) -> SourceUri {
        uri("az://nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.container.put(&Path::parse(key).unwrap(), bytes.into()).await.unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        self.container.delete(&Path::parse(key).unwrap()).await.is_ok()
    }
}

pub(crate) struct WebDav {
    server: WebDavServer,
    origins: Arc<Origins>,
    put: Mutex<BTreeSet<String>>,
}

impl WebDav {
    pub(crate) fn new(server: WebDavServer) -> Self {
        Self { server, origins: origins(&Config::default(), &[]), put: Mutex::default() }
    }
}

#[async_trait]
impl Fixture for WebDav {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("{}/{prefix}", self.server.url()))
    }

    fn nowhere(&self) -> SourceUri {
        self.uri("nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        if !self.put.lock().unwrap().insert(key.to_owned()) {
            // This server's entity tags have a resolution of one second.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let path = self.server.root().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        fs::remove_file(self.server.root().join(key)).is_ok()
    }
}

const REPOSITORY: &str = "weightd/tiny";

/// Every change is a commit.
pub(crate) struct Hub {
    server: HubServer,
    origins: Arc<Origins>,
    files: Mutex<BTreeMap<String, Bytes>>,
}

impl Hub {
    pub(crate) fn new(server: HubServer) -> Self {
        let origins = hub_origins(&server.endpoint(), None);
        server.push(REPOSITORY, Repository::new());
        Self { server, origins, files: Mutex::default() }
    }

    fn commit(&self) {
        let files = self.files.lock().unwrap();
        let repository = files.iter().fold(Repository::new(), |repository, (path, bytes)| {
            let is_large = bytes.len() > 1 << 20;
            if is_large {
                repository.large_file(path, bytes.clone())
            } else {
                repository.file(path, bytes.clone())
            }
        });
        self.server.push(REPOSITORY, repository);
    }
}

#[async_trait]
impl Fixture for Hub {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        uri(&format!("hf://{REPOSITORY}/{prefix}"))
    }

    fn nowhere(&self) -> SourceUri {
        uri("hf://weightd/nowhere")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.files.lock().unwrap().insert(key.to_owned(), bytes);
        self.commit();
    }

    async fn remove(&self, key: &str) -> bool {
        let was_there = self.files.lock().unwrap().remove(key).is_some();
        self.commit();
        was_there
    }
}
