//! What every source must do, as one suite that runs against any of them.
//!
//! The suite panics at the first promise that is not kept, with the promise in the message.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join_all};
use weightd_types::{ByteRange, Object, SourceUri};

use crate::{Listed, Opener, Source, SourceError};

/// Long enough that no transport delivers it in one piece.
const LARGE_BYTES: usize = 3 << 20;

/// Names that are legal, and easy to break by escaping too little or too much.
pub const ODD_NAMES: [&str; 17] = [
    "with space.json",
    "ünïcode/模型.json",
    "100%.json",
    "half%20escaped.json",
    "a+b.json",
    "hash#tag.json",
    "part#1",
    "%3F%23.json",
    "question?mark=1.json",
    "amp&ersand;semicolon,comma.json",
    "[brackets]{braces}.json",
    "tilde~quote'.json",
    "at@colon.json",
    "..dots...json",
    ".hidden",
    "equals=dollar$.json",
    "a/b/c/d/deep.json",
];

/// An origin whose objects the suite can change.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// What opens sources of it.
    fn opener(&self) -> Arc<dyn Opener>;

    /// The source below a prefix.
    fn uri(&self, prefix: &str) -> SourceUri;

    /// A source in a bucket, repository or directory that does not exist.
    fn nowhere(&self) -> SourceUri;

    /// Stores an object, or overwrites it. Keys begin with a prefix.
    async fn put(&self, key: &str, bytes: Bytes);

    /// Removes an object; says whether it was there.
    async fn remove(&self, key: &str) -> bool;

    /// Names out of [`ODD_NAMES`] that this origin can hold.
    fn odd_names(&self) -> Vec<&'static str> {
        ODD_NAMES.to_vec()
    }

    /// Whether it can be told that an object was overwritten. Only servers that publish nothing but times of
    /// whole seconds may say no.
    fn tells_overwrites(&self) -> bool {
        true
    }
}

/// Runs the suite.
///
/// # Panics
/// When a promise is not kept.
pub async fn run(fixture: &dyn Fixture) {
    lists_what_is_below_the_prefix(fixture).await;
    reads_any_range(fixture).await;
    odd_names_come_back(fixture).await;
    an_overwritten_object_is_never_mixed(fixture).await;
    what_is_missing_is_not_found(fixture).await;
    reads_run_at_once(fixture).await;
    dropped_streams_leave_nothing_behind(fixture).await;
}

async fn lists_what_is_below_the_prefix(fixture: &dyn Fixture) {
    for (key, len) in [("list/a.json", 2), ("list/sub/b.json", 3), ("list/empty", 0), ("list2/c.json", 4)] {
        fixture.put(key, content(key, len)).await;
    }
    let source = open(fixture, "list").await;
    let objects = objects(source.as_ref()).await;
    let sizes: BTreeMap<&str, u64> =
        objects.iter().map(|(name, object)| (name.as_str(), object.size)).collect();
    let expected = BTreeMap::from([("a.json", 2), ("sub/b.json", 3), ("empty", 0)]);
    assert_eq!(sizes, expected, "a listing has what is below the prefix, with sizes, and nothing beside it");
    let again = self::objects(open(fixture, "list").await.as_ref()).await;
    assert_eq!(objects, again, "two listings of the same objects are equal, versions and checksums too");
    for (name, object) in &objects {
        let bytes = content(&format!("list/{name}"), usize::try_from(object.size).expect("it is small"));
        if let Some(crc32c) = object.checksums.crc32c {
            assert_eq!(crc32c, weightd_types::Crc32c::of(&bytes), "the crc32c of {name}");
        }
    }
}

async fn reads_any_range(fixture: &dyn Fixture) {
    let bytes = content("ranges/large.bin", LARGE_BYTES);
    fixture.put("ranges/large.bin", bytes.clone()).await;
    let source = open(fixture, "ranges").await;
    let object = object(source.as_ref(), "large.bin").await;
    let len = bytes.len() as u64;
    for range in [
        ByteRange::new(0, 1),
        ByteRange::new(len - 1, len),
        ByteRange::new(0, 100),
        ByteRange::new(len / 2 - 7, len / 2 + 7),
        ByteRange::new(len - 100, len),
        ByteRange::new(0, len),
    ] {
        let read = read(source.as_ref(), &object, range).await.expect("a range of an object is read");
        assert_eq!(read, slice(&bytes, range), "{range}");
    }
    let mut whole = Vec::new();
    for start in (0..len).step_by(700_001) {
        let range = ByteRange::at(start, 700_001).intersect(&ByteRange::new(0, len));
        whole.extend(read(source.as_ref(), &object, range).await.expect("a range of an object is read"));
    }
    assert_eq!(whole, bytes, "neighbouring ranges make the whole");
    let reopened = open(fixture, "ranges").await;
    let read = read(reopened.as_ref(), &object, ByteRange::new(3, 9)).await;
    assert_eq!(read.expect("a source that has not listed reads"), slice(&bytes, ByteRange::new(3, 9)));
}

