//! What the disk would still hold of files that were written to since their last sync.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use crate::io::{BLOCK_BYTES, file::block_bytes};

/// Device and inode: a file, whatever it is called.
pub(super) type Inode = (u64, u64);

/// Files with unsynced bytes, in the order in which they got them.
#[derive(Default)]
pub(super) struct Contents {
    files: Vec<Unsynced>,
}

struct Unsynced {
    inode: Inode,
    /// A handle of our own, which also keeps the inode's number from being used again.
    file: File,
    /// The length at the last sync, and all that followed.
    lengths: Vec<u64>,
    blocks: BTreeMap<u64, OldBlock>,
}

/// A block as of the last sync.
struct OldBlock {
    /// `None` for zeros, which is what most new files hold.
    bytes: Option<Vec<u8>>,
    /// Whether it was written to, not only cut off: new bytes may then survive.
    written: bool,
}

impl Contents {
    /// A file has been made: the disk knows it as empty.
    pub(super) fn created(&mut self, file: &File) -> io::Result<()> {
        let len = file.metadata()?.len();
        self.unsynced(file)?.lengths = vec![0, len];
        Ok(())
    }

    /// Notes what a write will overwrite.
    pub(super) fn before_write(&mut self, file: &File, offset: u64, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let unsynced = self.unsynced(file)?;
        let end = offset + len as u64;
        unsynced.keep(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES), true)?;
        if end > file.metadata()?.len() {
            unsynced.lengths.push(end);
        }
        Ok(())
    }

    /// Notes what a change of length will cut off.
    pub(super) fn before_set_len(&mut self, file: &File, len: u64) -> io::Result<()> {
        let before = file.metadata()?.len();
        let unsynced = self.unsynced(file)?;
        unsynced.keep(len / BLOCK_BYTES..before.div_ceil(BLOCK_BYTES), false)?;
        unsynced.lengths.push(len);
        Ok(())
    }

    /// A file is durable as it is.
    pub(super) fn synced(&mut self, file: &File) -> io::Result<()> {
        let inode = inode(file)?;
        self.files.retain(|unsynced| unsynced.inode != inode);
        Ok(())
    }

    /// All files are.
    pub(super) fn all_synced(&mut self) {
        self.files.clear();
    }

    /// Puts old bytes and lengths back, at random. Says how many blocks.
    pub(super) fn lose(&mut self, random: &mut fastrand::Rng) -> io::Result<usize> {
        self.files.drain(..).map(|unsynced| unsynced.lose(random)).sum()
    }

    fn unsynced(&mut self, file: &File) -> io::Result<&mut Unsynced> {
        let inode = inode(file)?;
        let known = self.files.iter().position(|unsynced| unsynced.inode == inode);
        let place = match known {
            Some(place) => place,
            None => {
                self.files.push(Unsynced::new(file, inode)?);
                self.files.len() - 1
            }
        };
        Ok(&mut self.files[place])
    }
}

impl Unsynced {
    fn new(file: &File, inode: Inode) -> io::Result<Self> {
        // Not a duplicate of the descriptor, which may be for reading only, and not by name, which may have gone.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new().read(true).write(true).open(same)?;
        let lengths = vec![file.metadata()?.len()];
        Ok(Self { inode, file, lengths, blocks: BTreeMap::new() })
    }

    fn keep(&mut self, blocks: std::ops::Range<u64>, written: bool) -> io::Result<()> {
        for block in blocks {
            if let Some(old) = self.blocks.get_mut(&block) {
                old.written |= written;
                continue;
            }
            let mut bytes = vec![0; block_bytes()];
            read_up_to_end(&self.file, &mut bytes, block * BLOCK_BYTES)?;
            let bytes = bytes.iter().any(|byte| *byte != 0).then_some(bytes);
            self.blocks.insert(block, OldBlock { bytes, written });
        }
        Ok(())
    }

    fn lose(self, random: &mut fastrand::Rng) -> io::Result<usize> {
        let len = random.choice(&self.lengths).copied().expect("there was a length at the last sync");
        self.file.set_len(len)?;
        // All, nothing and a mixture are different ways to go wrong, and a mixture of many blocks is never all.
        let chance = random.choice([0.0, 0.5, 0.5, 1.0]).expect("not empty");
        let mut lost = 0;
        for (block, old) in self.blocks {
            let start = block * BLOCK_BYTES;
            if start >= len || (old.written && random.f64() >= chance) {
                continue;
            }
            let room = usize::try_from(len - start).unwrap_or(usize::MAX).min(block_bytes());
            let bytes = old.bytes.unwrap_or_else(|| vec![0; block_bytes()]);
            self.file.write_all_at(&bytes[..room], start)?;
            lost += 1;
        }
        Ok(lost)
    }
}

/// Which file this is.
pub(super) fn inode(file: &File) -> io::Result<Inode> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn read_up_to_end(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => break,
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
