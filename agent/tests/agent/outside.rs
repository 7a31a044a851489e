//! What can be seen of an agent from outside its process: the socket, metrics and health.

use std::os::unix::fs::PermissionsExt;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weightd_client::Client;

use crate::harness::{config, model, prefetch, request, start};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The value of a metric without labels.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_socket_is_private_and_metrics_and_health_are_told_over_http() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "");
    let socket = config.socket.clone();
    let mut agent = start(config, &model(9 << 20)).await;
    agent.listen().await.unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let client = Client::connect(&socket).await.unwrap();
    prefetch(&client, request("memory://m/model")).await.unwrap();

    let http = agent.http_address().expect("a port was asked for");
    assert!(http.ip().is_loopback());
    assert!(get(http, "/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(http, "/ready").await.ends_with("ready\n"));
    assert!(get(http, "/other").await.starts_with("HTTP/1.1 404"));
    let metrics = get(http, "/metrics").await;
    assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
    assert!(metrics.contains("weightd_agent_build_info{version="), "{metrics}");
    assert!(value(&metrics, "weightd_agent_start_time_seconds") > 1.7e9);
    assert!(value(&metrics, "weightd_fetch_fetched_bytes_total") >= 9.0 * 1024.0 * 1024.0);
    assert!(value(&metrics, "weightd_store_snapshots") >= 1.0);
    assert!(value(&metrics, "weightd_store_used_bytes") >= 9.0 * 1024.0 * 1024.0);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_port_or_socket_that_is_taken_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(directory.path(), "");
    config.metrics_address = Some(taken.local_addr().unwrap());
    let socket = config.socket.clone();
    let mut agent = start(config, &model(1)).await;
    let error = agent.listen().await.unwrap_err().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
    agent.shutdown().await;
    assert!(!socket.exists(), "an agent that did not start leaves no socket");
}