async fn odd_names_come_back(fixture: &dyn Fixture) {
    let names = fixture.odd_names();
    for name in &names {
        let key = format!("odd/{name}");
        fixture.put(&key, content(&key, 64)).await;
    }
    let source = open(fixture, "odd").await;
    let objects = objects(source.as_ref()).await;
    for name in &names {
        let object = objects.get(*name);
        let object = object.unwrap_or_else(|| panic!("{name:?} is not listed, but {:?}", objects.keys()));
        let bytes = read(source.as_ref(), object, ByteRange::new(0, 64)).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{name:?} is listed and cannot be read: {error}"));
        assert_eq!(bytes, content(&format!("odd/{name}"), 64), "{name:?}");
    }
    assert_eq!(objects.len(), names.len(), "{:?}", objects.keys());
}

async fn an_overwritten_object_is_never_mixed(fixture: &dyn Fixture) {
    let (old, new) = (content("old", 4096), content("new", 4096));
    fixture.put("change/a.bin", old.clone()).await;
    let source = open(fixture, "change").await;
    let before = object(source.as_ref(), "a.bin").await;
    fixture.put("change/a.bin", new.clone()).await;
    let after = object(open(fixture, "change").await.as_ref(), "a.bin").await;
    if fixture.tells_overwrites() {
        assert_ne!(before.version, after.version, "an overwritten object has another version");
        match read(source.as_ref(), &before, ByteRange::new(0, 4096)).await {
            Ok(bytes) => assert_eq!(bytes, old, "what is read as the old version is the old version"),
            Err(error) => assert_eq!(error.kind(), "changed", "{error}"),
        }
    }
    let bytes = read(source.as_ref(), &after, ByteRange::new(0, 4096)).await;
    assert_eq!(bytes.expect("the new version is read"), new);
    assert!(fixture.remove("change/a.bin").await, "the fixture removes an object that is there");
    match read(source.as_ref(), &after, ByteRange::new(0, 4096)).await {
        Ok(bytes) => assert_eq!(bytes, new, "an origin that keeps removed objects gives their bytes"),
        Err(error) => {
            assert!(matches!(error.kind(), "changed" | "not_found"), "{error}");
            assert!(error.to_string().contains("a.bin"), "an error names the object: {error}");
        }
    }
}

async fn what_is_missing_is_not_found(fixture: &dyn Fixture) {
    fixture.put("there/a.json", content("there", 1)).await;
    for uri in [fixture.uri("not-there"), fixture.uri("ther"), fixture.nowhere()] {
        let error = match fixture.opener().open(&uri).await {
            Err(error) => error,
            Ok(source) => source.list().await.expect_err("nothing is there"),
        };
        assert_eq!(error.kind(), "not_found", "{uri}: {error}");
    }
}

async fn reads_run_at_once(fixture: &dyn Fixture) {
    let bytes = content("many/large.bin", LARGE_BYTES);
    fixture.put("many/large.bin", bytes.clone()).await;
    let source = open(fixture, "many").await;
    let object = object(source.as_ref(), "large.bin").await;
    let part = LARGE_BYTES as u64 / 24;
    let parts = (0..24).map(|at| {
        let (source, object) = (source.as_ref(), &object);
        async move { read(source, object, ByteRange::at(at * part, part)).await }
    });
    let parts: Vec<Vec<u8>> = join_all(parts)
        .await
        .into_iter()
        .map(|part| part.expect("reads do not get in each other's way"))
        .collect();
    assert_eq!(parts.concat(), bytes[..LARGE_BYTES / 24 * 24]);
}

async fn dropped_streams_leave_nothing_behind(fixture: &dyn Fixture) {
    let bytes = content("drop/large.bin", LARGE_BYTES);
    fixture.put("drop/large.bin", bytes.clone()).await;
    let source = open(fixture, "drop").await;
    let object = object(source.as_ref(), "large.bin").await;
    let whole = ByteRange::new(0, object.size);
    for _ in 0..40 {
        let mut stream = source.read(&object, whole).await.expect("a read begins");
        let first = stream.next().await.expect("there are bytes").expect("they come");
        assert_eq!(first, bytes[..first.len()]);
    }
    let read = read(source.as_ref(), &object, whole).await.expect("a read after dropped ones works");
    assert_eq!(read, bytes);
}

/// Bytes that differ from key to key and from place to place.
fn content(key: &str, len: usize) -> Bytes {
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

fn slice(bytes: &Bytes, range: ByteRange) -> Bytes {
    let at = |offset| usize::try_from(offset).expect("it is within the bytes");
    bytes.slice(at(range.start)..at(range.end))
}

async fn open(fixture: &dyn Fixture, prefix: &str) -> Arc<dyn Source> {
    fixture.opener().open(&fixture.uri(prefix)).await.expect("a source opens")
}

async fn objects(source: &dyn Source) -> BTreeMap<String, Object> {
    let listing = source.list().await.unwrap_or_else(|error| panic!("a listing failed: {error}"));
    let named = |listed: Listed| match listed {
        Listed::Object(object) => (object.path.to_string(), object),
        Listed::Unfit { name, why } => panic!("{name:?} cannot be taken: {why}"),
    };
    listing.into_iter().map(named).collect()
}

async fn object(source: &dyn Source, name: &str) -> Object {
    objects(source).await.remove(name).unwrap_or_else(|| panic!("{name} is not listed"))
}

async fn read(source: &dyn Source, object: &Object, range: ByteRange) -> Result<Vec<u8>, SourceError> {
    let pieces: Vec<Bytes> = source.read(object, range).await?.try_collect().await?;
    Ok(pieces.concat())
}
