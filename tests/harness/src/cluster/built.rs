//! Programs that Go builds: once per version and machine, outside of the checkout, so that all checkouts share them.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{Unready, tools};

/// A program, and what it is built from.
#[derive(Debug)]
pub(super) struct Program {
    /// What people call it. Its file is that in small letters.
    pub(super) name: &'static str,
    /// What the module's `go.mod` asks for.
    pub(super) version: &'static str,
    /// The directory of the module, in the checkout.
    pub(super) module: &'static str,
    /// Which package is the program.
    pub(super) package: &'static str,
    /// Variables that the linker sets.
    pub(super) variables: Vec<(&'static str, String)>,
    /// What else it is called by; each is a link to it.
    pub(super) links: &'static [&'static str],
    /// How long building takes on two cores.
    pub(super) takes: &'static str,
}

impl Program {
    /// The directory that it is in; builds it first where it is not there.
    ///
    /// # Errors
    /// When it is not there and Go is not either, or it does not build.
    pub(super) fn get(&self) -> Result<PathBuf, Unready> {
        let failed = |error: anyhow::Error| Unready::failed(self.name, &format!("{error:#}"));
        let directory = cache().map_err(failed)?.join(format!("{}-{}", self.file(), self.version));
        if !is_complete(&directory) {
            let what = format!("Go (it builds {})", self.name);
            let go = go().ok_or_else(|| Unready::NotInstalled { what, path: "go".into() })?;
            self.build(&go, &directory).map_err(failed)?;
        }
        Ok(directory)
    }

    /// The name of its file.
    pub(super) fn file(&self) -> String {
        self.name.to_lowercase()
    }

    fn build(&self, go: &Path, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        // Two that want it build it once.
        let lock = fs::File::create(directory.join("lock"))?;
        lock.lock().with_context(|| format!("locking {}", directory.display()))?;
        if is_complete(directory) {
            return Ok(());
        }
        let Self { name, version, module, takes, .. } = self;
        crate::skip::say(&format!("building {name} {version}, once: this takes about {takes}"));
        let variables = self.variables.iter().map(|(name, value)| format!(" -X {name}={value}"));
        let status = Command::new(go)
            .args([
                "build",
                "-trimpath",
                "-ldflags",
                &format!("-s -w{}", variables.collect::<String>()),
                "-o",
            ])
            .arg(directory.join(self.file()))
            .arg(self.package)
            .env("CGO_ENABLED", "0")
            .current_dir(tools::checkout().join(module))
            .status()?;
        ensure!(status.success(), "`go build` in {module} failed ({status})");
        for name in self.links {
            let link = directory.join(name);
            let _ = fs::remove_file(&link);
            symlink(self.file(), &link)?;
        }
        // The last of all: what was interrupted is done again.
        Ok(fs::write(directory.join("complete"), version)?)
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

fn is_complete(directory: &Path) -> bool {
    directory.join("complete").exists()
}

fn go() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/local/go/bin".into()]);
    directories.map(|directory| directory.join("go")).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::{super::kubernetes, super::provisioner, *};

    #[test]
    fn each_module_asks_for_the_version_that_is_named_here() {
        for (program, what) in [
            (kubernetes::program(), "k8s.io/kubernetes"),
            (provisioner::program(), "github.com/kubernetes-csi/external-provisioner/v5"),
        ] {
            let path = tools::checkout().join(program.module).join("go.mod");
            let module = fs::read_to_string(path).unwrap();
            assert!(module.contains(&format!("{what} {}", program.version)), "{program:?}");
        }
    }
}
