//! An agent's service without an agent, on a disk that fails when a test says so.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_access::Access;
use weightd_expose::{Demands, Volumes};
use weightd_fetch::Fetcher;
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
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// An empty store, and the origin `memory://m`.
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
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
        let access = Access::new(Arc::new(origin.clone()), weightd_access::Config::default());
        let fetcher = Fetcher::start(store.clone(), access.opener(), weightd_fetch::Config::default());
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let loads = Loads::new(fetcher.clone(), access.clone(), tasks.clone(), stopping.clone());
        let loads = Arc::new(loads);
        let expose = weightd_expose::Config::new(directory.path().join("fuse"));
        let volumes = Volumes::new(store, expose, Arc::clone(&loads) as Arc<dyn Demands>).unwrap();
        let control = Control::new(fetcher, access, volumes, loads, tasks, stopping);
        Self { origin, disk, control, _directory: directory }
    }
}
