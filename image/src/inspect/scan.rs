//! Takes a disk front to back: first what ext4 needs, then the files it finds.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, memfd_create};
use weightd_types::{ByteRange, CHUNK_BYTES, Crc32c};

use super::names::{Names, Role};
use crate::{
    ImageError, Progress,
    arrival::to_usize,
    boot_note::BootNote,
    ext4::{Ext4Error, Extent, FileSystem, Place},
};

/// Bytes of the boot note and the superblock.
const FRONT_BYTES: u64 = 4096;
/// Most that metadata may take: those of a disk of 64 TiB have a quarter of it.
const MAX_METADATA_BYTES: u64 = 1 << 30;

/// What a hole reads as.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Names, and manifests of snapshots.
    Names,
    /// Every byte of every file.
    Everything,
}

/// What a scan wants next.
pub(super) enum Next {
    /// These bytes of the disk, from the first on.
    Range(ByteRange),
    /// Nothing more.
    Enough,
}

/// A disk that is being taken.
pub(super) struct Scan {
    path: PathBuf,
    depth: Depth,
    disk_bytes: Option<u64>,
    state: State,
}

enum State {
    /// What ext4 needs is being copied into memory.
    Metadata { copy: Option<File>, end: u64, taken: u64 },
    /// The files are known.
    Files { names: Box<Names>, pieces: Vec<Piece>, at: usize, within: u64, done: u64, total: u64 },
}

/// A part of a file that lies on the disk in one piece.
struct Piece {
    file: usize,
    logical: u64,
    disk: ByteRange,
}

impl Scan {
    pub(super) fn new(path: &Path, depth: Depth) -> Self {
        let state = State::Metadata { copy: None, end: FRONT_BYTES, taken: 0 };
        Self { path: path.to_owned(), depth, disk_bytes: None, state }
    }

    pub(super) fn set_disk_bytes(&mut self, bytes: u64) {
        self.disk_bytes = Some(bytes);
    }

    /// What is wanted next, by those who can choose.
    pub(super) fn next(&mut self) -> Result<Next, ImageError> {
        match &self.state {
            State::Metadata { end, taken, .. } if taken < end => {
                Ok(Next::Range(ByteRange::new(*taken, *end)))
            }
            State::Metadata { .. } => {
                self.open()?;
                self.next()
            }
            State::Files { pieces, at, within, .. } => Ok(match pieces.get(*at) {
                Some(piece) => Next::Range(ByteRange::new(piece.disk.start + within, piece.disk.end)),
                None => Next::Enough,
            }),
        }
    }

    /// Whether all that was wanted is known.
    pub(super) fn has_names(&self) -> bool {
        self.depth == Depth::Names
            && matches!(&self.state, State::Files { pieces, at, .. } if *at == pieces.len())
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        match &self.state {
            State::Metadata { .. } => Progress::default(),
            State::Files { done, total, .. } => Progress { done_bytes: *done, total_bytes: *total },
        }
    }

