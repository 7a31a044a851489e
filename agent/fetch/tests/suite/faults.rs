//! What goes wrong on the way: retried, hedged, or given up by name; never more bytes than need be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use weightd_fetch::{Config, FetchError};
use weightd_source::{ByteStream, Fault, Faults, Listed, MemoryOrigin, Opener, Rule, Source, SourceError};
use weightd_types::{ByteRange, Layout, Object, SourceUri};

use crate::common::{Fixture, MODEL, assert_holds, hasty, put_model, soon};

/// A prefetch through faults, which must end well: the bytes served, and how long it took.
async fn survives(faults: &Faults, config: Config) -> (Fixture, u64, Duration) {
    let fixture = Fixture::faulty(faults, config).await;
    let objects = put_model(&fixture.origin);
    let started = Instant::now();
    let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert_holds(&completed.snapshot.directory.unwrap(), &objects);
    assert!(faults.count() > 0, "no fault was met");
    let size: u64 = objects.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let served = fixture.origin.bytes_served();
    assert!(served < size + size / 4, "{served} bytes served for {size}");
    (fixture, served, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_bodies_resume_at_the_byte_reached() {
    let faults = Faults::new(1)
        .with(Rule::reads(Fault::Reset { after: 3_000_001 }).chance(0.5))
        .with(Rule::reads(Fault::Short { after: 1_500_003 }).chance(0.5))
        .with(Rule::reads(Fault::Reset { after: 0 }).every(9));
    let (fixture, ..) =
        survives(&faults, Config { backoff: Duration::from_millis(2), ..Config::default() }).await;
    drop(fixture);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_asks_to_wait_is_waited_for() {
    let retry_after = Some(Duration::from_millis(900));
    for fault in [Fault::Throttle { retry_after }, Fault::Unavailable { retry_after }] {
        let faults = Faults::new(2).with(Rule::reads(fault).of("1.safetensors").times(1));
        let (_, _, elapsed) = survives(&faults, hasty()).await;
        assert!(elapsed >= Duration::from_millis(900), "{fault:?}: {elapsed:?}");
        let faults = Faults::new(2).with(Rule::lists(fault).times(1));
        let (_, _, elapsed) = survives(&faults, hasty()).await;
        assert!(elapsed >= Duration::from_millis(900), "{fault:?} when listing: {elapsed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_overtaken_by_a_second_request() {
    let faults = Faults::new(3).with(Rule::reads(Fault::Stall { after: 2_000_000, lasting: None }).times(2));
    let config = Config { give_up: Duration::from_secs(30), ..hasty() };
    let (_, _, elapsed) = survives(&faults, config).await;
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}: the stalled request was waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_never_comes_is_given_up_by_name_and_range() {
    let faults = Faults::new(4)
        .with(Rule::reads(Fault::Stall { after: 0, lasting: None }).of("2.safetensors").skip(1));
    let fixture = Fixture::faulty(&faults, hasty()).await;
    put_model(&fixture.origin);
    let error = soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
    assert!(matches!(error, FetchError::Exhausted { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("{MODEL}/2.safetensors: gave up bytes ")) && text.contains("3 attempts"),
        "{text}"
    );
    assert!(error.is_retryable());
    // The origin is well again: what arrived is not asked for again, and all ends well.
    faults.clear();
    let (before, size) = (fixture.origin.bytes_served(), 20 << 20);
    soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
    assert!(fixture.origin.bytes_served() - before < size + (size / 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_fetched_again() {
    for at in [12_000_000, 30] {
        let faults = Faults::new(5).with(Rule::reads(Fault::Flip { at }).of("1.safetensors").times(1));
        let fixture = Fixture::faulty(&faults, hasty()).await;
        let objects = put_model(&fixture.origin);
        let completed = soon(fixture.prefetch(Layout::Aligned)).await.unwrap();
        assert_eq!(faults.count_of("flip"), 1);
        assert_holds(&completed.snapshot.directory.unwrap(), &objects);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_is_always_wrong_is_corruption_and_leaves_nothing() {
    for layout in [Layout::Aligned, Layout::Original] {
        let faults = Faults::new(6).with(Rule::reads(Fault::Flip { at: 12_000_000 }).of("1.safetensors"));
        let fixture = Fixture::faulty(&faults, hasty()).await;
        put_model(&fixture.origin);
        let error = soon(fixture.prefetch(layout)).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { attempts: 3, .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("{MODEL}/1.safetensors: ")), "{error}");
        let record = fixture.store().find(MODEL).unwrap();
        assert!(!record.complete && record.directory.is_none());
        let entry = record
            .manifest
            .objects
            .iter()
            .find(|entry| entry.object.path.as_str() == "1.safetensors")
            .unwrap();
        assert!(!fixture.store().has_blob(&entry.blob));
        faults.clear();
        soon(fixture.prefetch(layout)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overwritten_object_fails_the_fetch_and_spares_the_old_snapshot() {
    let fixture = Fixture::faulty(&Faults::new(7), hasty()).await;
    let objects = put_model(&fixture.origin);
    let old = fixture.prefetch(Layout::Aligned).await.unwrap().snapshot;
    fixture.origin.put("model/2.safetensors", objects[1].1.clone());
    let uri = MODEL.parse().unwrap();
    let resolution = fixture.fetcher.resolve(&uri, &weightd_types::Selection::default()).await.unwrap();
    // Overwritten between listing and reading.
    fixture.origin.put("model/2.safetensors", objects[1].1.clone());
    let error = soon(fixture.fetcher.prefetch(resolution, Layout::Aligned, 0).wait()).await.unwrap_err();
    assert_eq!(error.kind(), "changed", "{error}");
    assert!(error.to_string().contains(&format!("{MODEL}/2.safetensors")), "{error}");
    assert!(fixture.store().is_complete(old.key()).await.unwrap());
    assert_holds(&old.directory.unwrap(), &objects);
    assert_eq!(fixture.store().find(MODEL).unwrap().key(), old.manifest.key());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_no_reason_to_try_again() {
    let faults = Faults::new(8).with(Rule::reads(Fault::Unauthenticated));
    let fixture = Fixture::faulty(&faults, hasty()).await;
    put_model(&fixture.origin);
    let error = soon(fixture.prefetch(Layout::Aligned)).await.unwrap_err();
    assert_eq!(error.kind(), "unauthenticated");
    assert!(!error.is_retryable());
}

/// An origin whose objects are shorter than it says.
#[derive(Debug)]
struct Shorter<T> {
    inner: T,
    /// Bytes that are not there.
    lacking: u64,
}

#[async_trait]
impl Opener for Shorter<MemoryOrigin> {
    async fn open(&self, uri: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        Ok(Arc::new(Shorter { inner: self.inner.open(uri).await?, lacking: self.lacking }))
    }
}

#[async_trait]
impl Source for Shorter<Arc<dyn Source>> {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let longer = |mut listed| {
            if let Listed::Object(object) = &mut listed {
                object.size += self.lacking;
            }
            listed
        };
        Ok(self.inner.list().await?.into_iter().map(longer).collect())
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let there = ByteRange::new(0, object.size - self.lacking).intersect(&range);
        if there.is_empty() { Ok(stream::empty().boxed()) } else { self.inner.read(object, there).await }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_shorter_than_listed_is_given_up_by_name_and_not_kept() {
    // Within one chunk; the last chunk, all of it.
    for (len, lacking) in [(1000, 1), (20 << 20, 4 << 20)] {
        let origin = MemoryOrigin::new("origin");
        origin.put("model/weights.bin", vec![5; len]);
        let opener = Arc::new(Shorter { inner: origin.clone(), lacking });
        let fixture = Fixture::over(origin, opener, hasty()).await;
        let error = soon(fixture.prefetch(Layout::Original)).await.unwrap_err();
        assert!(matches!(error, FetchError::Exhausted { attempts: 3, .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("{MODEL}/weights.bin: gave up ")), "{text}");
        assert!(text.contains("the answer ended with "), "{text}");
        let served = fixture.origin.bytes_served();
        assert!(served <= len as u64, "{served} bytes served of {len}: what came is not asked for again");
        assert!(fixture.origin.read_calls() <= 8, "{}", fixture.origin.read_calls());
        let record = fixture.store().find(MODEL).unwrap();
        assert!(!record.complete && record.directory.is_none());
        assert!(!fixture.store().has_blob(&record.manifest.objects[0].blob));
        let gone = async {
            // Workers that were under way may have it open for a moment.
            while fixture.store().usage().await.unwrap().used > 0 {
                fixture.store().checkpoint().await.unwrap();
                fixture.store().collect_garbage(true).await.unwrap();
            }
        };
        soon(gone).await;
    }
}
