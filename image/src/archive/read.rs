//! Reads an archive of a disk, ours or GNU tar's.
//!
//! The bytes are anybody's: memory is bounded by [`MAX_EXTENSIONS`] whatever they say, and what contradicts itself is
//! refused. Holes are told, not expanded, so a small file cannot pretend to be terabytes of work.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{DISK_NAME, DISK_UNIT_BYTES, plan::RangeMap, tar::checksum};
use weightd_types::ByteRange;

/// How many blocks a map may go on for: a million ranges, so 16 MiB of memory, and a hundred times what a disk of
/// weights has.
const MAX_EXTENSIONS: usize = 50_000;

/// How much of the file is asked for at once, and how much of its end is looked at at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A file that is not an archive of a disk, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// It does not begin like gzip.
    #[error("this is not a gzip file: a disk is imported from a .tar.gz")]
    NotGzip,
    /// The decoder refuses it, or its checksum or length at the end is wrong.
    #[error("the gzip file is damaged: fetch it again")]
    Damaged(#[source] io::Error),
    /// It ends before the disk does.
    #[error("the archive ends early: fetch it again")]
    EndedEarly,
    /// What was compressed is not a tar archive.
    #[error("the gzip file holds no tar archive")]
    NotTar,
    /// The archive holds something else.
    #[error("the archive begins with {found:?} (type {kind:?}), not with the file {DISK_NAME:?}")]
    OtherMember {
        /// Name of the first member.
        found: String,
        /// Its type, as tar's letter.
        kind: char,
    },
    /// The archive holds more.
    #[error("the archive holds more than {DISK_NAME:?}: make it with that one file")]
    MoreMembers,
    /// Compute Engine would refuse the disk.
    #[error(
        "{DISK_NAME:?} has {0} bytes: a disk is whole GiB, so lengthen it to the next multiple of 1073741824"
    )]
    Size(u64),
    /// Its headers cannot be believed.
    #[error("the headers of {DISK_NAME:?} contradict themselves: {0}")]
    Inconsistent(&'static str),
    /// It could not be read.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
}

impl ArchiveError {
    /// The decoder hands on the errors of what it reads from, and speaks of bad bytes by two kinds of its own.
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::EndedEarly,
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Self::Damaged(error),
            _ => Self::Read(error),
        }
    }
}

/// Gives the data of an archived disk, front to back. Nothing it gave may be trusted before it has said that
/// there is no more, since the checksum is at the end.
#[derive(Debug)]
pub(crate) struct Reader<R: Read> {
    tar: Tar<R>,
    disk_bytes: u64,
    data: Vec<ByteRange>,
    /// Which of `data` comes next, and how many of its bytes were given.
    next: usize,
    given: u64,
    checked: bool,
}

impl<R: Read> Reader<R> {
    /// Opens an archive and reads its headers. It reads ahead, so `source` needs no buffer.
    ///
    /// # Errors
    /// When it is not a gzip'd tar whose first member is `disk.raw`, of whole GiB, with a map that holds together.
    pub(crate) fn open(mut source: R) -> Result<Self, ArchiveError> {
        let mut magic = Vec::new();
        source.by_ref().take(2).read_to_end(&mut magic).map_err(ArchiveError::Read)?;
        if magic != [0x1f, 0x8b] {
            return Err(ArchiveError::NotGzip);
        }
        let source = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(source));
        let mut tar = Tar(MultiGzDecoder::new(source));
        let header = tar.first_header()?;
        let (disk_bytes, data) = match header.entry_type() {
            EntryType::GNUSparse => tar.sparse_map(&header)?,
            _ => whole_disk(&header)?,
        };
        Ok(Self { tar, disk_bytes, data, next: 0, given: 0, checked: false })
    }

    /// Length of the disk in bytes, holes included.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Where the disk holds data: in order, disjoint, none touching the next. The rest is zeros.
    #[cfg(test)]
    pub(crate) fn data(&self) -> &[ByteRange] {
        &self.data
    }

    /// Puts the next bytes of data at the beginning of `buffer`, and says where on the disk they belong: as many as
    /// fit and follow each other (none into an empty buffer). `None` once there is no more and the whole file has
    /// been found sound.
    ///
    /// # Errors
    /// When the file is damaged, ends early or holds more than the disk. The reader is of no use after that.
    pub(crate) fn next_run(&mut self, buffer: &mut [u8]) -> Result<Option<ByteRange>, ArchiveError> {
        let Some(range) = self.data.get(self.next) else {
            self.check_end()?;
            return Ok(None);
        };
        let left = range.len() - self.given;
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let run = ByteRange::at(range.start + self.given, len as u64);
        self.tar.fill(&mut buffer[..len])?;
        self.given += run.len();
        if run.end == range.end {
            (self.next, self.given) = (self.next + 1, 0);
        }
        Ok(Some(run))
    }

    /// Reads on to the end of the file, past which the decoder compares checksum and length.
    fn check_end(&mut self) -> Result<(), ArchiveError> {
        if self.checked {
            return Ok(());
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let len = self.tar.0.read(&mut buffer).map_err(ArchiveError::of)?;
            if buffer[..len].iter().any(|&byte| byte != 0) {
                return Err(ArchiveError::MoreMembers);
            }
            if len == 0 {
                self.checked = true;
                return Ok(());
            }
        }
    }
}

