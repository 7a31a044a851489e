//! Where everything lies on the disk of an image: decided before the first byte is written, and the same every time.
//!
//! ```text
//! | ext4's own | format, provenance, manifests of snapshots, headers | small blobs | long blobs, on 2 MiB | manifests of blobs |
//! ```
//!
//! What is known before any byte was fetched lies in front, what only the bytes tell lies behind: so that an image can
//! also go where one can only write on and on.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;
use weightd_types::{ByteRange, Digest};

use crate::{
    ImageError,
    arrival::to_usize,
    boot_note::BootNote,
    contents::Contents,
    ext4::{self, Builder, Ext4Error, Format, Inode},
    tree::{Kind, Tree},
};

/// Blocks of the file system.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Blobs at least this long begin at a multiple of it, as huge pages and the extents of other file systems do.
const LONG_BYTES: u64 = 2 << 20;
/// Cloud disks are whole gibibytes.
const DISK_UNIT: u64 = 1 << 30;
/// What is not in the name of a file system.
pub(crate) struct Wish<'w> {
    /// Length of the disk; as small as can be without one.
    pub(crate) size: Option<u64>,
    /// Name of the file system.
    pub(crate) label: &'w str,
    /// Seconds since 1970, of every time on the disk.
    pub(crate) time: u64,
}

/// A disk, decided.
pub(crate) struct Disk {
    /// Its length in bytes.
    pub(crate) bytes: u64,
    /// What ext4 needs to find the files.
    pub(crate) metadata: Metadata,
    /// The files, in the order they lie.
    pub(crate) files: Vec<Placed>,
    /// Seconds since 1970.
    pub(crate) time: u64,
}

/// What ext4 needs to find the files.
pub(crate) struct Metadata {
    /// As long as the disk, and in memory as far as there is something in it.
    file: File,
    /// Where there is.
    ranges: Vec<ByteRange>,
}

/// A file on the disk; none is empty.
pub(crate) struct Placed {
    /// First byte on the disk.
    pub(crate) at: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
    pub(crate) content: Content,
}

/// What a file holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// These bytes.
    Known(Bytes),
    /// A blob's.
    Blob(usize),
    /// A blob's manifest, which is known when the blob is.
    Manifest(usize),
}

impl Disk {
    /// Everything that is written, whole blocks in order.
    pub(crate) fn data(&self) -> Vec<ByteRange> {
        let mut data: Vec<ByteRange> = self.metadata.ranges.clone();
        data.extend(self.files.iter().map(|file| ByteRange::new(file.at, file.end())));
        data.sort_by_key(|range| range.start);
        data
    }
}

impl Metadata {
    /// Where there is something to be written, in order.
    pub(crate) fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    pub(crate) fn read(&self, range: ByteRange) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(range.len())];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }
}

impl Placed {
    /// First byte behind its last block.
    pub(crate) fn end(&self) -> u64 {
        (self.at + self.bytes).next_multiple_of(BLOCK_BYTES)
    }
}

/// Decides where everything lies.
///
/// # Errors
/// [`ImageError::TooSmall`], and [`ImageError::FileSystem`] for what no file system can hold.
pub(crate) fn decide(contents: &Contents, wish: &Wish<'_>) -> Result<Disk, ImageError> {
    let tree = Tree::of(contents);
    let mut size = match wish.size {
        Some(size) => size,
        None => smallest(&tree),
    };
    loop {
        let created = Builder::create(&format(&tree, contents, wish, size));
        let builder = match created {
            Ok(builder) => builder,
            Err(Ext4Error::Format(_)) if size < smallest(&tree) => {
                return Err(ImageError::TooSmall { size, needed: smallest(&tree) });
            }
            Err(error) => return Err(ext4_failed(&error)),
        };
        let places = places(&tree, builder.data_start());
        let end = ends(&tree, &places).max().unwrap_or(builder.data_start());
        if end <= builder.data_end() {
            return finish(builder, &tree, &places, size, wish.time);
        }
        // Padding to 2 MiB is not in the sum of what has to be there.
        let needed = (end + (size - builder.data_end())).next_multiple_of(DISK_UNIT).max(size + DISK_UNIT);
        if wish.size.is_some() {
            return Err(ImageError::TooSmall { size, needed });
        }
        size = needed;
    }
}

/// Length of a disk that may suffice.
fn smallest(tree: &Tree) -> u64 {
    let lengths = tree.files().map(|(_, bytes, _)| bytes.next_multiple_of(BLOCK_BYTES));
    ext4::disk_bytes(lengths.sum(), tree.inodes(), reserved(tree)).next_multiple_of(DISK_UNIT)
}

