//! `file://`: a directory of this machine, or of a disk or share that is mounted here.
//!
//! A file is pinned by an entity tag made of inode, time and size. One unreadable or oddly named file does not fail
//! the others.

mod beneath;

use std::{
    fs, io,
    os::unix::fs::FileExt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::task::spawn_blocking;
use weightd_types::{ByteRange, Checksums, Object, SourceUri, Version};

use crate::{ByteStream, Listed, Source, SourceError, cloud::etag};

/// Length of the pieces that a file is read in.
const PIECE_BYTES: u64 = 1 << 20;

/// Directories that hold no weights: a repository's history, and the bookkeeping of download tools.
const PASSED_OVER: [&str; 2] = [".git", ".cache"];

/// A directory.
#[derive(Debug)]
pub struct FileSource {
    uri: SourceUri,
    /// What no link leads out of: the directory itself, by its path without links.
    confined: Option<PathBuf>,
}

impl FileSource {
    pub(crate) fn new(uri: SourceUri) -> Self {
        Self { uri, confined: None }
    }

    /// One whose links are followed only where they stay below it.
    pub(crate) fn confined(uri: SourceUri, root: PathBuf) -> Self {
        Self { uri, confined: Some(root) }
    }
}

#[async_trait]
impl Source for FileSource {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        let (uri, confined) = (self.uri.clone(), self.confined.clone());
        let root = confined.clone().unwrap_or_else(|| format!("/{}", self.uri.prefix()).into());
        let mut walk = Walk { uri, confined, listing: Vec::new(), above: Vec::new() };
        let walked = spawn_blocking(move || walk.directory(&root, "").map(|()| walk.listing));
        let listing = walked.await.map_err(|error| SourceError::Interrupted {
            what: self.uri.to_string(),
            cause: error.into(),
        })??;
        if listing.is_empty() {
            let remedy = "the directory is there and has no files".to_owned();
            return Err(SourceError::NotFound { what: self.uri.to_string(), remedy });
        }
        Ok(listing)
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        let what = self.uri.object_url(&object.path);
        let expected = etag(object, &what)?.to_owned();
        let path = format!("/{}", self.uri.object_key(&object.path));
        let (confined, name) = (self.confined.clone(), object.path.to_string());
        let opened = spawn_blocking(move || {
            let file = match confined {
                Some(root) => beneath::open(&root, &name)?,
                None => fs::File::open(path)?,
            };
            let metadata = file.metadata()?;
            Ok((file, metadata))
        });
        let opened: io::Result<_> = opened.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match opened {
            Ok((file, metadata)) if version(&metadata) == object.version => {
                Ok(pieces(file, range, what, object.version.clone()))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&what, &error)),
            Ok(_) | Err(_) => Err(SourceError::Changed { what, expected }),
        }
    }
}

/// Streams a range of an open file. The file is looked at again before the last piece is given, because a file
/// that is written in place keeps its inode.
fn pieces(file: fs::File, range: ByteRange, what: String, pinned: Version) -> ByteStream {
    let state = Some((Arc::new(file), range, what, pinned));
    stream::unfold(state, |state| async move {
        let (file, range, what, pinned) = state?;
        let piece = ByteRange::at(range.start, PIECE_BYTES).intersect(&range);
        if piece.is_empty() {
            return None;
        }
        let is_last = piece.end == range.end;
        let reader = Arc::clone(&file);
        let read = spawn_blocking(move || {
            let bytes = read_at(&reader, piece)?;
            Ok(if is_last { (bytes, Some(reader.metadata()?)) } else { (bytes, None) })
        });
        let read: io::Result<_> = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        match read {
            Err(error) => Some((Err(failed(&what, &error)), None)),
            Ok((_, Some(metadata))) if version(&metadata) != pinned => {
                Some((Err(SourceError::Changed { what, expected: pinned.to_string() }), None))
            }
            Ok((bytes, _)) => {
                let rest = ByteRange::new(piece.end, range.end);
                Some((Ok(bytes), Some((file, rest, what, pinned))))
            }
        }
    })
    .boxed()
}

/// What the file has of a piece: less at its end, if it was cut short.
fn read_at(file: &fs::File, piece: ByteRange) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(piece.len()).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], piece.start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

/// An entity tag of what changes when a file is overwritten or replaced.
fn version(metadata: &fs::Metadata) -> Version {
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    Version::Etag(format!("\"{:x}-{:x}-{:x}\"", metadata.ino(), since.as_micros(), metadata.len()))
}

fn failed(what: &str, error: &io::Error) -> SourceError {
    let (what, detail) = (what.to_owned(), error.to_string());
    match error.kind() {
        io::ErrorKind::NotFound => {
            SourceError::NotFound { what, remedy: "there is no such directory: check the path".to_owned() }
        }
        io::ErrorKind::NotADirectory => {
            SourceError::NotFound { what, remedy: "it is not a directory: name the one it is in".to_owned() }
        }
        io::ErrorKind::PermissionDenied => SourceError::Denied {
            what,
            detail,
            remedy: "let the user that runs weightd read it and enter its directories".to_owned(),
        },
        _ => SourceError::Unavailable { what, cause: detail.into(), retry_after: None },
    }
}

