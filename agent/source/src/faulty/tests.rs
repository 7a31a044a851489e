use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};

use super::*;
use crate::MemoryOrigin;

const LEN: u64 = 600 << 10;

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at % 251) as u8).collect()
}

async fn spoiled(faults: &Faults) -> (Arc<dyn Source>, Object) {
    let origin = MemoryOrigin::new("m");
    origin.put("a", content());
    let uri: SourceUri = "memory://m".parse().unwrap();
    let listing = origin.open(&uri).await.unwrap().list().await.unwrap();
    let object = listing[0].object().unwrap().clone();
    let opener = FaultyOpener::new(Arc::new(origin), faults.clone());
    (opener.open(&uri).await.unwrap(), object)
}

/// What came, and how it ended.
async fn read(source: &dyn Source, object: &Object, range: ByteRange) -> (Vec<u8>, Option<&'static str>) {
    let mut stream = match source.read(object, range).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error.kind())),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Some(error.kind())),
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn bodies_break_end_early_and_lie() {
    let whole = ByteRange::new(0, LEN);
    for after in [0, 1, 256 << 10, 300_000] {
        let faults = Faults::new(1)
            .with(Rule::reads(Fault::Reset { after }).times(1))
            .with(Rule::reads(Fault::Short { after }).skip(1).times(1));
        let (source, object) = spoiled(&faults).await;
        let begin = content()[..usize::try_from(after).unwrap()].to_vec();
        assert_eq!(read(source.as_ref(), &object, whole).await, (begin.clone(), Some("interrupted")));
        assert_eq!(read(source.as_ref(), &object, whole).await, (begin, None));
        assert_eq!(read(source.as_ref(), &object, whole).await, (content(), None));
        assert_eq!((faults.count(), faults.count_of("reset"), faults.count_of("short")), (2, 1, 1));
    }
}

#[tokio::test]
async fn a_flipped_byte_is_the_same_in_every_read_that_holds_it() {
    let faults = Faults::new(1).with(Rule::reads(Fault::Flip { at: 300_000 }).of("a"));
    let (source, object) = spoiled(&faults).await;
    for range in [ByteRange::new(0, LEN), ByteRange::new(300_000, 300_001), ByteRange::new(299_999, 300_010)]
    {
        let (bytes, _) = read(source.as_ref(), &object, range).await;
        let right = content().into_iter().skip(usize::try_from(range.start).unwrap());
        let offsets = range.start..range.end;
        let pairs = offsets.zip(bytes.iter().zip(right));
        let wrong: Vec<u64> =
            pairs.filter(|(_, (got, right))| *got != right).map(|(offset, _)| offset).collect();
        assert_eq!((wrong, bytes.len() as u64), (vec![300_000], range.len()), "{range}");
    }
    assert_eq!(read(source.as_ref(), &object, ByteRange::new(0, 300_000)).await.0, content()[..300_000]);
    assert_eq!(faults.count_of("flip"), 3);
}

#[tokio::test(start_paused = true)]
async fn time_passes_as_planned() {
    let hour = Duration::from_secs(3600);
    let faults = Faults::new(1)
        .with(Rule::reads(Fault::Latency(hour)).times(1))
        .with(Rule::reads(Fault::Stall { after: 1000, lasting: Some(hour) }).skip(1).times(1))
        .with(Rule::reads(Fault::Stall { after: 1000, lasting: None }).skip(2));
    let (source, object) = spoiled(&faults).await;
    let whole = ByteRange::new(0, LEN);
    for _ in 0..2 {
        let begin = Instant::now();
        assert_eq!(read(source.as_ref(), &object, whole).await, (content(), None));
        assert!(begin.elapsed() >= hour && begin.elapsed() < 2 * hour);
    }
    let mut stream = source.read(&object, whole).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().len(), 1000);
    assert!(timeout(100 * hour, stream.next()).await.is_err(), "a stall for ever lasts");
}

#[tokio::test]
async fn answers_instead_of_bodies() {
    let soon = Some(Duration::from_secs(3));
    let faults = Faults::new(1)
        .with(Rule::lists(Fault::Unavailable { retry_after: None }).times(1))
        .with(Rule::reads(Fault::Throttle { retry_after: soon }).every(3))
        .with(Rule::reads(Fault::Changed).of("b"));
    let (source, object) = spoiled(&faults).await;
    assert_eq!(source.list().await.unwrap_err().kind(), "unavailable");
    assert!(source.list().await.is_ok());
    let mut kinds = Vec::new();
    for _ in 0..6 {
        kinds.push(read(source.as_ref(), &object, ByteRange::new(0, 1)).await.1);
    }
    assert_eq!(kinds, [None, None, Some("throttled"), None, None, Some("throttled")]);
    faults.clear();
    assert_eq!(read(source.as_ref(), &object, ByteRange::new(0, LEN)).await.1, None);
    faults.add(Rule::reads(Fault::Throttle { retry_after: soon }));
    let error = source.read(&object, ByteRange::new(0, 1)).await.err().unwrap();
    assert_eq!(error.retry_after(), soon);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let mut outcomes = Vec::new();
    for seed in [7, 7, 8] {
        let faults = Faults::new(seed).with(Rule::reads(Fault::Changed).chance(0.5));
        let (source, object) = spoiled(&faults).await;
        let mut outcome = Vec::new();
        for _ in 0..64 {
            outcome.push(read(source.as_ref(), &object, ByteRange::new(0, 1)).await.1.is_some());
        }
        outcomes.push(outcome);
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert_ne!(outcomes[0], outcomes[2]);
    assert!((10..54).contains(&outcomes[0].iter().filter(|failed| **failed).count()));
}

#[tokio::test]
async fn without_rules_nothing_is_spoiled() {
    let (source, object) = spoiled(&Faults::new(1)).await;
    let pieces: Vec<Bytes> =
        source.read(&object, ByteRange::new(0, LEN)).await.unwrap().try_collect().await.unwrap();
    assert_eq!(pieces.concat(), content());
}
