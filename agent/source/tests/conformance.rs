//! The conformance suite against the origins that need no server.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use weightd_source::{
    MemoryOrigin, Opener,
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

    async fn remove(&self, key: &str) {
        self.0.remove(key);
    }
}

#[tokio::test]
async fn memory() {
    conformance::run(&Memory(MemoryOrigin::new("m"))).await;
}
