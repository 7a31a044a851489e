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
