//! FAKE: an agent that gives canned answers over a real socket. It exists so that what the command line makes of an
//! answer can be tested for answers that a real agent gives rarely. It stores and fetches nothing.

use std::{path::PathBuf, pin::Pin};

use futures::{Stream, StreamExt, stream};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use weightd_proto::v1::{
    self,
    weights_server::{Weights, WeightsServer},
};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What to answer. Calls without an answer are unknown to this agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Canned {
    /// Every call fails so.
    pub(crate) failure: Option<Status>,
    pub(crate) prefetch: Vec<v1::prefetch_event::Event>,
    /// A prefetch does not end after its events.
    pub(crate) prefetch_hangs: bool,
    pub(crate) verify: Vec<v1::verify_event::Event>,
    pub(crate) list: Vec<v1::SnapshotInfo>,
    pub(crate) get: Option<v1::GetResponse>,
    pub(crate) resolve: Option<v1::ResolveResponse>,
    pub(crate) status: Option<v1::StatusResponse>,
}

/// A fake agent at work; ends when dropped.
pub(crate) struct FakeAgent {
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeAgent {
    pub(crate) fn start(canned: Canned) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("fake.sock");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = {
            let _entered = runtime.enter();
            UnixListener::bind(&socket).unwrap()
        };
        let server = Server::builder().add_service(WeightsServer::new(canned));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { socket, _directory: directory, _runtime: runtime }
    }
}

impl Canned {
    fn answer<T>(&self, answer: Option<T>) -> Result<Response<T>, Status> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => answer.map(Response::new).ok_or_else(|| Status::unimplemented("not canned")),
        }
    }
}

#[tonic::async_trait]
impl Weights for Canned {
    type PrefetchStream = Answers<v1::PrefetchEvent>;
    type VerifyStream = Answers<v1::VerifyEvent>;

    async fn prefetch(
        &self,
        _: Request<v1::PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let events =
            self.prefetch.clone().into_iter().map(|event| Ok(v1::PrefetchEvent { event: Some(event) }));
        let events = stream::iter(events);
        match self.prefetch_hangs {
            true => self.answer(Some(events.chain(stream::pending()).boxed())),
            false => self.answer(Some(events.boxed())),
        }
    }

    async fn verify(&self, _: Request<v1::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let events = self.verify.clone().into_iter().map(|event| Ok(v1::VerifyEvent { event: Some(event) }));
        self.answer(Some(stream::iter(events).boxed()))
    }

    async fn resolve(&self, _: Request<v1::ResolveRequest>) -> Result<Response<v1::ResolveResponse>, Status> {
        self.answer(self.resolve.clone())
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        self.answer(Some(v1::ListResponse { snapshots: self.list.clone() }))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.answer(self.get.clone())
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.answer(self.status.clone())
    }

    async fn pin(&self, _: Request<v1::PinRequest>) -> Result<Response<v1::PinResponse>, Status> {
        self.answer(None)
    }

    async fn unpin(&self, _: Request<v1::UnpinRequest>) -> Result<Response<v1::UnpinResponse>, Status> {
        self.answer(None)
    }

    async fn remove(&self, _: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        self.answer(None)
    }

    async fn set_wanted(
        &self,
        _: Request<v1::SetWantedRequest>,
    ) -> Result<Response<v1::SetWantedResponse>, Status> {
        self.answer(None)
    }

    async fn collect_garbage(
        &self,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        self.answer(None)
    }
}

/// A complete snapshot.
pub(crate) fn snapshot() -> v1::SnapshotInfo {
    v1::SnapshotInfo {
        id: "0123456789abcdef".repeat(4),
        source: "gs://bucket/model".to_owned(),
        layout: v1::Layout::Aligned.into(),
        state: v1::SnapshotState::Complete.into(),
        size_bytes: 3 << 30,
        present_bytes: 3 << 30,
        object_count: 2,
        pinned: true,
        wanted: false,
        in_use: false,
        resolved_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        last_used_at: None,
        directory: "/store/snapshots/0123".to_owned(),
    }
}
