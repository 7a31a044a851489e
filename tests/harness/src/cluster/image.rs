//! Container images from plain files: no daemon, no registry, no base image.
//!
//! An image is a layer (a tar), a description of it, and a list that names both, in one tar again: the form that
//! `docker save` writes and `ctr images import` reads. A program that is linked dynamically brings the libraries that
//! `ldd` names, so what `cargo build` leaves is enough.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{built, children::output};

/// What keeps a pod's namespaces.
pub(super) const PAUSE: &str = "docker.io/library/weightd-pause:test";
/// A shell and small programs, for pods of tests.
pub const BUSYBOX: &str = "docker.io/library/weightd-busybox:test";

/// What is at a path of an image.
#[derive(Debug, Clone)]
enum Entry {
    File(PathBuf),
    Link(String),
}

/// An image to be written.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

impl Image {
    /// One that has nothing in it yet.
    pub fn new(name: &str, entrypoint: &[&str]) -> Self {
        let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, entries: BTreeMap::new() }
    }

    /// Puts a file of this machine at a path, with the libraries that it needs.
    #[must_use]
    pub fn file(mut self, path: &str, source: &Path) -> Self {
        for library in libraries(source) {
            self.entries.insert(inside(&library), Entry::File(library.into()));
        }
        self.entries.insert(inside(path), Entry::File(source.to_owned()));
        self
    }

    /// Puts a symbolic link at a path.
    #[must_use]
    pub fn link(mut self, path: &str, to: &str) -> Self {
        self.entries.insert(inside(path), Entry::Link(to.to_owned()));
        self
    }

    /// Writes it.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = archive.with_extension("layer");
        let written = self.layer(&layer).and_then(|digest| self.archive(&layer, &digest, archive));
        // It was only a step on the way.
        let _ = fs::remove_file(&layer);
        written.with_context(|| format!("writing the image {} to {}", self.name, archive.display()))
    }

    /// The files; gives the digest.
    fn layer(&self, path: &Path) -> Result<String> {
        let mut layer = Builder::new(Digesting { file: File::create(path)?, digest: Sha256::new() });
        for (name, entry) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mode(0o755);
            match entry {
                Entry::File(source) => {
                    let file = File::open(source).with_context(|| format!("reading {}", source.display()))?;
                    header.set_size(file.metadata()?.len());
                    layer.append_data(&mut header, name, file)?;
                }
                Entry::Link(to) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    layer.append_link(&mut header, name, to)?;
                }
            }
        }
        Ok(hex::encode(layer.into_inner()?.digest.finalize()))
    }

    fn archive(&self, layer: &Path, digest: &str, archive: &Path) -> Result<()> {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        })
        .to_string();
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let layer_name = format!("{digest}/layer.tar");
        let list = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": [layer_name] }]);
        let mut tar = Builder::new(File::create(archive)?);
        text(&mut tar, &config_name, &config)?;
        text(&mut tar, "manifest.json", &list.to_string())?;
        tar.append_path_with_name(layer, layer_name)?;
        Ok(tar.finish()?)
    }
}

/// The images that every node has: what its pods need to be there, and a shell.
pub(super) fn base() -> Result<[PathBuf; 2]> {
    let directory = built::cache()?;
    let archives = [directory.join("pause.tar"), directory.join("busybox.tar")];
    let busybox = Path::new("/bin/busybox");
    let applets =
        output(Command::new(busybox).arg("--list")).context("installing busybox-static brings it")?;
    for (archive, name, entrypoint) in
        [(&archives[0], PAUSE, vec!["/bin/sleep", "2147483647"]), (&archives[1], BUSYBOX, vec!["/bin/sh"])]
    {
        if !archive.exists() {
            let image = Image::new(name, &entrypoint).file("/bin/busybox", busybox);
            let applets = applets.lines().filter(|&name| name != "busybox");
            let image = applets.fold(image, |image, name| image.link(&format!("/bin/{name}"), "busybox"));
            let new = archive.with_extension("new");
            image.write(&new)?;
            fs::rename(new, archive)?;
        }
    }
    Ok(archives)
}

/// A copy of a program without what only a debugger reads: most of what `cargo build` leaves.
///
/// # Errors
/// When `strip` fails.
pub fn stripped(program: &Path, into: &Path) -> Result<PathBuf> {
    let copy = into.join(program.file_name().context("a program has a name")?);
    output(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

/// Paths of shared libraries; none of a static program, or of what is no program.
fn libraries(program: &Path) -> Vec<String> {
    let listed = output(Command::new("ldd").arg(program)).unwrap_or_default();
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(str::to_owned).collect()
}

fn inside(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn text(tar: &mut Builder<File>, name: &str, text: &str) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(text.len() as u64);
    tar.append_data(&mut header, name, text.as_bytes())
}

/// Sums what is written.
struct Digesting {
    file: File,
    digest: Sha256,
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_image_lists_a_layer_that_has_its_digest_and_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("words");
        fs::write(&file, "some words").unwrap();
        let archive = directory.path().join("image.tar");
        Image::new("a:b", &["/x"]).file("/etc/words", &file).link("/x", "etc/words").write(&archive).unwrap();

        let mut parts = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            parts.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        let list: serde_json::Value = serde_json::from_slice(&parts["manifest.json"]).unwrap();
        assert_eq!(list[0]["RepoTags"][0], "a:b");
        let layer = &parts[list[0]["Layers"][0].as_str().unwrap()];
        let config: serde_json::Value =
            serde_json::from_slice(&parts[list[0]["Config"].as_str().unwrap()]).unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
        assert_eq!(config["rootfs"]["diff_ids"][0], digest.as_str());
        let mut layer = tar::Archive::new(layer.as_slice());
        let names =
            layer.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(names.collect::<Vec<_>>(), ["etc/words", "x"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left");
    }
}
