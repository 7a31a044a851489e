//! Changes to names since their directories' last sync, and how to take them back.
//!
//! Directories are held open and named by inode, so that a change can be taken back after its directory has moved.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, CWD, linkat, renameat, unlinkat},
    io::Errno,
};

use super::contents::{Inode, inode};

/// Unsynced changes, oldest first.
pub(super) struct Names {
    changes: Vec<Change>,
    /// Directories that changes refer to, so that many changes need few descriptors.
    open: HashMap<Inode, Arc<Directory>>,
    /// Where removed directories wait.
    graveyard: PathBuf,
    buried: u64,
}

struct Directory {
    inode: Inode,
    file: File,
}

/// A name in a directory.
struct Place {
    directory: Arc<Directory>,
    name: OsString,
}

enum Change {
    Added(Place),
    Removed(Place, Gone),
    Renamed { from: Place, to: Place, replaced: Option<Gone> },
}

/// Something that has lost its name.
enum Gone {
    /// A file, kept by a descriptor: another link would show in its link count, which is the store's to read.
    File(File),
    /// An empty directory, in the graveyard under this name.
    Directory(OsString),
}

impl Names {
    /// Makes a graveyard at `graveyard`, which is removed in the end.
    pub(super) fn new(graveyard: &Path) -> io::Result<Self> {
        fs::create_dir(graveyard)?;
        Ok(Self { changes: Vec::new(), open: HashMap::new(), graveyard: graveyard.to_owned(), buried: 0 })
    }

    /// A file or directory has been given this name.
    pub(super) fn added(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?;
        self.changes.push(Change::Added(place));
        Ok(())
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let place = self.place(path)?;
        fs::remove_file(path)?;
        self.changes.push(Change::Removed(place, Gone::File(file)));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let source = fs::symlink_metadata(from)?;
        let (from_place, to_place) = (self.place(from)?, self.place(to)?);
        let replaced = match File::open(to) {
            Ok(_) if source.is_dir() => {
                fs::remove_dir(to)?;
                let name = self.grave();
                fs::create_dir(self.graveyard.join(&name))?;
                Some(Gone::Directory(name))
            }
            // Two names of one file: the kernel leaves both.
            Ok(file) if inode(&file)? == inode(&File::open(from)?)? => return Ok(()),
            Ok(file) => Some(Gone::File(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        fs::rename(from, to)?;
        self.changes.push(Change::Renamed { from: from_place, to: to_place, replaced });
        Ok(())
    }

    pub(super) fn create_directories(&mut self, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path.ancestors().take_while(|directory| !directory.exists()).collect();
        for directory in missing.into_iter().rev().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir(directory)?;
            self.added(directory)?;
        }
        // For the error, when something else has the name.
        fs::create_dir_all(path)
    }

    pub(super) fn remove_tree(&mut self, path: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            if entry.file_type()?.is_dir() {
                self.remove_tree(&entry.path())?;
            } else {
                self.remove(&entry.path())?;
            }
        }
        let (place, name) = (self.place(path)?, self.grave());
        fs::rename(path, self.graveyard.join(&name))?;
        self.changes.push(Change::Removed(place, Gone::Directory(name)));
        Ok(())
    }

    /// A directory is durable as it is, and with it each change before the last one in it: those it shares with
    /// other directories, and what came before them there.
    pub(super) fn synced(&mut self, directory: &Path) -> io::Result<()> {
        let mut synced = HashSet::from([inode(&File::open(directory)?)?]);
        let mut kept: Vec<_> = std::mem::take(&mut self.changes)
            .into_iter()
            .rev()
            .filter(|change| {
                let durable = change.directories().any(|directory| synced.contains(&directory));
                if durable {
                    synced.extend(change.directories());
                }
                !durable
            })
            .collect();
        kept.reverse();
        self.changes = kept;
        self.open.retain(|_, directory| Arc::strong_count(directory) > 1);
        Ok(())
    }

    /// All directories are.
    pub(super) fn all_synced(&mut self) {
        self.changes.clear();
        self.open.clear();
    }

    /// Takes changes back, at random. Says how many.
    pub(super) fn lose(&mut self, random: &mut fastrand::Rng) -> io::Result<usize> {
        let changes = std::mem::take(&mut self.changes);
        let survives = survivors(&changes, random);
        let mut restored = HashMap::new();
        let mut lost = 0;
        for (change, _) in changes.into_iter().zip(survives).rev().filter(|(_, survives)| !survives) {
            self.take_back(change, &mut restored)?;
            lost += 1;
        }
        Ok(lost)
    }

    fn take_back(&mut self, change: Change, restored: &mut HashMap<Inode, File>) -> io::Result<()> {
        match change {
            Change::Added(place) => match unlinkat(&place.directory.file, &place.name, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    let name = self.grave();
                    let grave = self.graveyard.join(name);
                    Ok(renameat(&place.directory.file, &place.name, CWD, grave)?)
                }
                outcome => Ok(outcome?),
            },
            Change::Removed(place, gone) => self.give_back(&place, gone, restored),
            Change::Renamed { from, to, replaced } => {
                renameat(&to.directory.file, &to.name, &from.directory.file, &from.name)?;
                replaced.map_or(Ok(()), |gone| self.give_back(&to, gone, restored))
            }
        }
    }

