//! One node's part in the cluster, turn by turn.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use weightd_proto::v1::{SetWantedRequest, WantedState};

use crate::{
    ClusterError, LABEL, Metrics,
    condition::{Condition, Trouble},
    error::watch_words,
    events::Events,
    lists::Lists,
    mirror::Mirror,
    node::OwnNode,
    pauses::Pauses,
    taint,
    wanted::{Wanted, wanted},
};

#[cfg(test)]
mod tests;

/// How often everything is looked at although nobody said that it changed.
const TURN: Duration = Duration::from_secs(3);
/// How long the agent may take to answer.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may not say how the models stand before the condition says so: a rollout takes a few seconds.
const AWAY: Duration = Duration::from_secs(20);

/// Names of what may fail, for the log, and to keep the pauses of each apart.
const AGENT: &str = "tell the agent what is wanted";
const NODE: &str = "watch the node";
const MAPS: &str = "watch the ConfigMaps that list models";
const UNTAINT: &str = "remove the startup taint";
const SAY: &str = "say how its models stand";
const NODE_EVENTS: &str = "write events about the node";
const MAP_EVENTS: &str = "write events about ConfigMaps";

/// What the operator decided.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's name.
    pub node: String,
    /// The driver's own namespace, where the ConfigMaps are.
    pub namespace: String,
    /// Whether the startup taint stays until the required models are here.
    pub ready_needs_models: bool,
    /// How often the source of a wanted model is listed again.
    pub list_again_after: Duration,
}

/// Does a node's part until it is told to stop. `registered` says whether kubelet knows the driver; the agent and the API
/// may be away, and come back, at any time.
pub async fn run(
    options: Options,
    client: Client,
    agent: weightd_client::Client,
    registered: watch::Receiver<bool>,
    metrics: Metrics,
    stopping: CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client.clone());
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
    let own = watcher::Config::default().fields(&format!("metadata.name={}", options.node));
    let mut node_events = watched(nodes, own);
    let mut map_events = watched(maps, watcher::Config::default().labels(LABEL));
    let mut registrations = registered.clone();
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut part = Part::new(options, client, agent, registered, metrics);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            Some(event) = node_events.next() => part.hear_node(event),
            Some(event) = map_events.next() => part.hear_map(event),
            // A sender that is gone says nothing more; the turns go on.
            Ok(()) = registrations.changed() => {}
            _ = turns.tick() => {}
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = part.turn() => {}
        }
    }
}

type Watched<K> = BoxStream<'static, Result<watcher::Event<K>, watcher::Error>>;

/// A watch that begins again by itself, ever more slowly while the API is away.
fn watched<K>(api: Api<K>, config: watcher::Config) -> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    watcher(api, config).default_backoff().boxed()
}

/// What one node knows of the cluster, and what it said last.
struct Part {
    options: Options,
    own: OwnNode,
    agent: weightd_client::Client,
    registered: watch::Receiver<bool>,
    metrics: Metrics,
    events: Events,
    node: Mirror<Node>,
    maps: Mirror<ConfigMap>,
    lists: Lists,
    pauses: Pauses,
    /// Since when the agent has not said how the models stand.
    trouble_since: Option<Instant>,
    /// What was logged of each thing that fails, so that the log has it once.
    complained: BTreeMap<&'static str, String>,
}

impl Part {
    fn new(
        options: Options,
        client: Client,
        agent: weightd_client::Client,
        registered: watch::Receiver<bool>,
        metrics: Metrics,
    ) -> Self {
        let own = OwnNode::new(Api::all(client.clone()), options.node.clone());
        let events = Events::new(client, options.namespace.clone(), options.node.clone());
        Self {
            options,
            own,
            agent,
            registered,
            metrics,
            events,
            node: Mirror::default(),
            maps: Mirror::default(),
            lists: Lists::default(),
            pauses: Pauses::default(),
            trouble_since: None,
            complained: BTreeMap::new(),
        }
    }

    fn hear_node(&mut self, event: Result<watcher::Event<Node>, watcher::Error>) {
        if let Some(event) = self.heard(NODE, event) {
            self.node.hear(event);
        }
    }

    fn hear_map(&mut self, event: Result<watcher::Event<ConfigMap>, watcher::Error>) {
        if let Some(event) = self.heard(MAPS, event) {
            self.maps.hear(event);
        }
        if let Some(maps) = self.maps.known() {
            self.lists.renew(maps);
        }
    }

    fn heard<E>(&mut self, what: &'static str, event: Result<E, watcher::Error>) -> Option<E> {
        match &event {
            Ok(_) => drop(self.complained.remove(what)),
            Err(error) => {
                self.metrics.api_errors.inc();
                self.complain(what, &watch_words(error));
            }
        }
        event.ok()
    }

    /// What matters most comes first: an API that takes no events holds up neither the taint nor the condition. What is not
    /// said of events within a turn's time is said in the next.
    async fn turn(&mut self) {
        let Some(node) = self.node.known().and_then(|known| known.get(&self.options.node)).cloned() else {
            return;
        };
        if !self.options.ready_needs_models {
            self.untaint(&node).await;
        }
        // Before the lists are known, nobody can say what is wanted, and an empty one would let go of everything.
        if self.maps.known().is_none() {
            return;
        }
        let wanted = wanted(self.lists.models(), node.labels());
        let told = self.tell_agent(&wanted).await;
        if let Some(condition) = self.condition(&wanted, &told) {
            let is_ready = condition.status == "True";
            self.metrics.weights_ready.set(is_ready.into());
            if is_ready && self.options.ready_needs_models {
                self.untaint(&node).await;
            }
            self.say(&node, &condition).await;
        }
        if let Ok(states) = &told {
            self.tell_failures(&node, states).await;
        }
        self.tell_complaints().await;
    }