struct Walk {
    uri: SourceUri,
    confined: Option<PathBuf>,
    listing: Vec<Listed>,
    /// Device and inode of the directories that we are in, to see symbolic links that lead back.
    above: Vec<(u64, u64)>,
}

impl Walk {
    fn directory(&mut self, directory: &Path, below: &str) -> Result<(), SourceError> {
        let here = format!("file://{}", directory.display());
        let metadata = fs::metadata(directory).map_err(|error| failed(&here, &error))?;
        let identity = (metadata.dev(), metadata.ino());
        if self.above.contains(&identity) {
            let remedy = "remove the link, or leave it out with --exclude".to_owned();
            let why = "is a symbolic link to a directory that it is in".to_owned();
            return Err(SourceError::Refused { what: here, why, remedy });
        }
        self.above.push(identity);
        let walked = self.entries(directory, below).map_err(|error| failed(&here, &error));
        self.above.pop();
        walked
    }

    fn entries(&mut self, directory: &Path, below: &str) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            if let Err(why) = self.entry(&entry, &name) {
                self.listing.push(Listed::Unfit { name, why });
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &fs::DirEntry, name: &str) -> Result<(), SourceError> {
        let path = entry.path();
        let refused = |why: &str| SourceError::Refused {
            what: format!("file://{}", path.display()),
            why: why.to_owned(),
            remedy: "rename or remove it, or leave it out with --exclude".to_owned(),
        };
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refused("is a symbolic link to nothing"));
            }
            metadata => metadata.map_err(|error| failed(&format!("file://{}", path.display()), &error))?,
        };
        if let Some(root) = &self.confined
            && beneath::leads_out(root, &path)
                .map_err(|error| failed(&format!("file://{}", path.display()), &error))?
        {
            return Err(refused("is a symbolic link that leads out of the directory"));
        }
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str() else {
            return Err(refused("has a name that is not UTF-8"));
        };
        if metadata.is_dir() {
            if PASSED_OVER.contains(&file_name) {
                return Ok(());
            }
            return self.directory(&path, &format!("{name}/"));
        }
        if !metadata.is_file() {
            return Err(refused("is neither a file nor a directory"));
        }
        let (name, version) = (name.to_owned(), version(&metadata));
        self.listing.push(Listed::new(&self.uri, name, metadata.len(), version, Checksums::default()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt, os::unix::fs::symlink};

    use super::*;

    fn source(directory: &Path) -> FileSource {
        FileSource::new(format!("file://{}", directory.display()).parse().unwrap())
    }

    #[tokio::test]
    async fn odd_entries_are_named_and_harm_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in [".git", ".cache", "sub"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("a"), "x").unwrap();
        }
        for name in [".hidden", "plain", "part#1"] {
            fs::write(at(name), "x").unwrap();
        }
        fs::write(directory.path().join(OsStr::from_bytes(b"not-utf8-\xff")), "x").unwrap();
        symlink("plain", at("linked")).unwrap();
        symlink("nowhere", at("broken")).unwrap();
        symlink("..", at("sub/loop")).unwrap();
        let listing = source(directory.path()).list().await.unwrap();
        let entries: BTreeMap<&str, bool> =
            listing.iter().map(|listed| (listed.name(), listed.object().is_some())).collect();
        let expected = [
            (".hidden", true),
            ("broken", false),
            ("linked", true),
            ("not-utf8-\u{fffd}", false),
            ("part#1", true),
            ("plain", true),
            ("sub/a", true),
            ("sub/loop", false),
        ];
        assert_eq!(entries, BTreeMap::from(expected));
    }

    #[tokio::test]
    async fn a_file_written_in_place_during_a_read_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), vec![1; 3 << 20]).unwrap();
        let source = source(directory.path());
        let listing = source.list().await.unwrap();
        let object = listing[0].object().unwrap();
        let mut stream = source.read(object, ByteRange::new(0, object.size)).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        fs::write(directory.path().join("a"), vec![2; 3 << 20]).unwrap();
        let mut last = None;
        while let Some(piece) = stream.next().await {
            last = Some(piece);
        }
        assert_eq!(last.unwrap().unwrap_err().kind(), "changed");
    }

    #[tokio::test]
    async fn what_is_no_directory_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "x").unwrap();
        for (name, remedy) in [("missing", "no such directory"), ("a", "not a directory")] {
            let error = source(&directory.path().join(name)).list().await.unwrap_err();
            assert!(error.kind() == "not_found" && error.to_string().contains(remedy), "{error}");
        }
        fs::create_dir(directory.path().join("empty")).unwrap();
        let error = source(&directory.path().join("empty")).list().await.unwrap_err();
        assert_eq!(error.kind(), "not_found");
    }
}
