//! What comes after a build: the commands and manifests that bring an image to nodes.

use crate::{Built, Output};

/// Longest name of a resource of Compute Engine.
const MAX_NAME_BYTES: usize = 63;

/// The exact commands for an image that was built, ready to be pasted. Words in capitals are the reader's.
pub fn instructions(output: &Output, built: &Built) -> String {
    let (name, gibibytes) = (resource_name(output), built.disk_bytes >> 30);
    let (upload, archive) = match output {
        Output::Bucket(uri) => (String::new(), uri.to_string()),
        Output::Archive(path) => {
            let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let target = format!("gs://BUCKET/{file}");
            (format!("gcloud storage cp {} {target}\n", path.display()), target)
        }
        Output::RawDisk(path) => {
            let target = format!("gs://BUCKET/{name}.tar.gz");
            let pack = format!(
                "# Compute Engine imports an archive, which `--output {target}` writes without a copy here. From the file:\n\
                 tar --format=oldgnu --transform 's|.*|disk.raw|' -Sczf {name}.tar.gz {}\n\
                 gcloud storage cp {name}.tar.gz {target}\n",
                path.display()
            );
            (pack, target)
        }
    };
    format!(
        "{upload}gcloud compute images create {name} --source-uri={archive}\n\
         \n\
         # A node pool whose nodes come with the weights:\n\
         gcloud container node-pools create POOL --cluster=CLUSTER --location=LOCATION \\\n\
         \x20   --secondary-boot-disk=disk-image=global/images/{name}\n\
         \n\
         # Or in a ComputeClass, for nodes that are made as they are needed:\n\
         #   spec:\n\
         #     priorities:\n\
         #     - storage:\n\
         #         secondaryBootDisks:\n\
         #         - diskImageName: {name}\n\
         #           project: PROJECT\n\
         \n\
         # Or a Hyperdisk ML that many nodes share:\n\
         gcloud compute disks create {name} --type=hyperdisk-ml --size={gibibytes}GB --zone=ZONE \\\n\
         \x20   --image={name} --access-mode=READ_ONLY_MANY\n\
         kubectl apply -f - <<'MANIFEST'\n\
         {}MANIFEST\n",
        persistent_volume(&name, gibibytes)
    )
}

fn persistent_volume(name: &str, gibibytes: u64) -> String {
    format!(
        "apiVersion: v1\n\
         kind: PersistentVolume\n\
         metadata:\n\
         \x20 name: {name}\n\
         spec:\n\
         \x20 accessModes: [ReadOnlyMany]\n\
         \x20 capacity:\n\
         \x20   storage: {gibibytes}Gi\n\
         \x20 claimRef:\n\
         \x20   name: {name}\n\
         \x20   namespace: weightd\n\
         \x20 csi:\n\
         \x20   driver: pd.csi.storage.gke.io\n\
         \x20   fsType: ext4\n\
         \x20   readOnly: true\n\
         \x20   volumeHandle: projects/PROJECT/zones/ZONE/disks/{name}\n\
         \x20 persistentVolumeReclaimPolicy: Retain\n\
         \x20 storageClassName: \"\"\n\
         ---\n\
         apiVersion: v1\n\
         kind: PersistentVolumeClaim\n\
         metadata:\n\
         \x20 name: {name}\n\
         \x20 namespace: weightd\n\
         spec:\n\
         \x20 accessModes: [ReadOnlyMany]\n\
         \x20 resources:\n\
         \x20   requests:\n\
         \x20     storage: {gibibytes}Gi\n\
         \x20 storageClassName: \"\"\n\
         \x20 volumeName: {name}\n"
    )
}

/// A name as Compute Engine takes it, made of the output's.
fn resource_name(output: &Output) -> String {
    let name = output.name();
    let file = name.rsplit('/').next().unwrap_or_default();
    let stem = file.trim_end_matches(".tar.gz").trim_end_matches(".raw");
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let name: String = stem.chars().map(plain).collect();
    let name = name.trim_matches('-');
    match name.chars().next() {
        Some(first) if first.is_ascii_lowercase() => {
            name.chars().take(MAX_NAME_BYTES).collect::<String>().trim_end_matches('-').to_owned()
        }
        Some(_) => format!("weights-{name}").chars().take(MAX_NAME_BYTES).collect(),
        None => "weights".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_compute_engine_takes_them() {
        for (output, name) in [
            ("gs://b/Llama_3.1-8B.tar.gz", "llama-3-1-8b"),
            ("/tmp/disk.raw", "disk"),
            ("7b.tar.gz", "weights-7b"),
            ("--.raw", "weights"),
        ] {
            assert_eq!(resource_name(&Output::parse(output).unwrap()), name);
        }
    }
}
