//! The agent: rooms joined, served over pipes, a socket and HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc::Receiver;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Channel};
use weightd_access::Access;
use weightd_control::{Control, Loads};
use weightd_daemon::{Socket, SocketFile};
use weightd_expose::{Demands, Volumes};
use weightd_fetch::{BadChunk, Fetcher};
use weightd_proto::v1::{volumes_server::VolumesServer, weights_server::WeightsServer};
use weightd_source::{Opener, Origins};
use weightd_store::{Store, StoreError};

use crate::{
    Config, StartError, http, metrics, serve,
    tiers::{self, TieredOrigins},
};

/// How long calls in flight may take to end once the agent stops. kubelet kills after 30 seconds.
const DRAIN: Duration = Duration::from_secs(10);

/// Time between two attempts to reach the keeper.
const ADOPT_PAUSE: Duration = Duration::from_secs(1);

/// Time between two looks for what nothing needs any more.
const TIDY: Duration = Duration::from_secs(3600);

/// An agent at work on one store.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    fetcher: Fetcher,
    control: Control,
    access: Access,
    volumes: Volumes,
    loads: Arc<Loads>,
    routes: Routes,
    registry: Arc<Registry>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    socket_file: Option<SocketFile>,
    http_address: Option<SocketAddr>,
}

impl Agent {
    /// Opens the store and joins the rooms. Nothing outside the process sees it until [`Agent::listen`].
    ///
    /// # Errors
    /// [`StartError::Store`] when the store cannot be opened: in use, read-only, of a newer format, not a store.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let origins = Arc::new(Origins::new(config.source.clone()));
        Self::start_on(config, origins).await
    }

    /// As [`Agent::start`], with sources of the caller's.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start_on(config: Config, opener: Arc<dyn Opener>) -> Result<Self, StartError> {
        let store = open(config.store.clone()).await?;
        // Before anything asks what is here, or what is mounted.
        tiers::look(&store, &config.tiers, &mut Vec::new()).await?;
        let opener: Arc<dyn Opener> = match config.tiers.ask_origin {
            true => opener,
            false => Arc::new(TieredOrigins::new(opener, store.clone())),
        };
        let mut registry = Registry::default();
        metrics::register(&mut registry);
        store.metrics().register(&mut registry);
        let access = Access::new(opener, config.access.clone());
        access.metrics().register(&mut registry);
        let fetcher = Fetcher::start(store, access.opener(), config.fetch.clone());
        fetcher.metrics().register(&mut registry);
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let loads = Arc::new(Loads::new(fetcher.clone(), access.clone(), tasks.clone(), stopping.clone()));
        let demands = Arc::clone(&loads) as Arc<dyn Demands>;
        let volumes = Volumes::new(fetcher.store().clone(), config.expose.clone(), demands)?;
        loads.look_after(&volumes);
        volumes.metrics().register(&mut registry);
        let control = Control::new(
            fetcher.clone(),
            access.clone(),
            volumes.clone(),
            Arc::clone(&loads),
            tasks.clone(),
            stopping.clone(),
        );
        let routes =
            Routes::new(WeightsServer::new(control.clone())).add_service(VolumesServer::new(control.clone()));
        let registry = Arc::new(registry);
        Ok(Self {
            config,
            fetcher,
            control,
            access,
            volumes,
            loads,
            routes,
            registry,
            tasks,
            stopping,
            socket_file: None,
            http_address: None,
        })
    }

    /// A client's connection to it within the process.
    pub fn connect(&self) -> Channel {
        let (channel, far) = serve::channel();
        self.tasks.spawn(serve::pipe(far, self.routes.clone(), self.stopping.clone()));
        channel
    }

    /// Listens on the socket and the HTTP port of its configuration, goes on with the detached prefetches of an earlier
    /// run, and looks after what is stored: an agent that is there for one command does neither.
    ///
    /// # Errors
    /// When either cannot be had.
    pub async fn listen(&mut self) -> Result<(), StartError> {
        let Socket { listener, file } = Socket::bind(&self.config.socket)
            .await
            .map_err(|error| StartError::of_socket(&self.config.socket, error))?;
        self.socket_file = Some(file);
        if let Some(address) = self.config.metrics_address {
            let listener = http::bind(address).await?;
            self.http_address = listener.local_addr().ok();
            let shared = http::Shared {
                registry: Arc::clone(&self.registry),
                store: self.fetcher.store().clone(),
                access: self.access.clone(),
                stopping: self.stopping.clone(),
            };
            self.tasks.spawn(http::serve(listener, shared));
        }
        self.control.resume().await?;
        self.tasks.spawn(adopt(self.volumes.clone(), Arc::clone(&self.loads), self.stopping.clone()));
        self.tasks.spawn(serve::socket(listener, self.routes.clone(), self.stopping.clone()));
        self.tasks.spawn(self.control.clone().end_leases());
        self.tasks.spawn(tiers::watch(
            self.fetcher.store().clone(),
            self.config.tiers.clone(),
            self.volumes.clone(),
            self.stopping.clone(),
        ));
        self.tasks.spawn(tidy(self.fetcher.store().clone(), self.stopping.clone()));
        self.tasks.spawn(tell_volumes(self.fetcher.scrub(), self.volumes.clone()));
        Ok(())
    }

    /// Where metrics and health are served, once it listens: the port that was given for port 0.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Stops taking calls, ends those in flight, writes down what there is, and closes the store.
    pub async fn shutdown(self) {
        drop(self.socket_file);
        // First, so that no reader is told of an end that the next agent turns into a pause.
        self.volumes.end().await;
        self.stopping.cancel();
        self.fetcher.close().await;
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("calls were still in flight and were cut off");
        }
        if let Err(error) = self.fetcher.store().close().await {
            tracing::error!(%error, "the last records were not written; the next run fetches their bytes again");
        }
    }
}

