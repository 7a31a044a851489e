//! What is written to the own node: the condition, and that the startup taint goes.

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::{
    ClusterError, api,
    condition::{self, Condition},
    events::{COMPONENT, now},
    taint,
};

/// Attempts to take the taint off when others write the list at the same moment.
const ATTEMPTS: u32 = 5;
/// How long the watch may take to tell of what was written.
const LAG: Duration = Duration::from_secs(6);

/// The node this process runs on.
pub(crate) struct OwnNode {
    nodes: Api<Node>,
    name: String,
    said: Option<(Condition, Instant)>,
}

impl OwnNode {
    pub(crate) fn new(nodes: Api<Node>, name: String) -> Self {
        Self { nodes, name, said: None }
    }

    /// Writes the condition, if that is worth it. What the node has counts for more than what was said to it: one that
    /// was made anew has no such condition.
    pub(crate) async fn say(&mut self, node: &Node, condition: &Condition) -> Result<(), ClusterError> {
        let known = known(node);
        let holds = known.is_some_and(|known| {
            known.status == condition.status && known.reason.as_deref() == Some(condition.reason)
        });
        let is_unheard = self.said.as_ref().is_some_and(|(_, at)| at.elapsed() < LAG);
        if !condition.is_due(self.said.as_ref(), Instant::now()) && (holds || is_unheard) {
            return Ok(());
        }
        let patch = Patch::Strategic(status(condition, known));
        let what = format!("patch the status of node {}", self.name);
        api::within(&what, self.nodes.patch_status(&self.name, &by_us(), &patch)).await?;
        self.said = Some((condition.clone(), Instant::now()));
        Ok(())
    }

    /// Takes the startup taint off; says whether it was there. What the watch last told may be old, and others write the
    /// list: then the API refuses, and it is looked at anew.
    pub(crate) async fn remove_taint(&self, node: &Node) -> Result<bool, ClusterError> {
        let what = format!("remove the startup taint of node {}", self.name);
        let mut newer = None;
        for attempt in 1.. {
            let node = newer.as_ref().unwrap_or(node);
            if !taint::is_on(node) {
                break;
            }
            let patch = Patch::<()>::Json(taint::removal(node)?);
            match api::within(&what, self.nodes.patch(&self.name, &by_us(), &patch)).await {
                Err(error)
                    if attempt < ATTEMPTS
                        && error
                            .refusal()
                            .is_some_and(|status| status.is_invalid() || status.is_conflict()) =>
                {
                    newer = Some(api::within(&what, self.nodes.get(&self.name)).await?);
                }
                written => return written.map(|_| true),
            }
        }
        Ok(false)
    }
}

fn known(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|known| known.type_ == condition::TYPE)
}

/// The API merges conditions by their type, so the others stay. The time of the last change is that of the status alone.
fn status(condition: &Condition, known: Option<&NodeCondition>) -> Value {
    let since = known.filter(|known| known.status == condition.status);
    let since = since.and_then(|known| serde_json::to_value(known.last_transition_time.as_ref()?).ok());
    json!({"status": {"conditions": [{
        "type": condition::TYPE,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastHeartbeatTime": now(),
        "lastTransitionTime": since.unwrap_or_else(|| now().into()),
    }]}})
}

fn by_us() -> PatchParams {
    PatchParams { field_manager: Some(COMPONENT.to_owned()), ..PatchParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_last_change_stays_while_the_status_does() {
        let said = |status| Condition { status, reason: "Loading", message: String::new() };
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "WeightsReady", "status": "False", "lastTransitionTime": "2021-01-01T00:00:00Z"},
        ]}}))
        .unwrap();
        let since = |condition: &Condition, node: &Node| {
            status(condition, known(node))["status"]["conditions"][0]["lastTransitionTime"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(since(&said("False"), &node), "2021-01-01T00:00:00Z");
        assert!(since(&said("True"), &node).as_str() > "2026");
        assert!(since(&said("False"), &Node::default()).as_str() > "2026");
    }
}
