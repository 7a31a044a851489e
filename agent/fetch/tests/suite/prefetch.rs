//! From an origin in memory into a real store: what a prefetch brings, and what it does not ask for twice.

use crate::common::{Fixture, assert_holds, put_model};
use weightd_types::Layout;

#[tokio::test(flavor = "multi_thread")]
async fn a_model_arrives_whole_and_a_second_prefetch_reads_nothing() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    let completed = fixture.prefetch(Layout::Aligned).await.unwrap();
    let directory = completed.snapshot.directory.clone().unwrap();
    assert_holds(&directory, &objects);
    assert!(directory.join(".weightd.sock").exists());
    assert_eq!(completed.reused_bytes, 0);

    let (lists, reads) = (fixture.origin.list_calls(), fixture.origin.read_calls());
    let again = fixture.prefetch(Layout::Aligned).await.unwrap();
    assert_eq!(again.fetched_bytes, 0);
    assert_eq!(fixture.origin.list_calls(), lists + 1);
    assert_eq!(fixture.origin.read_calls(), reads);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_layout_is_made_locally() {
    let fixture = Fixture::new().await;
    let objects = put_model(&fixture.origin);
    fixture.prefetch(Layout::Aligned).await.unwrap();
    let served = fixture.origin.bytes_served();
    let original = fixture.prefetch(Layout::Original).await.unwrap();
    let directory = original.snapshot.directory.unwrap();
    for (name, bytes) in &objects {
        assert!(std::fs::read(directory.join(name)).unwrap() == bytes.as_ref(), "{name} differs");
    }
    // Headers are asked for again; data is not.
    assert!(fixture.origin.bytes_served() - served < 1 << 20);
}