    async fn tell_agent(&mut self, wanted: &[Wanted]) -> Result<Vec<WantedState>, Trouble> {
        let after = i64::try_from(self.options.list_again_after.as_secs()).unwrap_or(i64::MAX);
        let request = SetWantedRequest {
            models: wanted.iter().map(Wanted::message).collect(),
            list_again_after: Some(prost_types::Duration { seconds: after, nanos: 0 }),
            // What a list wants that cannot be read is most likely what it wanted before this process began.
            keep_others: self.lists.unread().next().is_some(),
        };
        let answer = match timeout(AGENT_PATIENCE, self.agent.set_wanted(request)).await {
            Ok(Ok(answer)) if answer.models.len() == wanted.len() => Ok(answer.models),
            Ok(Ok(_)) => {
                Err(Trouble::Refused("it answered for other models than it was asked about".to_owned()))
            }
            Ok(Err(error)) if error.is_absence() => Err(Trouble::Away(error.to_string())),
            Ok(Err(error)) => Err(Trouble::Refused(error.to_string())),
            Err(_) => Err(Trouble::Away(format!("no answer in {} s", AGENT_PATIENCE.as_secs()))),
        };
        match &answer {
            Ok(states) => {
                self.trouble_since = None;
                self.complained.remove(AGENT);
                self.metrics.show(wanted, states);
            }
            Err(trouble) => self.complain(AGENT, trouble.why()),
        }
        answer
    }

    /// What is to be said, once it is known.
    fn condition(
        &mut self,
        wanted: &[Wanted],
        told: &Result<Vec<WantedState>, Trouble>,
    ) -> Option<Condition> {
        let trouble = told.as_ref().err().map(|trouble| {
            let since = *self.trouble_since.get_or_insert_with(Instant::now);
            (since.elapsed() >= AWAY).then(|| Condition::of_trouble(trouble))
        });
        let unread: Vec<_> = self.lists.unread().collect();
        if !unread.is_empty() {
            let condition = Condition::unread(&unread);
            return Some(trouble.flatten().map_or(condition.clone(), |trouble| condition.and(&trouble)));
        }
        match (told, trouble) {
            (Ok(states), _) => Some(Condition::of(wanted, states)),
            (Err(_), trouble) => trouble.flatten(),
        }
    }

    async fn say(&mut self, node: &Node, condition: &Condition) {
        if self.pauses.is_due(SAY) {
            let outcome = self.own.say(node, condition).await;
            self.note(SAY, outcome.err().as_slice());
        }
    }

    async fn tell_failures(&mut self, node: &Node, states: &[WantedState]) {
        if !self.pauses.is_due(NODE_EVENTS) {
            return;
        }
        let (begun, mut errors) = (Instant::now(), Vec::new());
        for state in states.iter().filter(|state| state.failure.is_some()) {
            let message = match state.failure_message.contains(state.source.as_str()) {
                true => state.failure_message.clone(),
                false => format!("{}: {}", state.source, state.failure_message),
            };
            let uid = node.metadata.uid.as_deref();
            errors.extend(self.events.of_node(uid, &state.source, "WeightsNotBrought", &message).await.err());
            if begun.elapsed() > TURN || errors.last().is_some_and(|error| !error.is_of_the_call()) {
                break;
            }
        }
        self.note(NODE_EVENTS, &errors);
    }

    async fn tell_complaints(&mut self) {
        if !self.pauses.is_due(MAP_EVENTS) {
            return;
        }
        let (begun, mut errors) = (Instant::now(), Vec::new());
        for (name, words) in self.lists.complaints() {
            let uid = self.maps.known().and_then(|known| known.get(name)).and_then(ResourceExt::uid);
            errors.extend(
                self.events.of_config_map((name, uid.as_deref()), "ModelsNotRead", words).await.err(),
            );
            if begun.elapsed() > TURN || errors.last().is_some_and(|error| !error.is_of_the_call()) {
                break;
            }
        }
        self.note(MAP_EVENTS, &errors);
    }

    async fn untaint(&mut self, node: &Node) {
        let is_registered = *self.registered.borrow();
        if !is_registered || !taint::is_on(node) || !self.pauses.is_due(UNTAINT) {
            return;
        }
        let outcome = self.own.remove_taint(node).await;
        if let Ok(true) = outcome {
            self.metrics.taints_removed.inc();
            tracing::info!(node = self.options.node, "removed the startup taint");
        }
        self.note(UNTAINT, outcome.err().as_slice());
    }

    /// What came of a write, or of several of a kind.
    fn note(&mut self, what: &'static str, errors: &[ClusterError]) {
        self.metrics.api_errors.inc_by(errors.len() as u64);
        match errors.first() {
            None => {
                self.complained.remove(what);
                self.pauses.succeeded(what);
            }
            Some(error) => {
                self.complain(what, &error.to_string());
                self.pauses.failed(what);
            }
        }
    }

    fn complain(&mut self, what: &'static str, why: &str) {
        if self.complained.insert(what, why.to_owned()).as_deref() != Some(why) {
            tracing::warn!(why, "cannot {what} yet");
        }
    }
}
