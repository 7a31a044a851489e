//! Calls to the Kubernetes API: each ends in time, and its error says what it was for.

use std::time::Duration;

use crate::ClusterError;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The API that this process is meant to talk to: that of the cluster it runs in, or the one that `KUBECONFIG` names.
///
/// # Errors
/// [`ClusterError::NoConfiguration`].
pub async fn client() -> Result<kube::Client, ClusterError> {
    let configuration = kube::Config::infer().await;
    let configuration = configuration.map_err(|error| ClusterError::NoConfiguration(error.to_string()))?;
    of(configuration)
}

/// A client that makes each call once: what is to be tried again, and when, is decided where it is known what it is for.
fn of(mut configuration: kube::Config) -> Result<kube::Client, ClusterError> {
    configuration.default_retry = false;
    kube::Client::try_from(configuration).map_err(|error| ClusterError::NoConfiguration(error.to_string()))
}

pub(crate) async fn within<T>(
    what: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer.map_err(|source| ClusterError::api(what, source)),
        Err(_) => Err(ClusterError::Silent { what: what.to_owned(), seconds: PATIENCE.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use k8s_openapi::api::core::v1::Node;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn an_api_that_is_overloaded_is_asked_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let answer =
                    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let client = of(kube::Config::new(url)).unwrap();
        let error = within("look", kube::Api::<Node>::all(client).get("n")).await.unwrap_err();
        assert!(!error.is_of_the_call() && !error.to_string().contains("no answer"), "{error}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        server.abort();
    }
}
