//! Kubernetes' own programs, built once per version and machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::built::Program;
use crate::Unready;

/// What `tests/cluster/go.mod` asks for.
const VERSION: &str = "v1.34.4";
/// What the one program can be.
const PROGRAMS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// The programs in their directory.
#[derive(Debug, Clone)]
pub struct Kubernetes(PathBuf);

impl Kubernetes {
    /// Finds them, or builds them, which takes ten minutes on two cores.
    ///
    /// # Errors
    /// When they are not there and Go is not either, or they do not build.
    pub fn get() -> Result<Self, Unready> {
        program().get().map(Self)
    }

    /// One of them.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// `kubectl` for a cluster.
    pub fn kubectl(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(self.program("kubectl"));
        command.env("KUBECONFIG", kubeconfig);
        command
    }

    /// Where `PATH` finds them.
    pub fn directory(&self) -> &Path {
        &self.0
    }
}

pub(super) fn program() -> Program {
    let (major, minor) = VERSION[1..].split_once('.').unwrap_or_default();
    let minor = minor.split('.').next().unwrap_or_default();
    let variables = [
        ("k8s.io/component-base/version.gitVersion", VERSION),
        ("k8s.io/component-base/version.gitMajor", major),
        ("k8s.io/component-base/version.gitMinor", minor),
    ];
    Program {
        name: "Kubernetes",
        version: VERSION,
        module: "tests/cluster",
        package: ".",
        variables: variables.map(|(name, value)| (name, value.to_owned())).into(),
        links: &PROGRAMS,
        takes: "ten minutes",
    }
}
