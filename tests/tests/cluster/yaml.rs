//! Pods of tests.

use weightd_harness::cluster::{Node, image::BUSYBOX};

/// Compares every file with its checksum once.
pub(crate) const ONCE: &str = "cd /weights && echo \"$SUMS\" | sha256sum -c -s && echo all right";
/// Does so again and again, and ends at the first thing that is not as it must be.
pub(crate) const FOREVER: &str =
    "cd /weights && while echo \"$SUMS\" | sha256sum -c -s; do echo round; sleep 0.1; done; exit 1";
/// Nothing, until it is told to end.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A pod that reads a model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pod<'a> {
    pub(crate) name: &'a str,
    /// Anywhere if none.
    pub(crate) node: Option<&'a Node>,
    /// A shell line; the model is at `/weights`.
    pub(crate) script: &'a str,
    /// What `sha256sum -c` reads.
    pub(crate) sums: &'a str,
    /// The volume, in YAML on one line: see [`inline`] and [`claim`].
    pub(crate) volume: String,
    /// Which directory of it, if not all.
    pub(crate) sub_path: &'a str,
}

impl Pod<'_> {
    pub(crate) fn yaml(&self) -> String {
        let Self { name, script, sums, volume, sub_path, .. } = self;
        let selector = self.node.map_or(String::new(), |node| {
            format!("\n  nodeSelector: {{kubernetes.io/hostname: {}}}", node.name)
        });
        let sub_path = if sub_path.is_empty() { String::new() } else { format!(", subPath: {sub_path:?}") };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{of: test}}\nspec:\n  \
             restartPolicy: Never\n  terminationGracePeriodSeconds: 1{selector}\n  containers:\n  - name: reader\n    \
             image: {BUSYBOX}\n    command: [/bin/sh, -c, {script:?}]\n    \
             env: [{{name: SUMS, value: {:?}}}]\n    \
             volumeMounts: [{{name: weights, mountPath: /weights{sub_path}}}]\n  \
             volumes: [{volume}]\n---\n",
            sums.trim_end()
        )
    }
}

/// An inline volume.
pub(crate) fn inline(source: &str, attributes: &[(&str, &str)]) -> String {
    let more: String = attributes.iter().map(|(name, value)| format!(", {name}: {value:?}")).collect();
    format!(
        "{{name: weights, csi: {{driver: csi.weightd.io, readOnly: true, volumeAttributes: {{source: {source:?}{more}}}}}}}"
    )
}

/// A volume by a claim.
pub(crate) fn claim(name: &str) -> String {
    format!("{{name: weights, persistentVolumeClaim: {{claimName: {name}, readOnly: true}}}}")
}

/// A volume that an administrator made, and the claim that is bound to it.
pub(crate) fn volume_and_claim(namespace: &str, name: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: {namespace}-{name}\nspec:\n  \
         capacity: {{storage: 1Gi}}\n  accessModes: [ReadOnlyMany]\n  persistentVolumeReclaimPolicy: Retain\n  \
         storageClassName: \"\"\n  claimRef: {{namespace: {namespace}, name: {name}}}\n  \
         csi: {{driver: csi.weightd.io, volumeHandle: {namespace}-{name}, readOnly: true, \
         volumeAttributes: {{source: {source:?}, layout: original}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
         accessModes: [ReadOnlyMany]\n  storageClassName: \"\"\n  volumeName: {namespace}-{name}\n  \
         resources: {{requests: {{storage: 1Gi}}}}\n---\n"
    )
}

/// A class of claims.
pub(crate) fn class(name: &str, binding: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: Vec<String> = parameters.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata:\n  name: {name}\n  labels: {{of: test}}\n\
         provisioner: csi.weightd.io\nreclaimPolicy: Delete\nvolumeBindingMode: {binding}\n\
         parameters: {{{}}}\n---\n",
        parameters.join(", ")
    )
}

/// A claim of a class.
pub(crate) fn claim_of(class: &str, name: &str, mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: {name}\nspec:\n  accessModes: [{mode}]\n  \
         storageClassName: {class}\n  resources: {{requests: {{storage: 1Gi}}}}\n---\n"
    )
}
