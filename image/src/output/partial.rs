//! An output file under its temporary name, and the record of how far it is: what a later run goes on from.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use weightd_types::Crc32c;

use super::SinkState;
use crate::ImageError;

/// An output that is being written. Locked: nobody else writes it.
#[derive(Debug)]
pub(crate) struct Partial {
    output: PathBuf,
    path: PathBuf,
    file: File,
}

/// How far an output is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Digest of everything that was decided: another image is another one.
    pub(crate) plan: String,
    /// Steps that are done and durable.
    pub(crate) step: usize,
    /// By blob, the checksums of its pieces that are done, in the order of the object.
    pub(crate) pieces: Vec<Vec<Crc32c>>,
    /// What the sink needs.
    pub(crate) sink: SinkState,
    /// Where the blob begins in whose middle that is: what to go back to if the whole of it turns out to be wrong.
    pub(crate) begin: Option<Begin>,
    /// Of the file that this is about; 0 in one that was not written down.
    #[serde(default)]
    pub(crate) inode: u64,
}

/// A place between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    /// Steps before it.
    pub(crate) step: usize,
    /// What the sink needs to go on there.
    pub(crate) sink: SinkState,
}

impl Partial {
    /// Makes or takes up the output's temporary file.
    ///
    /// # Errors
    /// [`ImageError::Busy`] while someone else writes it, [`ImageError::Io`].
    pub(crate) fn lock(output: &Path) -> Result<Self, ImageError> {
        if output.is_dir() {
            let why = format!("--output {}: a directory; name a file in it", output.display());
            return Err(ImageError::Usage(why));
        }
        let path = beside(output, ".partial");
        loop {
            let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).expect("open flags are positive");
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(nofollow);
            let file = options.open(&path).map_err(ImageError::io("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ImageError::Busy { path: output.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(ImageError::io("lock", &path)(error)),
            }
            // Whoever had it may just have given it its final name.
            if is_same(&file, &path).map_err(ImageError::io("look at", &path))? {
                return Ok(Self { output: output.to_owned(), path, file });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What an earlier run wrote down, if it can be gone on with.
    pub(crate) fn record(&self, plan: &str) -> Option<Record> {
        let text = std::fs::read(self.record_path()).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        // One that was left behind speaks of another file, whose inode this may have been given.
        let about = self.file.metadata().ok()?;
        (record.plan == plan && record.inode == about.ino() && about.len() > 0).then_some(record)
    }

    /// Writes down how far the file is. What it says must be durable already.
    pub(crate) fn write_record(&self, mut record: Record) -> Result<(), ImageError> {
        let (path, writing) = (self.record_path(), beside(&self.output, ".partial.json.writing"));
        let mut write = || {
            record.inode = self.file.metadata()?.ino();
            let text = serde_json::to_vec(&record).map_err(io::Error::other)?;
            let mut file = File::create(&writing)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&writing, &path)
        };
        write().map_err(ImageError::io("write", &path))
    }

    /// Forgets what an earlier run left.
    pub(crate) fn start_afresh(&self) -> Result<(), ImageError> {
        self.forget_record()?;
        self.file.set_len(0).map_err(ImageError::io("empty", &self.path))
    }

    /// Gives the file its own name, in the place of whatever has it. Durable when it returns.
    pub(crate) fn finish(self) -> Result<(), ImageError> {
        self.file.sync_all().map_err(ImageError::io("sync", &self.path))?;
        std::fs::rename(&self.path, &self.output).map_err(ImageError::io("rename", &self.path))?;
        self.forget_record()?;
        let directory = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(ImageError::io("sync", directory))
    }

    fn forget_record(&self) -> Result<(), ImageError> {
        match std::fs::remove_file(self.record_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(ImageError::io("remove", self.record_path())(error))
            }
            _ => Ok(()),
        }
    }

    fn record_path(&self) -> PathBuf {
        beside(&self.output, ".partial.json")
    }
}

/// A file in which there is nothing is not left behind.
impl Drop for Partial {
    fn drop(&mut self) {
        let is_empty = self.file.metadata().is_ok_and(|about| about.len() == 0);
        if is_empty {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn beside(output: &Path, suffix: &str) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
