//! The taint that keeps pods from a node until its driver is there.

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::ClusterError;

/// Nodes are made with it. The autoscaler knows the prefix: it counts a new node as one that will be without it.
pub const TAINT: &str = "startup-taint.cluster-autoscaler.kubernetes.io/weightd-not-ready";

/// Whether a node has it, with whatever effect.
pub(crate) fn is_on(node: &Node) -> bool {
    !positions(node).is_empty()
}

/// What takes it off. Others write the list of taints too, and a list that is written as a whole takes their changes
/// back: so each removal says what it expects at its place, and the API refuses all of it if something else is there.
pub(crate) fn removal(node: &Node) -> Result<json_patch::Patch, ClusterError> {
    let steps = positions(node).into_iter().rev().flat_map(|at| {
        let place = format!("/spec/taints/{at}");
        [
            json!({"op": "test", "path": format!("{place}/key"), "value": TAINT}),
            json!({"op": "remove", "path": place}),
        ]
    });
    let steps = serde_json::Value::Array(steps.collect());
    serde_json::from_value(steps).map_err(|error| {
        ClusterError::api("build the patch that removes the startup taint", kube::Error::SerdeError(error))
    })
}

fn positions(node: &Node) -> Vec<usize> {
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    taints.enumerate().filter(|(_, taint)| taint.key == TAINT).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: &[(&str, &str)]) -> Node {
        let taints: Vec<_> =
            taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn only_the_own_taint_goes_with_every_effect_it_has() {
        let node =
            node(&[("a", "NoSchedule"), (TAINT, "NoSchedule"), ("b", "NoExecute"), (TAINT, "NoExecute")]);
        assert!(is_on(&node));
        let mut document = serde_json::to_value(&node).unwrap();
        json_patch::patch(&mut document, &removal(&node).unwrap()).unwrap();
        let left: Node = serde_json::from_value(document).unwrap();
        let left: Vec<_> = left.spec.unwrap().taints.unwrap().into_iter().map(|taint| taint.key).collect();
        assert_eq!(left, ["a", "b"]);
        assert!(!is_on(&self::node(&[("a", "NoSchedule")])) && !is_on(&Node::default()));
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_left_as_it_is() {
        let patch = removal(&node(&[("a", "NoSchedule"), (TAINT, "NoSchedule")])).unwrap();
        for changed in [node(&[(TAINT, "NoSchedule"), ("new", "NoSchedule")]), node(&[("a", "NoSchedule")])] {
            let mut document = serde_json::to_value(&changed).unwrap();
            let before = document.clone();
            assert!(json_patch::patch(&mut document, &patch).is_err());
            assert_eq!(document, before);
        }
    }
}
