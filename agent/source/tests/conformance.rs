//! The conformance suite against the origins that need no server.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use weightd_source::{
    Config, Environment, MemoryOrigin, Opener, Origins,
    conformance::{self, Fixture},
};
use weightd_types::SourceUri;

struct Memory(MemoryOrigin);

#[async_trait]
impl Fixture for Memory {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::new(self.0.clone())
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        format!("memory://m/{prefix}").parse().unwrap()
    }

    fn nowhere(&self) -> SourceUri {
        "memory://nowhere/x".parse().unwrap()
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        self.0.put(key, bytes);
    }

    async fn remove(&self, key: &str) -> bool {
        self.0.remove(key)
    }
}

struct Files {
    directory: tempfile::TempDir,
    origins: Arc<Origins>,
}

#[async_trait]
impl Fixture for Files {
    fn opener(&self) -> Arc<dyn Opener> {
        Arc::clone(&self.origins) as Arc<dyn Opener>
    }

    fn uri(&self, prefix: &str) -> SourceUri {
        format!("file://{}/{prefix}", self.directory.path().display()).parse().unwrap()
    }

    fn nowhere(&self) -> SourceUri {
        self.uri("nowhere/x")
    }

    async fn put(&self, key: &str, bytes: Bytes) {
        let path = self.directory.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    async fn remove(&self, key: &str) -> bool {
        std::fs::remove_file(self.directory.path().join(key)).is_ok()
    }
}

#[tokio::test]
async fn file() {
    let settings = Config::default().check(&Environment::default()).unwrap();
    let origins = Arc::new(Origins::new(settings));
    conformance::run(&Files { directory: tempfile::tempdir().unwrap(), origins }).await;
}

#[tokio::test]
async fn memory() {
    conformance::run(&Memory(MemoryOrigin::new("m"))).await;
}
