//! How an agent ends, and what it leaves to the next.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use weightd::StartError;
use weightd_client::Client;
use weightd_proto::v1::{FailureKind, VerifyRequest, prefetch_event::Event};

use crate::harness::{config, model, next, prefetch, request, start};

#[tokio::test]
async fn an_agent_that_ends_cuts_off_its_calls_with_a_reason_and_removes_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "[fetch]\nbandwidth = \"1MiB/s\"");
    let socket = config.socket.clone();
    let mut agent = start(config, &model(24 << 20)).await;
    agent.listen().await.unwrap();
    let client = Client::connect(&socket).await.unwrap();
    let mut events = client.prefetch(request("memory://m/model")).await.unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Resolved(_))));
    let started = Instant::now();
    let (ended, ()) = tokio::join!(
        async {
            loop {
                if let Err(error) = next(&mut events).await {
                    break error;
                }
            }
        },
        agent.shutdown()
    );
    assert_eq!(ended.kind(), FailureKind::TryAgain, "{ended}");
    assert!(ended.to_string().contains("shutting down"), "{ended}");
    assert!(started.elapsed() < Duration::from_secs(8), "nothing had to be cut off: {:?}", started.elapsed());
    assert!(!socket.exists());
    assert!(Client::connect(&socket).await.is_err());
}

#[tokio::test]
async fn clients_that_are_silent_or_stopped_do_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "");
    let socket = config.socket.clone();
    let mut agent = start(config, &model(10)).await;
    agent.listen().await.unwrap();
    let idle = Client::connect(&socket).await.unwrap();
    idle.list().await.unwrap();
    let _silent = UnixStream::connect(&socket).await.unwrap();
    let _silent_http = TcpStream::connect(agent.http_address().unwrap()).await.unwrap();
    // It greets as HTTP/2 does, and is stopped: nothing that the agent sends is ever answered.
    let mut stopped = UnixStream::connect(&socket).await.unwrap();
    stopped.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    assert!(stopped.read_u8().await.is_ok(), "the agent greets back");

    let started = Instant::now();
    agent.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(idle.list().await.is_err());
}

#[tokio::test]
async fn a_store_has_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let agent = start(config(directory.path(), ""), &model(10)).await;
    let error = weightd::Agent::start(config(directory.path(), "")).await.unwrap_err();
    assert!(matches!(error, StartError::Store(_)), "{error:?}");
    assert_eq!(error.kind(), FailureKind::TryAgain);
    assert!(error.to_string().contains("in use by another agent"), "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    agent.shutdown().await;
    let next = weightd::Agent::start(config(directory.path(), "")).await.unwrap();
    next.shutdown().await;
}

#[tokio::test]
async fn an_agent_finds_what_another_left() {
    let directory = tempfile::tempdir().unwrap();
    let origin = model(9 << 20);
    let agent = start(config(directory.path(), ""), &origin).await;
    prefetch(&crate::harness::client(&agent), request("memory://m/model")).await.unwrap();
    agent.shutdown().await;
    let reads = origin.read_calls();
    let agent = start(config(directory.path(), ""), &origin).await;
    let client = crate::harness::client(&agent);
    prefetch(&client, request("memory://m/model")).await.unwrap();
    assert_eq!(origin.read_calls(), reads);
    let mut events = client.verify(VerifyRequest::default()).await.unwrap();
    while events.next().await.unwrap().is_some() {}
    agent.shutdown().await;
}
