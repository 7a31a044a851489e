//! Kubernetes' own programs, built once per version and machine.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{Unready, tools};

/// What `tests/cluster/go.mod` asks for.
const VERSION: &str = "v1.34.4";
/// What the one program can be, each a link to it.
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
        let failed = |error: anyhow::Error| Unready::failed("Kubernetes", &format!("{error:#}"));
        let directory = cache().map_err(failed)?.join(format!("kubernetes-{VERSION}"));
        if !directory.join("complete").exists() {
            let go = go().ok_or_else(|| Unready::NotInstalled {
                what: "Go (it builds Kubernetes)".to_owned(),
                path: "go".into(),
            })?;
            build(&go, &directory).map_err(failed)?;
        }
        Ok(Self(directory))
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

/// Outside of the checkout, so that all checkouts share it.
pub(super) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let cache = base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("weightd");
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    Ok(cache)
}

fn go() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/local/go/bin".into()]);
    directories.map(|directory| directory.join("go")).find(|program| program.is_file())
}

fn build(go: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    // Two that want it build it once.
    let lock = fs::File::create(directory.join("lock"))?;
    lock.lock().with_context(|| format!("locking {}", directory.display()))?;
    if directory.join("complete").exists() {
        return Ok(());
    }
    crate::skip::say(&format!("building Kubernetes {VERSION}, once: this takes about ten minutes"));
    let (major, minor) = VERSION[1..].split_once('.').unwrap_or_default();
    let minor = minor.split('.').next().unwrap_or_default();
    let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    let flags =
        ["-s -w".to_owned(), set("gitVersion", VERSION), set("gitMajor", major), set("gitMinor", minor)];
    let program = directory.join("kubernetes");
    let status = Command::new(go)
        .args(["build", "-trimpath", "-ldflags", &flags.join(" "), "-o"])
        .arg(&program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(tools::checkout().join("tests/cluster"))
        .status()?;
    ensure!(status.success(), "`go build` in tests/cluster failed ({status})");
    for name in PROGRAMS {
        let link = directory.join(name);
        let _ = fs::remove_file(&link);
        symlink("kubernetes", &link)?;
    }
    // The last of all: what was interrupted is done again.
    Ok(fs::write(directory.join("complete"), VERSION)?)
}
