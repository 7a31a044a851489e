//! Kubernetes' csi-provisioner, which makes volumes for claims: built once per version and machine, and as an image.

use anyhow::Result;

use super::{Cluster, built::Program, image::Image};
use crate::Unready;

/// What `tests/cluster/provisioner/go.mod` asks for.
pub const VERSION: &str = "v5.3.0";
/// Where it comes from otherwise.
pub const UPSTREAM: &str = "registry.k8s.io/sig-storage/csi-provisioner";
/// The image's name, without a tag.
pub const IMAGE: &str = "docker.io/library/csi-provisioner";
/// Its tag.
pub const TAG: &str = "test";

/// Builds it, which takes two minutes on two cores, if it is not there.
///
/// # Errors
/// When it is not there and Go is not either, or it does not build.
pub fn build() -> Result<(), Unready> {
    program().get().map(drop)
}

/// Loads its image into all nodes.
///
/// # Errors
/// As [`build`], or when a node does not take it.
pub fn load(cluster: &Cluster) -> Result<(), Unready> {
    let program = program();
    let file = program.get()?.join(program.file());
    let loaded = || -> Result<()> {
        let place = tempfile::tempdir_in(cluster.directory())?;
        let archive = place.path().join("image.tar");
        let image = Image::new(&format!("{IMAGE}:{TAG}"), &["csi-provisioner"]);
        image.file("/usr/local/bin/csi-provisioner", &file).write(&archive)?;
        cluster.load(&archive)
    };
    loaded().map_err(|error| Unready::failed(program.name, &format!("{error:#}")))
}

pub(super) fn program() -> Program {
    Program {
        name: "csi-provisioner",
        version: VERSION,
        module: "tests/cluster/provisioner",
        package: "github.com/kubernetes-csi/external-provisioner/v5/cmd/csi-provisioner",
        variables: vec![("main.version", VERSION.to_owned())],
        links: &[],
        takes: "two minutes",
    }
}
