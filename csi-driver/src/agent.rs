//! The agent of this node, as the driver asks it. Agents come and go: a call while none is there fails at once, every
//! other is over in a time that is known, and the next finds the next agent.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;
use weightd_client::{Client, Error};
use weightd_proto::v1;

use crate::error::CallError;

/// For calls that only look.
const LOOK: Duration = Duration::from_secs(10);
/// For taking a volume away.
const UNPUBLISH: Duration = Duration::from_secs(60);
/// For listing a source.
const RESOLVE: Duration = Duration::from_secs(60);
/// For making a volume. Longer than kubelet's patience: a call that was cut off might mount something after all, when
/// the driver has long taken its target for free.
const PUBLISH: Duration = Duration::from_secs(600);
/// How long the agent may take to say that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// The agent, whichever one runs.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    socket: PathBuf,
    calls: Client,
    /// A connection carries a number of calls at once. Those that wait for whole models have one of their own, so that
    /// the others need not wait for them.
    waits: Client,
}

impl Agent {
    /// Connects when it is used. Needs a tokio runtime.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), calls: Client::lazy(socket), waits: Client::lazy(socket) }
    }

    /// A client of the same agent, for others in this process.
    pub(crate) fn client(&self) -> Client {
        self.calls.clone()
    }

    /// Makes a volume, and says what it is.
    pub(crate) async fn publish(&self, request: v1::PublishRequest) -> Result<v1::VolumeInfo, CallError> {
        let what = format!("show {} at {}", request.source, request.target_path);
        let answer = self.within(PUBLISH, &what, self.calls.publish(request)).await?;
        answer
            .volume
            .ok_or_else(|| CallError::Defect("the agent made a volume and did not say which".to_owned()))
    }

    /// Waits until a volume that is there is complete, for as long as the caller does.
    pub(crate) async fn wait(&self, request: v1::PublishRequest) -> Result<(), CallError> {
        let request = v1::PublishRequest { wait: true, ..request };
        self.waits.publish(request).await.map(drop).map_err(|error| self.failed(error))
    }

    /// Takes a volume away; says whether there was one.
    pub(crate) async fn unpublish(&self, target: &Path) -> Result<bool, CallError> {
        let what = format!("unmount {}", target.display());
        self.within(UNPUBLISH, &what, self.calls.unpublish(text(target))).await
    }

    /// Sizes of a volume.
    pub(crate) async fn stats(&self, target: &Path) -> Result<v1::StatsResponse, CallError> {
        let what = format!("measure {}", target.display());
        self.within(LOOK, &what, self.calls.volume_stats(text(target))).await
    }

    /// What is shown where.
    pub(crate) async fn volumes(&self) -> Result<Vec<v1::VolumeInfo>, CallError> {
        Ok(self.within(LOOK, "list its volumes", self.calls.list_volumes()).await?.volumes)
    }

    /// What a source is now.
    pub(crate) async fn resolve(
        &self,
        request: v1::ResolveRequest,
    ) -> Result<v1::ResolveResponse, CallError> {
        let what = format!("list {}", request.source);
        self.within(RESOLVE, &what, self.calls.resolve(request)).await
    }

    /// Whether it is there; why not, if it is not.
    pub(crate) async fn reach(&self) -> Result<(), CallError> {
        self.within(SIGN_OF_LIFE, "say that it is there", self.calls.status()).await.map(drop)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, CallError> {
        match timeout(limit, call).await {
            Ok(outcome) => outcome.map_err(|error| self.failed(error)),
            Err(_) => Err(CallError::Slow { what: what.to_owned(), limit }),
        }
    }

    fn failed(&self, error: Error) -> CallError {
        let socket = self.socket.clone();
        match error {
            Error::Connect(error) => CallError::Away { socket, why: error.to_string() },
            Error::Lost(why) => CallError::Away { socket, why },
            Error::Failed { kind, message, remedy } => CallError::Agent { kind, message, given: remedy },
        }
    }
}

fn text(target: &Path) -> String {
    // Targets came as text.
    target.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn an_agent_that_is_away_is_away_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weightd.sock");
        let agent = Agent::new(&socket);
        for why in ["No such file", "Connection refused"] {
            let error = agent.reach().await.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable);
            let words = error.to_string();
            assert!(words.contains(why) && words.contains(socket.to_str().unwrap()), "{words}");
            // A standard listener leaves its file behind, as a killed agent does.
            drop(UnixListener::bind(&socket));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_never_answers_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("weightd.sock");
        let _silent = UnixListener::bind(&socket).unwrap();
        let error = Agent::new(&socket).unpublish(Path::new("/t")).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    }
}
