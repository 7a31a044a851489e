//! What a caller is told about a socket that no agent serves.

use std::{fs, os::unix::net::UnixListener};

use weightd_client::{Client, ConnectError, Error};

async fn failure(socket: &std::path::Path) -> ConnectError {
    match Client::connect(socket).await {
        Err(Error::Connect(error)) => error,
        other => panic!("expected a connection error, got {other:?}"),
    }
}

#[tokio::test]
async fn each_kind_of_absence_is_told_apart_and_names_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weightd.sock");

    let error = failure(&socket).await;
    assert!(matches!(error, ConnectError::Missing { .. }), "{error:?}");
    assert!(error.to_string().contains(socket.to_str().unwrap()));
    assert!(error.to_string().contains("--store DIR"));

    drop(UnixListener::bind(&socket).unwrap());
    let error = failure(&socket).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");

    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "text").unwrap();
    let error = failure(&socket).await;
    assert!(matches!(error, ConnectError::NotASocket { .. }), "{error:?}");

    let error = failure(&socket.join("below")).await;
    assert!(matches!(error, ConnectError::Missing { .. }), "{error:?}");

    let long = directory.path().join("s".repeat(200));
    let error = failure(&long).await;
    assert!(error.to_string().contains("shorter"), "{error}");
}

#[tokio::test]
async fn a_client_that_outlives_agents_fails_at_once_while_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("weightd.sock");
    let client = Client::lazy(&socket);
    for why in ["No such file", "refused"] {
        let error = client.list().await.unwrap_err();
        assert!(matches!(&error, Error::Lost(words) if words.contains(why)), "{error:?}");
        drop(UnixListener::bind(&socket));
    }
}