fn reserved(tree: &Tree) -> u64 {
    let directories = tree.names.iter().filter(|name| matches!(name.kind, Kind::Directory)).count();
    ext4::reserve(directories as u64, tree.names.len() as u64, tree.files().map(|(_, bytes, _)| bytes))
}

/// An identity that says what is in it: the same contents, the same image.
fn format(tree: &Tree, contents: &Contents, wish: &Wish<'_>, size: u64) -> Format {
    let mut text = format!("weightd-image-1\n{size}\n{}\n{}\n", wish.label, wish.time);
    for manifest in &contents.snapshots {
        text += &format!("{}\n", manifest.key());
    }
    let half = |name: &str| {
        let digest = Digest::of(format!("{name}\n{text}"));
        let mut half = [0; 16];
        half.copy_from_slice(&digest.as_bytes()[..16]);
        half
    };
    Format {
        disk_bytes: size,
        inodes: tree.inodes(),
        reserved_blocks: reserved(tree),
        label: wish.label.to_owned(),
        uuid: half("uuid"),
        hash_seed: half("hash"),
        time: u32::try_from(wish.time).unwrap_or(u32::MAX).max(1),
    }
}

/// Where each file lies, by its number among the names; 0 for what has no contents.
fn places(tree: &Tree, start: u64) -> Vec<u64> {
    let class = |content: &Content, bytes: u64| match content {
        Content::Known(_) => 0,
        Content::Blob(_) if bytes < LONG_BYTES => 1,
        Content::Blob(_) => 2,
        Content::Manifest(_) => 3,
    };
    let mut files: Vec<_> = tree.files().filter(|(_, bytes, _)| *bytes > 0).collect();
    files.sort_by_key(|(_, bytes, content)| class(content, *bytes));
    let (mut places, mut at) = (vec![0; tree.names.len()], start);
    for (number, bytes, content) in files {
        let alignment = if class(content, bytes) == 2 { LONG_BYTES } else { BLOCK_BYTES };
        places[number] = at.next_multiple_of(alignment);
        at = places[number] + bytes;
    }
    places
}

fn ends(tree: &Tree, places: &[u64]) -> impl Iterator<Item = u64> {
    tree.files().map(|(number, bytes, _)| (places[number] + bytes).next_multiple_of(BLOCK_BYTES))
}

/// Writes the names, and what finds the files behind them.
fn finish(
    mut builder: Builder,
    tree: &Tree,
    places: &[u64],
    bytes: u64,
    time: u64,
) -> Result<Disk, ImageError> {
    let mut inodes: Vec<Inode> = Vec::with_capacity(tree.names.len());
    let mut directories = std::collections::HashMap::from([("", builder.root())]);
    for (number, name) in tree.names.iter().enumerate() {
        let (above, own) = name.path.rsplit_once('/').unwrap_or(("", &name.path));
        let parent = directories[above];
        let inode = match &name.kind {
            Kind::Directory => builder.directory(parent, own, name.mode),
            Kind::File { bytes, .. } => builder.file(parent, own, name.mode, *bytes, places[number]),
            Kind::Link(to) => builder.link(parent, own, inodes[*to]).map(|()| inodes[*to]),
        };
        let inode = inode.map_err(|error| ext4_failed(&error))?;
        if matches!(name.kind, Kind::Directory) {
            directories.insert(&name.path, inode);
        }
        inodes.push(inode);
    }
    let metadata = builder.finish().map_err(|error| ext4_failed(&error))?;
    let note = BootNote { data_start: metadata.data_start }.encode();
    metadata.file.write_all_at(&note, 0).map_err(ImageError::io("write metadata of", "the image"))?;
    let ranges = metadata.ranges.iter().map(|range| ByteRange::new(range.start, range.end)).collect();
    let placed = |(number, bytes, content): (usize, u64, &Content)| Placed {
        at: places[number],
        bytes,
        content: content.clone(),
    };
    let mut files: Vec<_> = tree.files().filter(|(_, bytes, _)| *bytes > 0).map(placed).collect();
    files.sort_by_key(|file| file.at);
    Ok(Disk { bytes, metadata: Metadata { file: metadata.file, ranges }, files, time })
}

fn ext4_failed(cause: &Ext4Error) -> ImageError {
    ImageError::FileSystem { why: cause.to_string() }
}