    /// Gives something its name back. A file without any name left cannot have one again: a copy gets it, which is
    /// then also what its other names get.
    fn give_back(&self, place: &Place, gone: Gone, restored: &mut HashMap<Inode, File>) -> io::Result<()> {
        let directory = &place.directory.file;
        let file = match gone {
            Gone::Directory(name) => {
                return Ok(renameat(CWD, self.graveyard.join(name), directory, &place.name)?);
            }
            Gone::File(file) => file,
        };
        let original = restored.get(&inode(&file)?).unwrap_or(&file);
        let link = format!("/proc/self/fd/{}", original.as_raw_fd());
        match linkat(CWD, &link, directory, &place.name, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::NOENT) => {
                // By way of the directory's descriptor, as its path may have changed.
                let copy = Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(&place.name);
                fs::copy(&link, &copy)?;
                restored.insert(inode(&file)?, File::open(copy)?);
                Ok(())
            }
            outcome => Ok(outcome?),
        }
    }

    fn place(&mut self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let parent = path.parent().filter(|parent| *parent != OsStr::new("")).unwrap_or(Path::new("."));
        let file = File::open(parent)?;
        let inode = inode(&file)?;
        let directory = self.open.entry(inode).or_insert_with(|| Arc::new(Directory { inode, file }));
        Ok(Place { directory: Arc::clone(directory), name })
    }

    fn grave(&mut self) -> OsString {
        self.buried += 1;
        self.buried.to_string().into()
    }
}

/// Which changes a power cut leaves: in each directory those before a random point. A rename between two
/// directories survives in both or in none.
fn survivors(changes: &[Change], random: &mut fastrand::Rng) -> Vec<bool> {
    let mut totals: HashMap<Inode, usize> = HashMap::new();
    for directory in changes.iter().flat_map(Change::directories) {
        *totals.entry(directory).or_default() += 1;
    }
    // How many more changes each directory keeps, decided in the order of the changes: the map has none.
    let mut left: HashMap<Inode, usize> = HashMap::new();
    let mut survives = Vec::with_capacity(changes.len());
    for change in changes {
        for directory in change.directories() {
            let total = totals[&directory];
            left.entry(directory).or_insert_with(|| match random.u8(..4) {
                0 => 0,
                1 => total,
                _ => random.usize(..=total),
            });
        }
        let kept = change.directories().all(|directory| left[&directory] > 0);
        for directory in change.directories() {
            let left = left.get_mut(&directory).expect("decided above");
            *left = if kept { *left - 1 } else { 0 };
        }
        survives.push(kept);
    }
    survives
}

impl Change {
    /// The one or two directories it changes.
    fn directories(&self) -> impl Iterator<Item = Inode> {
        let (first, second) = match self {
            Self::Added(place) | Self::Removed(place, _) => (place, None),
            Self::Renamed { from, to, .. } => (from, Some(to)),
        };
        let second = second.filter(|second| second.directory.inode != first.directory.inode);
        [Some(first), second].into_iter().flatten().map(|place| place.directory.inode)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.graveyard) {
            tracing::warn!(%error, graveyard = %self.graveyard.display(), "a test leaves a directory behind");
        }
    }
}
