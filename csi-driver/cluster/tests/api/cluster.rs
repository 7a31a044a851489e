//! A node, a namespace, an agent, and the part that is tested.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Event, Namespace, Node, NodeCondition},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use weightd::{Agent, Overrides};
use weightd_cluster::{CONDITION, KEY, Metrics, Options, TAINT};
use weightd_harness::{Unready, cluster::runner::Wanted};
use weightd_source::{Environment, MemoryOrigin, Origins};

/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// What a test works with.
pub(crate) struct Cluster {
    client: Client,
    /// As whom the part asks.
    config: Config,
    has_roles: bool,
    name: String,
    pub(crate) metrics: Metrics,
    pub(crate) origin: MemoryOrigin,
    directory: tempfile::TempDir,
    agent: Option<Agent>,
    pub(crate) registered: watch::Sender<bool>,
    stopping: CancellationToken,
    part: Option<JoinHandle<()>>,
}

impl Cluster {
    /// A node with the startup taint and another, and an agent; nothing runs yet that looks after it.
    pub(crate) async fn start() -> Result<Self, Unready> {
        let config = api().await?;
        let client = Client::try_from(config.clone()).unwrap();
        let name = format!("weightd-test-{:08x}", rand::random::<u32>());
        let namespace = json!({"metadata": {"name": name}});
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let made: Namespace = serde_json::from_value(namespace).unwrap();
        namespaces.create(&PostParams::default(), &made).await.unwrap();
        let node = json!({
            "metadata": {"name": name, "labels": {"gpu": "l4"}},
            "spec": {"taints": [
                {"key": "example.com/other", "value": "x", "effect": "NoSchedule"},
                {"key": TAINT, "value": "true", "effect": "NoSchedule"},
            ]},
        });
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let mut cluster = Self {
            client,
            config,
            has_roles: false,
            name,
            metrics: Metrics::default(),
            origin: MemoryOrigin::new("m"),
            directory: tempfile::tempdir().unwrap(),
            agent: None,
            registered: watch::channel(false).0,
            stopping: CancellationToken::new(),
            part: None,
        };
        cluster.start_agent("").await;
        Ok(cluster)
    }

    /// An agent on the same store as the one before.
    pub(crate) async fn start_agent(&mut self, more: &str) {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let text = format!(
            "[agent]\nsocket = {:?}\nmetrics_address = \"off\"\n[store]\ndirectory = {:?}\nfloor = 0.0\n\
             buffers = \"64MiB\"\n{more}",
            at("weightd.sock"),
            at("store")
        );
        let config = weightd::Config::parse(&text, &Overrides::default(), &Environment::default()).unwrap();
        let origins = Origins::new(config.source.clone());
        origins.register(self.origin.clone());
        let mut agent = Agent::start_on(config, Arc::new(origins)).await.unwrap();
        agent.listen().await.unwrap();
        self.agent = Some(agent);
    }

    pub(crate) async fn stop_agent(&mut self) {
        self.agent.take().unwrap().shutdown().await;
    }