/// The tar stream within the file.
#[derive(Debug)]
struct Tar<R: Read>(MultiGzDecoder<BufReader<Chain<Cursor<Vec<u8>>, R>>>);

impl<R: Read> Tar<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.0.read_exact(buffer).map_err(ArchiveError::of)
    }

    /// The header of the first member, if that is a file with the name of a disk.
    fn first_header(&mut self) -> Result<Header, ArchiveError> {
        let mut header = Header::new_old();
        self.fill(header.as_mut_bytes())?;
        if header.cksum().ok() != Some(checksum(&header)) {
            return Err(ArchiveError::NotTar);
        }
        let (name, kind) = (header.path_bytes(), header.entry_type());
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        if is_file && *name == *DISK_NAME.as_bytes() {
            return Ok(header);
        }
        let found = String::from_utf8_lossy(&name).into_owned();
        Err(ArchiveError::OtherMember { found, kind: kind.as_byte().into() })
    }

    /// The length of a sparse disk, and where it holds data.
    fn sparse_map(&mut self, header: &Header) -> Result<(u64, Vec<ByteRange>), ArchiveError> {
        let gnu = header.as_gnu().ok_or(ArchiveError::Inconsistent("a sparse file without a GNU header"))?;
        let disk_bytes = whole_gib(gnu.real_size().map_err(number)?)?;
        let mut map = RangeMap::new(disk_bytes);
        add(&mut map, &gnu.sparse)?;
        let (mut more, mut extensions) = (gnu.is_extended(), 0);
        while more {
            if extensions == MAX_EXTENSIONS {
                return Err(ArchiveError::Inconsistent("more than a million ranges"));
            }
            let mut extension = GnuExtSparseHeader::new();
            self.fill(extension.as_mut_bytes())?;
            add(&mut map, extension.sparse())?;
            (more, extensions) = (extension.is_extended(), extensions + 1);
        }
        let data = map.into_ranges();
        if header.entry_size().map_err(number)? != data.iter().map(ByteRange::len).sum::<u64>() {
            return Err(ArchiveError::Inconsistent("the size is not that of the ranges together"));
        }
        Ok((disk_bytes, data))
    }
}

/// The length of a disk that was archived without holes, and all of it as one range.
fn whole_disk(header: &Header) -> Result<(u64, Vec<ByteRange>), ArchiveError> {
    let disk_bytes = whole_gib(header.entry_size().map_err(number)?)?;
    Ok((disk_bytes, vec![ByteRange::new(0, disk_bytes)]))
}

fn whole_gib(disk_bytes: u64) -> Result<u64, ArchiveError> {
    let whole = disk_bytes != 0 && disk_bytes.is_multiple_of(DISK_UNIT_BYTES);
    if whole { Ok(disk_bytes) } else { Err(ArchiveError::Size(disk_bytes)) }
}

/// Adds the ranges of one block of the map, up to the first unused place.
fn add(map: &mut RangeMap, slots: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    for slot in slots.iter().take_while(|slot| !slot.is_empty()) {
        let (start, len) = (slot.offset().map_err(number)?, slot.length().map_err(number)?);
        let end = start.checked_add(len).ok_or(ArchiveError::Inconsistent("a range beyond 16 EiB"))?;
        map.push(ByteRange { start, end }).map_err(|_| {
            ArchiveError::Inconsistent("ranges out of order, beyond the disk or not whole sectors")
        })?;
    }
    Ok(())
}

/// A number that is none.
fn number(_: io::Error) -> ArchiveError {
    ArchiveError::Inconsistent("a field that is no number")
}
