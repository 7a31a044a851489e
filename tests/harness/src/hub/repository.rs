//! Repositories and their commits.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What a commit of a repository holds.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    files: BTreeMap<String, File>,
    gated: bool,
    private: bool,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) bytes: Bytes,
    /// Git's own name of the file; of the pointer, for large ones.
    pub(super) oid: String,
    /// Large files are kept outside git, by their sha256.
    pub(super) sha256: Option<String>,
}

/// A commit.
#[derive(Debug)]
pub(super) struct Revision {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, File>,
    pub(super) gated: bool,
    pub(super) private: bool,
}

/// All commits of a repository.
#[derive(Debug, Default)]
pub(super) struct History {
    commits: BTreeMap<String, Arc<Revision>>,
    names: BTreeMap<String, String>,
}

impl Repository {
    /// An empty one, for all to read.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a small file, kept in git.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        self.files.insert(path.to_owned(), File { oid: blob_id(&bytes), bytes, sha256: None });
        self
    }

    /// Adds a large file, kept by its sha256 at the other origin.
    #[must_use]
    pub fn large_file(self, path: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        self.mislabelled_file(path, bytes, &sha256)
    }

    /// Adds a large file whose bytes are not those its sha256 was made of.
    #[must_use]
    pub fn mislabelled_file(mut self, path: &str, bytes: impl Into<Bytes>, sha256: &str) -> Self {
        let bytes = bytes.into();
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {}\n",
            bytes.len()
        );
        let file = File { oid: blob_id(pointer.as_bytes()), bytes, sha256: Some(sha256.to_owned()) };
        self.files.insert(path.to_owned(), file);
        self
    }

    /// Adds the files of a directory, weights as large files.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn directory(mut self, directory: &Path) -> Result<Self> {
        for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = fs::read(&path)?;
            self =
                if name.ends_with(".json") { self.file(&name, bytes) } else { self.large_file(&name, bytes) };
        }
        Ok(self)
    }

    /// Lets all see it, and read it only with a token to which it was granted.
    #[must_use]
    pub fn gated(self) -> Self {
        Self { gated: true, ..self }
    }

    /// Lets it be seen only with a token to which it was granted.
    #[must_use]
    pub fn private(self) -> Self {
        Self { private: true, ..self }
    }
}

impl History {
    pub(super) fn push(&mut self, repository: Repository) -> String {
        let mut hash = Sha1::new();
        hash.update([u8::try_from(self.commits.len() % 256).unwrap_or_default()]);
        repository.files.iter().for_each(|(path, file)| hash.update(format!("{path} {}\n", file.oid)));
        let commit = hex::encode(hash.finalize());
        let Repository { files, gated, private } = repository;
        let revision = Revision { commit: commit.clone(), files, gated, private };
        self.commits.insert(commit.clone(), Arc::new(revision));
        self.names.insert("main".to_owned(), commit.clone());
        commit
    }

    pub(super) fn tag(&mut self, tag: &str) {
        if let Some(head) = self.names.get("main").cloned() {
            self.names.insert(tag.to_owned(), head);
        }
    }

    /// By commit, branch or tag.
    pub(super) fn find(&self, revision: &str) -> Option<Arc<Revision>> {
        let commit = self.names.get(revision).map_or(revision, String::as_str);
        self.commits.get(commit).cloned()
    }

    /// The large file with this sha256, in any commit.
    pub(super) fn large_file(&self, sha256: &str) -> Option<Bytes> {
        let mut files = self.commits.values().flat_map(|revision| revision.files.values());
        files.find(|file| file.sha256.as_deref() == Some(sha256)).map(|file| file.bytes.clone())
    }
}

/// Git's name of a blob.
fn blob_id(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex::encode(hash.finalize())
}
