//! What can go wrong with the cluster.

use kube::runtime::watcher;

/// What went wrong with the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nobody says where the API is.
    #[error("no Kubernetes API: {0}; run in a pod with a service account, or set KUBECONFIG")]
    NoConfiguration(String),
    /// The API refused, or could not be reached.
    #[error("cannot {what}: {}", words(source))]
    Api {
        /// What was attempted.
        what: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API did not answer.
    #[error("cannot {what}: no answer in {seconds} s; it is tried again")]
    Silent {
        /// What was attempted.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

impl ClusterError {
    pub(crate) fn api(what: impl Into<String>, source: kube::Error) -> Self {
        Self::Api { what: what.into(), source: Box::new(source) }
    }

    /// Whether it is about the call that failed, so that the next may succeed at once. All else is the API's own trouble.
    pub(crate) fn is_of_the_call(&self) -> bool {
        self.refusal().is_some_and(|status| (400..500).contains(&status.code) && status.code != 429)
    }

    /// What the API refused with, if it did.
    pub(crate) fn refusal(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::NoConfiguration(_) | Self::Silent { .. } => None,
        }
    }
}

/// What the API said, without the whole of its answer.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => {
            format!(
                "{}; docs/WANTED.md lists the rights that the driver's service account needs",
                status.message
            )
        }
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The same of a watch.
pub(crate) fn watch_words(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => words(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}
