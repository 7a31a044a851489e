//! A store in a temporary directory, an origin in memory, a fetcher between them.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use weightd_fetch::{Completed, Config, FetchError, Fetcher, Transfer};
use weightd_source::{Faults, FaultyOpener, MemoryOrigin, Opener};
use weightd_store::Store;
use weightd_types::{Layout, Selection, SourceUri};

/// The source every test fetches.
pub(crate) const MODEL: &str = "memory://origin/model";

/// A store, an origin, a fetcher.
pub(crate) struct Fixture {
    pub(crate) origin: MemoryOrigin,
    pub(crate) fetcher: Fetcher,
    pub(crate) directory: tempfile::TempDir,
}

impl Fixture {
    /// Everything empty.
    pub(crate) async fn new() -> Self {
        let origin = MemoryOrigin::new("origin");
        let opener: Arc<dyn Opener> = Arc::new(origin.clone());
        Self::over(origin, opener, Config::default()).await
    }

    /// With an opener of the test's own over the origin.
    pub(crate) async fn over(origin: MemoryOrigin, opener: Arc<dyn Opener>, config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).await;
        Self { origin, fetcher: Fetcher::start(store, opener, config), directory }
    }

    pub(crate) fn store(&self) -> &Store {
        self.fetcher.store()
    }

    pub(crate) async fn prefetch(&self, layout: Layout) -> Result<Completed, FetchError> {
        let uri: SourceUri = MODEL.parse().unwrap();
        let resolution = self.fetcher.resolve(&uri, &Selection::default()).await?;
        self.fetcher.prefetch(resolution, layout, 0).wait().await
    }
}

/// A store with few buffers, on a directory.
pub(crate) async fn open(directory: &Path) -> Store {
    open_with(directory, 64 << 20).await
}

pub(crate) async fn open_with(directory: &Path, buffer_bytes: u64) -> Store {
    let mut config = weightd_store::Config::new(directory.join("store"));
    (config.buffer_bytes, config.floor) = (buffer_bytes, 0.0);
    config.checkpoint_interval = Duration::from_millis(100);
    tokio::task::spawn_blocking(move || Store::open(config)).await.unwrap().unwrap()
}

/// A safetensors file with tensors of these lengths, filled by a pattern of `seed`.
pub(crate) fn safetensors(tensors: &[(&str, usize)], seed: usize) -> Bytes {
    let mut json = String::from("{");
    let mut offset = 0;
    for (at, (name, len)) in tensors.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let end = offset + len;
        json +=
            &format!(r#"{comma}"{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{offset},{end}]}}"#);
        offset = end;
    }
    json.push('}');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend((0..offset).map(|i| u8::try_from((i * 31 + i / 251 + seed) % 256).unwrap()));
    bytes.into()
}

/// Puts a model of two shards and its companions: 40 MiB, with odd-sized tensors between large ones.
pub(crate) fn put_model(origin: &MemoryOrigin) -> Vec<(&'static str, Bytes)> {
    let mib = 1 << 20;
    let first = safetensors(&[("scale.a", 4), ("a", 11 * mib), ("scale.b", 4), ("b", 9 * mib)], 1);
    let second = safetensors(&[("c", 16 * mib), ("d", 4 * mib + 10)], 2);
    let index = r#"{"metadata":{},"weight_map":{"scale.a":"1.safetensors","a":"1.safetensors","scale.b":"1.safetensors",
        "b":"1.safetensors","c":"2.safetensors","d":"2.safetensors"}}"#;
    let objects = vec![
        ("model.safetensors.index.json", Bytes::from_static(index.as_bytes())),
        ("1.safetensors", first),
        ("2.safetensors", second),
        ("config.json", Bytes::from_static(b"{}")),
        ("empty", Bytes::new()),
        ("sub/tokenizer.json", Bytes::from_static(b"{\"t\":1}")),
    ];
    for (name, bytes) in &objects {
        origin.put(&format!("model/{name}"), bytes.clone());
    }
    objects
}

/// Checks that a snapshot's directory holds the objects: other files byte for byte, safetensors tensor for tensor.
pub(crate) fn assert_holds(directory: &Path, objects: &[(&str, Bytes)]) {
    for (name, bytes) in objects {
        let stored = std::fs::read(directory.join(name)).unwrap();
        if !name.ends_with(".safetensors") {
            assert_eq!(stored, bytes.as_ref(), "{name}");
            continue;
        }
        let (before, after) = (
            safetensors::SafeTensors::deserialize(bytes).unwrap(),
            safetensors::SafeTensors::deserialize(&stored).unwrap(),
        );
        assert_eq!(before.len(), after.len());
        for (tensor, view) in before.iter() {
            assert!(after.tensor(tensor).unwrap().data() == view.data(), "{name}: {tensor} differs");
        }
    }
}

/// Short waits, so that tests of them are short too.
pub(crate) fn hasty() -> Config {
    let mut config = Config::default();
    (config.stall, config.give_up) = (Duration::from_millis(300), Duration::from_millis(700));
    (config.backoff, config.backoff_limit) = (Duration::from_millis(5), Duration::from_millis(20));
    config.attempts = 3;
    config
}

impl Fixture {
    /// With faults on purpose.
    pub(crate) async fn faulty(faults: &Faults, config: Config) -> Self {
        let origin = MemoryOrigin::new("origin");
        let opener = Arc::new(FaultyOpener::new(Arc::new(origin.clone()), faults.clone()));
        Self::over(origin, opener, config).await
    }

    pub(crate) async fn start(&self, uri: &str, priority: i32) -> Arc<Transfer> {
        let resolution = self.fetcher.resolve(&uri.parse().unwrap(), &Selection::default()).await.unwrap();
        self.fetcher.prefetch(resolution, Layout::Aligned, priority)
    }

    /// Closes everything and opens it again, on the same directory and origin.
    pub(crate) async fn restart(self) -> Self {
        let Self { origin, fetcher, directory } = self;
        fetcher.close().await;
        fetcher.store().close().await.unwrap();
        drop(fetcher);
        let store = open(directory.path()).await;
        let fetcher = Fetcher::start(store, Arc::new(origin.clone()), Config::default());
        Self { origin, fetcher, directory }
    }
}

/// Waits until something is so, and not for ever.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it never was so");
}

/// Ends a test that hangs.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(40), work).await.expect("it hangs")
}
