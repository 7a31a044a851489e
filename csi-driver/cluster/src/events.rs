//! Events: what a person who runs `kubectl describe` on the node or the ConfigMap is told.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Event, ObjectReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{ClusterError, api, condition::cut};

/// Who says so.
pub(crate) const COMPONENT: &str = "csi.weightd.io";

/// How often the same is said again while it lasts. The API forgets events after an hour.
const REPEAT: Duration = Duration::from_secs(900);
/// The API refuses longer messages.
const LONGEST: usize = 1000;
/// Events of objects that belong to no namespace are here.
const OF_NODES: &str = "default";

/// Says things about objects, and remembers what was said.
pub(crate) struct Events {
    client: Client,
    namespace: String,
    node: String,
    said: HashMap<String, Said>,
}

/// Which event.
struct Place {
    namespace: String,
    name: String,
    /// All nodes say it: one of them is enough.
    is_shared: bool,
}

struct Said {
    message: String,
    at: Instant,
    count: i32,
}

impl Events {
    pub(crate) fn new(client: Client, namespace: String, node: String) -> Self {
        Self { client, namespace, node, said: HashMap::new() }
    }

    /// Something about this node. `topic` tells what it is about, so that a message that changes replaces the one before.
    pub(crate) async fn of_node(
        &mut self,
        uid: Option<&str>,
        topic: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ClusterError> {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        let name = name(&self.node, uid, &[topic, reason]);
        let place = Place { namespace: OF_NODES.to_owned(), name, is_shared: false };
        self.say(place, about, reason, message).await
    }

    /// Something about a ConfigMap of the driver's namespace. All nodes read it and find the same: they say it in one
    /// event together, whose name is made of what is said.
    pub(crate) async fn of_config_map(
        &mut self,
        map: (&str, Option<&str>),
        reason: &str,
        message: &str,
    ) -> Result<(), ClusterError> {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: Some(map.0.to_owned()),
            namespace: Some(self.namespace.clone()),
            uid: map.1.map(str::to_owned),
            ..ObjectReference::default()
        };
        let name = name(map.0, map.1, &[reason, message]);
        let place = Place { namespace: self.namespace.clone(), name, is_shared: true };
        self.say(place, about, reason, message).await
    }

    async fn say(
        &mut self,
        place: Place,
        about: ObjectReference,
        reason: &str,
        message: &str,
    ) -> Result<(), ClusterError> {
        let message = cut(message, LONGEST);
        let before = self.said.get(&place.name);
        if before.is_some_and(|said| said.message == message && said.at.elapsed() < REPEAT) {
            return Ok(());
        }
        let count = before.map_or(1, |said| said.count.saturating_add(1));
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": place.name, "namespace": place.namespace},
            "involvedObject": about,
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT, "host": self.node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.node,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": count,
        });
        self.write(&place, event, count).await?;
        self.said.retain(|_, said| said.at.elapsed() < REPEAT * 8);
        self.said.insert(place.name, Said { message, at: Instant::now(), count });
        Ok(())
    }

    async fn write(&self, place: &Place, event: serde_json::Value, count: i32) -> Result<(), ClusterError> {
        let Place { namespace, name, is_shared } = place;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let change = json!({"message": event["message"], "lastTimestamp": now(), "count": count});
        let event: Event = serde_json::from_value(event).map_err(|error| {
            ClusterError::api(format!("write the event {name}"), kube::Error::SerdeError(error))
        })?;
        let what = format!("create the event {namespace}/{name}");
        match api::within(&what, events.create(&PostParams::default(), &event)).await {
            Err(error) if error.refusal().is_some_and(is_there) => {}
            other => return other.map(drop),
        }
        if *is_shared {
            return Ok(());
        }
        let what = format!("patch the event {namespace}/{name}");
        api::within(&what, events.patch(name, &PatchParams::default(), &Patch::Merge(change))).await.map(drop)
    }
}

fn is_there(refusal: &kube::core::Status) -> bool {
    refusal.is_already_exists() || refusal.is_conflict()
}

/// Now, as the API writes times.
pub(crate) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The same for the same, also in another process: this hasher has no seed.
fn name(object: &str, uid: Option<&str>, of: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    (uid, of).hash(&mut hasher);
    format!("{}.{:016x}", cut(object, 200).trim_end_matches('…'), hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn the_same_has_one_name_and_another_object_of_that_name_another() {
        let one = name("models", Some("u1"), &["Bad", "x"]);
        assert_eq!(one, name("models", Some("u1"), &["Bad", "x"]));
        assert_ne!(one, name("models", Some("u2"), &["Bad", "x"]));
        assert_ne!(one, name("models", Some("u1"), &["Bad", "y"]));
        assert!(one.starts_with("models.") && one.len() == 7 + 16, "{one}");
        assert!(name(&"n".repeat(253), None, &[]).len() <= 253);
    }
}
