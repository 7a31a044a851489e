//! A running driver: its sockets and what is served on them.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::{Server, server::Router};
use weightd_client::Client;
use weightd_proto::{
    csi::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    registration::registration_server::RegistrationServer,
};

use crate::{
    Options, StartError,
    agent::Agent,
    calls::Calls,
    controller::{Controller, Made},
    http::{self, Health},
    identity::Identity,
    node::Node,
    registration::{self, Registered, Registration},
    serve::serve,
    socket::KeptSocket,
    turns::Turns,
};

/// Connections on their way from a socket to its server.
const CONNECTIONS: usize = 64;
/// How long calls in flight may take to end; shorter than what pods are given.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running driver.
#[derive(Debug)]
pub struct Driver {
    agent: Agent,
    calls: Calls,
    registered: Registered,
    tasks: Vec<JoinHandle<()>>,
    http: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts one. `registry` may hold metrics of others; the driver's are added to them. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] when a socket or the port cannot be had.
    pub async fn start(options: Options, mut registry: Registry) -> Result<Self, StartError> {
        let calls = Calls::default();
        calls.metrics.register(&mut registry);
        let registered = Registered::new(calls.metrics.registered.clone());
        let (agent, tasks) = (Agent::new(&options.agent), Vec::new());
        let mut driver = Self { agent, calls, registered, tasks, http: None };
        if let Some(address) = options.http_address {
            let listener = http::bind(address).await?;
            let health = driver.health(registry, options.registration_directory.is_some());
            driver.http = Some(tokio::spawn(http::serve(listener, health)));
        }
        // What kubelet is told of must be there when it is told.
        driver.listen(&options.endpoint, driver.services(&options), false).await?;
        if let Some(directory) = &options.registration_directory {
            let endpoint = options.kubelet_endpoint.to_string_lossy().into_owned();
            let registration = Registration { endpoint, registered: driver.registered.clone() };
            let router = Server::builder().add_service(RegistrationServer::new(registration));
            driver.listen(&directory.join(registration::socket_name()), router, true).await?;
        }
        Ok(driver)
    }

    /// Whether kubelet has taken the driver. Never, when it is not told of it.
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// A client of the agent, which connects when it is used.
    pub fn client(&self) -> Client {
        self.agent.client()
    }

    /// Ends: takes the sockets away and lets calls in flight finish.
    pub async fn shutdown(mut self) {
        self.calls.stopping.cancel();
        let tasks = std::mem::take(&mut self.tasks);
        let ended = async {
            for task in tasks {
                // One that panicked has ended too.
                let _ = task.await;
            }
        };
        if timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!(patience = ?PATIENCE, "calls in flight do not end; leaving them");
        }
        self.registered.set(false);
        if let Some(http) = &self.http {
            http.abort();
        }
    }

    fn health(&self, registry: Registry, is_told: bool) -> Health {
        Health {
            registry: Arc::new(registry),
            metrics: self.calls.metrics.clone(),
            agent: self.agent.clone(),
            registered: is_told.then(|| self.registered.clone()),
            stopping: self.calls.stopping.clone(),
        }
    }

    fn services(&self, options: &Options) -> Router {
        let (agent, calls) = (self.agent.clone(), self.calls.clone());
        let node = Node {
            agent: agent.clone(),
            calls: calls.clone(),
            turns: Turns::default(),
            id: options.node_id.as_str().into(),
            kubelet_directory: Arc::new(options.kubelet_directory.clone()),
            ready_within: options.ready_within,
        };
        let made: Arc<Mutex<Made>> = Arc::default();
        let controller = Controller { agent: agent.clone(), calls: calls.clone(), made };
        Server::builder()
            .add_service(IdentityServer::new(Identity { agent, calls }))
            .add_service(ControllerServer::new(controller))
            .add_service(NodeServer::new(node))
    }

    /// Serves on a socket that stays. When the one that kubelet asks is made anew, kubelet has forgotten the driver.
    async fn listen(&mut self, path: &Path, router: Router, is_registration: bool) -> Result<(), StartError> {
        let socket = KeptSocket::bind(path).await?;
        let (sender, connections) = mpsc::channel(CONNECTIONS);
        let (registered, count) = (self.registered.clone(), self.calls.metrics.renewed_sockets.clone());
        let renewed = move || {
            count.inc();
            if is_registration {
                registered.set(false);
            }
        };
        self.tasks.push(tokio::spawn(socket.keep(sender, renewed, self.calls.stopping.clone())));
        self.tasks.push(tokio::spawn(serve(router, connections, self.calls.clone())));
        Ok(())
    }
}