async fn open(config: weightd_store::Config) -> Result<Store, StoreError> {
    match tokio::task::spawn_blocking(move || Store::open(config)).await {
        Ok(opened) => opened,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Closed),
    }
}

/// Goes on with the volumes of an earlier agent, as soon as the keeper can be reached that has them.
async fn adopt(volumes: Volumes, loads: Arc<Loads>, stopping: CancellationToken) {
    let mut said = false;
    loop {
        match loads.take_over(&volumes).await {
            Ok(()) => return,
            Err(error) if error.is_retryable() && said => {}
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "volumes of an earlier agent wait");
                said = true;
            }
            Err(error) => return tracing::error!(%error, "volumes of an earlier agent cannot be taken over"),
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(ADOPT_PAUSE) => {}
        }
    }
}

/// Lets those who look after volumes know what the scrub finds in them, until it ends with the fetcher.
async fn tell_volumes(mut damaged: Receiver<BadChunk>, volumes: Volumes) {
    while let Some(bad) = damaged.recv().await {
        let outcome = match (bad.repaired, bad.failure) {
            (true, _) => "and were fetched again".to_owned(),
            (false, failure) => format!(
                "and could not be fetched again ({}): readers may be given wrong bytes",
                failure.unwrap_or_default()
            ),
        };
        volumes.rotted(&bad.blob, &format!("{} rotted on disk {outcome}", bad.range));
    }
}

/// Removes partial blobs that nobody resumed, and evicts down to the quota.
async fn tidy(store: Store, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(TIDY);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match store.collect_garbage(false).await {
            Ok(collected) if collected.removed_blobs == 0 && collected.evicted.is_empty() => {}
            Ok(collected) => tracing::info!(
                freed_bytes = collected.freed_bytes,
                removed_blobs = collected.removed_blobs,
                evicted = collected.evicted.len(),
                "removed what nothing needs"
            ),
            Err(error) => tracing::warn!(%error, "could not look for what nothing needs"),
        }
    }
}