    /// Has the part ask as someone who may do this with these of the whole cluster, and nothing else.
    pub(crate) async fn allow(&mut self, verbs: &[&str], resources: &[&str]) {
        let role = json!({"metadata": {"name": self.name},
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}]});
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
        let group = "rbac.authorization.k8s.io";
        let binding = json!({"metadata": {"name": self.name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": self.name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": self.name}]});
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
        self.config.auth_info.impersonate = Some(self.name.clone());
        self.has_roles = true;
    }

    /// Ends the part as if the driver were restarted.
    pub(crate) async fn stop(&mut self) {
        self.stopping.cancel();
        self.part.take().unwrap().await.unwrap();
        self.stopping = CancellationToken::new();
    }

    /// Starts what is tested.
    pub(crate) fn run(&mut self, ready_needs_models: bool) {
        let options = Options {
            node: self.name.clone(),
            namespace: self.name.clone(),
            ready_needs_models,
            list_again_after: Duration::from_secs(3600),
        };
        let agent = weightd_client::Client::lazy(&self.directory.path().join("weightd.sock"));
        self.part = Some(tokio::spawn(weightd_cluster::run(
            options,
            Client::try_from(self.config.clone()).unwrap(),
            agent,
            self.registered.subscribe(),
            self.metrics.clone(),
            self.stopping.clone(),
        )));
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn node(&self) -> Node {
        self.nodes().get(&self.name).await.unwrap()
    }

    pub(crate) async fn patch_node(&self, patch: Value) {
        self.nodes().patch(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    }

    /// Puts a taint before what is there, as others do it, which moves all the others; the API refuses one that is there.
    pub(crate) async fn add_taint(&self, key: &str, effect: &str) -> Result<(), kube::Error> {
        let taint = json!({"key": key, "effect": effect});
        let steps = json!([{"op": "add", "path": "/spec/taints/0", "value": taint}]);
        let patch = Patch::<()>::Json(serde_json::from_value(steps).unwrap());
        self.nodes().patch(&self.name, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Taints by key.
    pub(crate) async fn taints(&self) -> Vec<String> {
        let taints = self.node().await.spec.and_then(|spec| spec.taints).unwrap_or_default();
        taints.into_iter().map(|taint| taint.key).collect()
    }

    pub(crate) async fn condition(&self) -> Option<NodeCondition> {
        let conditions = self.node().await.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.into_iter().find(|condition| condition.type_ == CONDITION)
    }

    /// Waits for the condition.
    pub(crate) async fn until_condition(&self, status: &str, reason: &str) -> NodeCondition {
        until(&format!("{status} {reason}"), async || {
            let found = self.condition().await?;
            (found.status == status && found.reason.as_deref() == Some(reason)).then_some(found)
        })
        .await
    }

    /// Makes the ConfigMap say this.
    pub(crate) async fn list(&self, models: &str) {
        self.list_as("models", models).await;
    }

    /// Makes a ConfigMap say this.
    pub(crate) async fn list_as(&self, name: &str, models: &str) {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.name);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"weightd.io/models": "true"}},
            "data": {KEY: models},
        });
        let by = PatchParams::apply("test").force();
        maps.patch(name, &by, &Patch::Apply(map)).await.unwrap();
    }

    /// Messages of events about an object, with their reasons.
    pub(crate) async fn events(&self, namespace: &str, object: &str) -> BTreeMap<String, String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={object}"));
        let found = events.list(&about).await.unwrap();
        found
            .into_iter()
            .map(|event| (event.message.unwrap_or_default(), event.reason.unwrap_or_default()))
            .collect()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the agent holds: each source, whether it is wanted, whether it is complete.
    pub(crate) async fn held(&self) -> BTreeMap<String, (bool, bool)> {
        let client = weightd_client::Client::from_channel(self.agent.as_ref().unwrap().connect());
        let snapshots = client.list().await.unwrap();
        let complete = |state| state == weightd_proto::v1::SnapshotState::Complete;
        snapshots
            .into_iter()
            .map(|found| (found.source.clone(), (found.wanted, complete(found.state()))))
            .collect()
    }

    /// Metrics by name.
    pub(crate) fn measured(&self) -> BTreeMap<String, f64> {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.metrics.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let parts = lines.filter_map(|line| line.split_once(' '));
        parts.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Ends it all.
    pub(crate) async fn end(mut self) {
        self.stopping.cancel();
        if let Some(part) = self.part.take() {
            part.await.unwrap();
        }
        if self.has_roles {
            let roles: Api<ClusterRole> = Api::all(self.client.clone());
            let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
            bindings.delete(&self.name, &DeleteParams::default()).await.unwrap();
            roles.delete(&self.name, &DeleteParams::default()).await.unwrap();
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.nodes().delete(&self.name, &DeleteParams::default()).await.unwrap();
        namespaces.delete(&self.name, &DeleteParams::default()).await.unwrap();
        if let Some(agent) = self.agent.take() {
            agent.shutdown().await;
        }
    }
}

async fn api() -> Result<Config, Unready> {
    let failed = |why: String| Unready::Failed { what: "a Kubernetes API server".to_owned(), why };
    let path = tokio::task::spawn_blocking(kubeconfig).await.map_err(|error| failed(error.to_string()))??;
    let read = Kubeconfig::read_from(&path).map_err(|error| failed(error.to_string()))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(read, &options).await.map_err(|error| failed(error.to_string()))
}

/// Of the cluster that the environment names, or else of one for all tests here, which ends with this process.
fn kubeconfig() -> Result<PathBuf, Unready> {
    static OURS: Mutex<Option<weightd_harness::cluster::Cluster>> = Mutex::new(None);
    if let Some(path) = std::env::var_os("WEIGHTD_TEST_KUBECONFIG") {
        return Ok(path.into());
    }
    let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = &*ours {
        return Ok(cluster.kubeconfig().to_owned());
    }
    let wanted = Wanted { nodes: 1, ..Wanted::default() };
    let cluster = weightd_harness::cluster::Cluster::start(&wanted)?;
    Ok(ours.insert(cluster).kubeconfig().to_owned())
}

/// Asks again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
