use std::time::Instant;

use super::*;
use crate::{StaticFile, StaticServer};

const BYTES: usize = 1 << 20;

async fn fixture() -> (StaticServer, FaultProxy, String) {
    let server = StaticServer::start().await.unwrap();
    server.put("/w", StaticFile::new(crate::Pattern::new(1).bytes(0, BYTES)));
    let proxy = FaultProxy::start(&server.url()).await.unwrap();
    let url = format!("{}/w", proxy.url());
    (server, proxy, url)
}

async fn read(url: &str) -> (Vec<u8>, bool) {
    let mut answer = serve::client().get(url).send().await.unwrap();
    let mut got = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => got.extend(chunk),
            Ok(None) => return (got, true),
            Err(_) => return (got, false),
        }
    }
}

#[tokio::test]
async fn without_a_fault_everything_passes() {
    let (server, proxy, url) = fixture().await;
    assert_eq!(read(&url).await, (crate::Pattern::new(1).bytes(0, BYTES), true));
    assert_eq!(proxy.bytes(), BYTES as u64);
    let head = serve::client().head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "1048576");
    assert_eq!(proxy.requests().all().len(), server.requests().all().len());
}

#[tokio::test]
async fn faults_strike_as_often_as_asked_and_where() {
    let (server, proxy, url) = fixture().await;
    proxy.inject("GET /other", 1, Fault::Status { code: 500, retry_after: None });
    proxy.inject("GET /w", 1, Fault::Status { code: 503, retry_after: Some(2) });
    let struck = serve::client().get(&url).send().await.unwrap();
    assert_eq!((struck.status().as_u16(), &struck.headers()["retry-after"]), (503, &2.into()));
    assert!(server.requests().all().is_empty());
    assert!(read(&url).await.1);
}

#[tokio::test]
async fn a_reset_comes_after_the_bytes_that_were_promised() {
    let (_server, proxy, url) = fixture().await;
    proxy.inject("GET", 1, Fault::ResetAfter(300_000));
    let (got, whole) = read(&url).await;
    assert_eq!((got.len(), whole), (300_000, false));
    assert_eq!(got, crate::Pattern::new(1).bytes(0, 300_000));
}

#[tokio::test]
async fn a_flip_hits_the_same_byte_of_the_object_in_any_range() {
    let (_server, proxy, url) = fixture().await;
    proxy.inject("GET", 2, Fault::Flip(700_001));
    let right = crate::Pattern::new(1).bytes(0, BYTES);
    let (whole, _) = read(&url).await;
    let differ: Vec<usize> = (0..BYTES).filter(|at| whole[*at] != right[*at]).collect();
    assert_eq!(differ, [700_001]);
    let part = serve::client().get(&url).header("range", "bytes=700000-700009").send().await.unwrap();
    let part = part.bytes().await.unwrap();
    assert_eq!(part[1], right[700_001] ^ 1);
    assert_eq!((part[0], &part[2..]), (right[700_000], &right[700_002..700_010]));
}

#[tokio::test]
async fn stalls_and_limits_take_their_time() {
    let (_server, proxy, url) = fixture().await;
    proxy.inject("GET", 1, Fault::Stall { after: 1000, pause: Duration::from_millis(300) });
    let started = Instant::now();
    assert!(read(&url).await.1);
    assert!(started.elapsed() >= Duration::from_millis(300));
    proxy.limit(4 << 20);
    let started = Instant::now();
    assert!(read(&url).await.1);
    assert!(started.elapsed() >= Duration::from_millis(200));
}
