//! Every metric is moved by something.

use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::common::{bring, config, in_memory, open, plain};

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves() {
    let directory = in_memory();
    let mut config = config(directory.path());
    config.quota_bytes = Some(3 << 20);
    let store = open(&config);
    let (gone, kept) = (plain("gone", 1 << 20), plain("kept", 1 << 20));
    bring(&store, &[&gone]).await.unwrap();
    let promise = store.reserve(3 << 20).await.unwrap();
    drop(promise);
    bring(&store, &[&kept]).await.unwrap();
    let blob = store.stored_blob(kept.key()).await.unwrap().unwrap();
    let mut bytes = kept.blob.clone();
    bytes[7] ^= 1;
    std::fs::write(blob.path(), bytes).unwrap();
    let (mut buffer, good) = blob.check_chunk(0, store.pool().acquire().await).await.unwrap();
    assert!(!good);
    buffer.clear();
    buffer.extend_from_slice(&kept.blob);
    blob.repair_chunk(0, buffer).await.unwrap();
    let _promise = store.reserve(5).await.unwrap();
    let _buffer = store.pool().acquire().await;
    store.refresh_metrics().await;
    let (mut registry, mut text) = (Registry::default(), String::new());
    store.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(values.len(), 11, "{text}");
    for line in values {
        assert!(line.starts_with("weightd_store_") && !line.ends_with(" 0"), "nobody moves {line}");
    }
}