    /// Takes bytes of the disk, behind all that came before. What is left out between them is zeros.
    pub(super) fn feed(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<(), ImageError> {
        while let State::Metadata { end, .. } = self.state {
            if bytes.is_empty() {
                return Ok(());
            }
            let in_front = to_usize(end.saturating_sub(at).min(bytes.len() as u64));
            match in_front {
                // A hole may span the end.
                0 => self.open()?,
                // With the first of it comes where it ends.
                _ => self.take_metadata(at, &bytes[..in_front])?,
            }
            (at, bytes) = (at + in_front as u64, &bytes[in_front..]);
        }
        self.take_files(at, bytes)
    }

    fn take_metadata(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.path.clone();
        let failed = ImageError::io("copy metadata of", &path);
        let State::Metadata { copy, end, taken } = &mut self.state else { return Ok(()) };
        let file = match copy {
            Some(file) => file,
            None => {
                let note = BootNote::decode(bytes).ok_or_else(|| not_an_image(&path))?;
                if at != 0 || note.data_start < FRONT_BYTES || note.data_start > MAX_METADATA_BYTES {
                    return Err(not_an_image(&path));
                }
                *end = note.data_start;
                let file = memfd_create("weightd-image", MemfdFlags::CLOEXEC);
                copy.insert(
                    file.map_err(std::io::Error::from)
                        .map_err(ImageError::io("copy metadata of", &path))?
                        .into(),
                )
            }
        };
        // What is zero is so already, and takes no memory.
        if bytes.iter().any(|byte| *byte != 0) {
            file.write_all_at(bytes, at).map_err(failed)?;
        }
        *taken = at + bytes.len() as u64;
        Ok(())
    }

    /// All metadata are here.
    fn open(&mut self) -> Result<(), ImageError> {
        let State::Metadata { copy: Some(copy), .. } = &self.state else {
            return Err(not_an_image(&self.path));
        };
        let io_failed = |error| ImageError::io("look at", &self.path)(error);
        // As long as the disk, which the file system's own size is compared with.
        let disk_bytes = match self.disk_bytes {
            Some(bytes) => bytes,
            None => disk_length(&self.path).map_err(io_failed)?,
        };
        copy.set_len(disk_bytes).map_err(io_failed)?;
        let in_memory = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        let failed = |cause| unreadable(&self.path, &in_memory, &cause);
        let file_system = FileSystem::open(&in_memory).map_err(failed)?;
        if file_system.disk_bytes() > disk_bytes {
            let why =
                format!("its file system has {} bytes, and it has {disk_bytes}", file_system.disk_bytes());
            return Err(ImageError::Damaged { path: self.path.clone(), why });
        }
        if self.depth == Depth::Everything {
            file_system.check_tables().map_err(failed)?;
        }
        let mut names = Names::read(&file_system, disk_bytes).map_err(failed)?;
        let mut pieces = Vec::new();
        for file in 0..names.files.len() {
            if self.depth == Depth::Names && names.files[file].role != Role::Snapshot {
                continue;
            }
            for extent in file_system.extents(names.files[file].inode).map_err(failed)? {
                match piece(file, &extent, names.files[file].bytes, disk_bytes) {
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => {}
                    Err(why) => names.fault(file, None, why),
                }
            }
        }
        pieces.sort_by_key(|piece| piece.disk.start);
        let total = pieces.iter().map(|piece| piece.disk.len()).sum();
        self.state = State::Files { names: Box::new(names), pieces, at: 0, within: 0, done: 0, total };
        Ok(())
    }

    fn take_files(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let State::Files { names, pieces, at: next, within, done, .. } = &mut self.state else {
            return Ok(());
        };
        let given = ByteRange::at(at, bytes.len() as u64);
        while let Some(piece) = pieces.get(*next).filter(|piece| piece.disk.start + *within < given.end) {
            let wanted = ByteRange::new(piece.disk.start + *within, piece.disk.end);
            let both = wanted.intersect(&given);
            // What lies before what is given is a hole: zeros, which may be right.
            if wanted.start < given.start {
                let zeros = (wanted.len().min(given.start - wanted.start)).min(ZEROS.len() as u64);
                names.take(piece.file, piece.logical + *within, &ZEROS[..to_usize(zeros)]);
                *done += zeros;
                *within += zeros;
            } else {
                let part = &bytes[to_usize(both.start - at)..to_usize(both.end - at)];
                names.take(piece.file, piece.logical + *within, part);
                *done += both.len();
                *within += both.len();
            }
            if piece.disk.start + *within >= piece.disk.end {
                (*next, *within) = (*next + 1, 0);
            }
        }
        Ok(())
    }

    /// Ends it: compares what was taken.
    pub(super) fn finish(mut self) -> Result<Names, ImageError> {
        if matches!(self.state, State::Metadata { .. }) {
            self.open()?;
        }
        let depth = self.depth;
        match self.state {
            State::Files { names, .. } => {
                let mut names = *names;
                names.conclude(depth == Depth::Everything);
                Ok(names)
            }
            State::Metadata { .. } => Err(not_an_image(&self.path)),
        }
    }
}

/// A piece of a file, where there is something to be compared.
fn piece(file: usize, extent: &Extent, bytes: u64, disk_bytes: u64) -> Result<Option<Piece>, &'static str> {
    let len = extent.bytes.min(bytes.saturating_sub(extent.logical));
    match extent.place {
        _ if len == 0 => Ok(None),
        Place::Disk(at) if at.checked_add(len).is_some_and(|end| end <= disk_bytes) => {
            Ok(Some(Piece { file, logical: extent.logical, disk: ByteRange::at(at, len) }))
        }
        Place::Disk(_) => Err("part of it lies behind the end of the disk"),
        Place::Hole | Place::Unwritten => Err("part of it was never written"),
    }
}

fn disk_length(path: &Path) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    // A block device has no length of its own.
    File::open(path)?.seek(SeekFrom::End(0))
}

/// A file system that was read from a copy of its metadata, and cannot be believed.
fn unreadable(path: &Path, copy: &Path, cause: &Ext4Error) -> ImageError {
    let why = cause.to_string().replace(&copy.display().to_string(), "its file system");
    ImageError::Damaged { path: path.to_owned(), why }
}

fn not_an_image(path: &Path) -> ImageError {
    let why = "it does not begin as one; `weightctl image build` makes images".to_owned();
    ImageError::NotAnImage { path: path.to_owned(), why }
}

/// The checksum of each chunk of a file whose bytes come in their order.
#[derive(Debug, Default)]
pub(super) struct ChunkSums {
    sums: Vec<Crc32c>,
    at: u64,
}

impl ChunkSums {
    /// Takes the next bytes; false when they are not the next.
    pub(super) fn take(&mut self, logical: u64, mut bytes: &[u8]) -> bool {
        if logical != self.at {
            return false;
        }
        while !bytes.is_empty() {
            let left = to_usize(CHUNK_BYTES - self.at % CHUNK_BYTES);
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            if self.at.is_multiple_of(CHUNK_BYTES) {
                self.sums.push(Crc32c::EMPTY);
            }
            let sum = self.sums.last_mut().expect("a chunk was begun");
            *sum = sum.append(part);
            self.at += part.len() as u64;
            bytes = rest;
        }
        true
    }

    pub(super) fn sums(&self) -> &[Crc32c] {
        &self.sums
    }

    pub(super) fn bytes(&self) -> u64 {
        self.at
    }
}
