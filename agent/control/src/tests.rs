//! An agent's service without an agent, on a disk that fails when a test says so.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Status};
use weightd_access::Access;
use weightd_expose::{Demands, Volumes};
use weightd_fetch::Fetcher;
use weightd_proto::v1::{self, FailureKind, volumes_server::Volumes as _};
use weightd_source::MemoryOrigin;
use weightd_store::{
    Store,
    io::{BufferPool, IoEngine, PowerLossEngine},
};

use crate::{Control, Loads};

/// Everything that a call may touch.
pub(crate) struct Fixture {
    pub(crate) origin: MemoryOrigin,
    pub(crate) disk: PowerLossEngine,
    pub(crate) control: Control,
    directory: tempfile::TempDir,
}

impl Fixture {
    /// An empty store, and the origin `memory://m`.
    pub(crate) async fn new() -> Self {
        Self::with_access(weightd_access::Config::default()).await
    }

    /// The same where an operator decided something. Kubelet's directory is one of the fixture's.
    async fn with_access(access: weightd_access::Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kubelet_directory = kubelet(directory.path());
        std::fs::create_dir(&kubelet_directory).unwrap();
        let mut config = weightd_store::Config::new(directory.path().join("store"));
        config.floor = 0.0;
        std::fs::create_dir_all(&config.directory).unwrap();
        let disk = PowerLossEngine::new(&config.directory).unwrap();
        let engine: Arc<dyn IoEngine> = Arc::new(disk.clone());
        let store = tokio::task::spawn_blocking(move || {
            Store::open_on(config, BufferPool::new(4).unwrap(), engine).unwrap()
        });
        let store = store.await.unwrap();
        let origin = MemoryOrigin::new("m");
        let access =
            Access::new(Arc::new(origin.clone()), weightd_access::Config { kubelet_directory, ..access });
        let fetcher = Fetcher::start(store.clone(), access.opener(), weightd_fetch::Config::default());
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let loads = Loads::new(fetcher.clone(), access.clone(), tasks.clone(), stopping.clone());
        let loads = Arc::new(loads);
        let expose = weightd_expose::Config::new(directory.path().join("fuse"));
        let volumes = Volumes::new(store, expose, Arc::clone(&loads) as Arc<dyn Demands>).unwrap();
        let control = Control::new(fetcher, access, volumes, loads, tasks, stopping);
        Self { origin, disk, control, directory }
    }

    /// What a pod is answered that wants a volume pinned, of a source at which there is nothing.
    async fn pin_nothing(&self) -> Status {
        let target = kubelet(self.directory.path()).join("pods/one/mount");
        let request = v1::PublishRequest {
            source: "memory://m/nothing".to_owned(),
            target_path: target.display().to_string(),
            pin: true,
            pod: Some(v1::Pod { name: "one".to_owned(), ..v1::Pod::default() }),
            ..v1::PublishRequest::default()
        };
        self.control.publish(Request::new(request)).await.unwrap_err()
    }
}

fn kubelet(directory: &Path) -> PathBuf {
    directory.join("kubelet")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_pins_is_refused_unless_the_operator_lets_pods() {
    let refused = Fixture::new().await.pin_nothing().await;
    assert_eq!(refused.code(), FailureKind::NotPermitted.code(), "{refused:?}");
    assert!(refused.message().contains("access.pods_may_pin = true"), "{refused:?}");
    let lenient = weightd_access::Config { pods_may_pin: true, ..weightd_access::Config::default() };
    let missing = Fixture::with_access(lenient).await.pin_nothing().await;
    assert_eq!(missing.code(), FailureKind::NotFound.code(), "{missing:?}");
}
