//! The functions of `library.c`, and a handle that makes them safe to call.
#![allow(unsafe_code, reason = "libext2fs is a library in C")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_void},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::{self, NonNull},
    sync::Once,
};

/// Bytes of an inode in which its extents begin.
pub(super) const ROOT_BYTES: usize = 60;

/// `ext2_filsys`, of which only the other side knows what it is.
type Pointer = *mut c_void;

unsafe extern "C" {
    fn weightd_ext4_prepare();
    fn weightd_ext4_message(code: c_long) -> *const c_char;
    fn weightd_ext4_create(
        path: *const c_char,
        blocks: u64,
        inodes: u32,
        log_groups_per_flex: u8,
        time: u32,
        uuid: *const u8,
        hash_seed: *const u8,
        label: *const u8,
        out: *mut Pointer,
    ) -> c_long;
    fn weightd_ext4_blocks(fs: Pointer) -> u64;
    fn weightd_ext4_block_bytes(fs: Pointer) -> u32;
    fn weightd_ext4_inodes(fs: Pointer) -> u32;
    fn weightd_ext4_tables_end(fs: Pointer) -> u64;
    fn weightd_ext4_claim_blocks(fs: Pointer, first: u64, count: u64) -> c_long;
    fn weightd_ext4_claim_inode(fs: Pointer, inode: u32, is_directory: c_int);
    fn weightd_ext4_write_inode(
        fs: Pointer,
        number: u32,
        mode: u16,
        links: u16,
        bytes: u64,
        sectors: u64,
        time: u32,
        root: *const u8,
    ) -> c_long;
    fn weightd_ext4_set_links(fs: Pointer, number: u32, links: u16) -> c_long;
    fn weightd_ext4_write_extent_block(fs: Pointer, inode: u32, block: u64, bytes: *mut u8) -> c_long;
    fn weightd_ext4_write_directory_block(fs: Pointer, inode: u32, block: u64, bytes: *mut u8) -> c_long;
    fn weightd_ext4_flush(fs: Pointer) -> c_long;
    fn weightd_ext4_free(fs: Pointer);
    fn weightd_ext4_open(path: *const c_char, out: *mut Pointer) -> c_long;
    fn weightd_ext4_check_groups(fs: Pointer) -> c_int;
    fn weightd_ext4_groups(fs: Pointer) -> u32;
    fn weightd_ext4_check_bitmaps(fs: Pointer, group: u32, block: *mut u8, is_wrong: *mut c_int) -> c_long;
    fn weightd_ext4_check_own_inode(fs: Pointer, number: u32, block: *mut u8, is_wrong: *mut c_int)
    -> c_long;
    fn weightd_ext4_read_inode(
        fs: Pointer,
        number: u32,
        mode: *mut u16,
        links: *mut u16,
        flags: *mut u32,
        bytes: *mut u64,
        root: *mut u8,
    ) -> c_long;
    fn weightd_ext4_read_block(fs: Pointer, block: u64, bytes: *mut u8) -> c_long;
    fn weightd_ext4_read_directory_block(fs: Pointer, inode: u32, block: u64, bytes: *mut u8) -> c_long;
    fn weightd_ext4_check_extent_block(fs: Pointer, inode: u32, bytes: *mut u8) -> c_long;
}

/// What the library answers instead of doing it: errno, or a code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(c_long);

impl Code {
    /// The answer to blocks that are in use already.
    pub(super) fn is_in_use(self) -> bool {
        io::Error::from(self).kind() == io::ErrorKind::AlreadyExists
    }
}

impl From<Code> for io::Error {
    fn from(code: Code) -> Self {
        // SAFETY: takes any number.
        let message = unsafe { weightd_ext4_message(code.0) };
        if message.is_null() {
            return i32::try_from(code.0).map_or_else(
                |_| Self::other(format!("libext2fs error {}", code.0)),
                Self::from_raw_os_error,
            );
        }
        // SAFETY: a string of the library's table, which lasts for ever.
        Self::other(unsafe { CStr::from_ptr(message) }.to_string_lossy())
    }
}

fn check(code: c_long) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(Code(code)) }
}

/// What the file system is to be, in the library's numbers.
#[derive(Debug)]
pub(super) struct Shape {
    /// Length in blocks.
    pub(super) blocks: u64,
    /// Inodes, those of the file system itself included.
    pub(super) inodes: u32,
    /// Logarithm of how many groups have their tables in one place.
    pub(super) log_groups_per_flex: u8,
    /// Seconds since 1970.
    pub(super) time: u32,
    /// Identity.
    pub(super) uuid: [u8; 16],
    /// Seed of directory hashes.
    pub(super) hash_seed: [u8; 16],
    /// Name, filled up with zeros.
    pub(super) label: [u8; 16],
}

/// An inode as it is read.
#[derive(Debug, Clone)]
pub(super) struct RawInode {
    /// Kind and permissions.
    pub(super) mode: u16,
    /// Names it has.
    pub(super) links: u16,
    /// `EXT4_*_FL`.
    pub(super) flags: u32,
    /// Length.
    pub(super) bytes: u64,
    /// Where its extents begin.
    pub(super) root: [u8; ROOT_BYTES],
}

/// A file system that the library has open.
#[derive(Debug)]
pub(super) struct Handle {
    fs: NonNull<c_void>,
    /// Length of a block in bytes.
    block_bytes: usize,
}

// SAFETY: the library keeps all of a file system's state behind the pointer, and none of it belongs to a thread. (`Sync`
// it is not: reading moves its caches.)
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library and goes nowhere else.
        unsafe { weightd_ext4_free(self.as_ptr()) };
    }
}

fn prepare(path: &Path) -> Result<CString, Code> {
    static ONCE: Once = Once::new();
    // SAFETY: runs once, before any other call.
    ONCE.call_once(|| unsafe { weightd_ext4_prepare() });
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid())
}

/// The library writes and looks for the checksum behind as many entries as the header says there may be.
fn check_extent_header(bytes: &[u8]) -> Result<(), Code> {
    let entries = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    if (entries + 1) * 12 + 4 <= bytes.len() { Ok(()) } else { Err(invalid()) }
}

fn invalid() -> Code {
    Code(c_long::from(rustix::io::Errno::INVAL.raw_os_error()))
}

impl Handle {
    /// Begins a file system in a file of zeros.
    pub(super) fn create(path: &Path, shape: &Shape) -> Result<Self, Code> {
        let path = prepare(path)?;
        let mut fs = ptr::null_mut();
        // SAFETY: the string ends with a zero, the arrays have the 16 bytes that are read, and all outlast the call.
        check(unsafe {
            weightd_ext4_create(
                path.as_ptr(),
                shape.blocks,
                shape.inodes,
                shape.log_groups_per_flex,
                shape.time,
                shape.uuid.as_ptr(),
                shape.hash_seed.as_ptr(),
                shape.label.as_ptr(),
                &raw mut fs,
            )
        })?;
        Self::take(fs)
    }

    /// Opens a file system for reading.
    pub(super) fn open(path: &Path) -> Result<Self, Code> {
        let path = prepare(path)?;
        let mut fs = ptr::null_mut();
        // SAFETY: the string ends with a zero and outlasts the call.
        check(unsafe { weightd_ext4_open(path.as_ptr(), &raw mut fs) })?;
        Self::take(fs)
    }

    fn take(fs: Pointer) -> Result<Self, Code> {
        let mut handle = Self { fs: NonNull::new(fs).ok_or_else(invalid)?, block_bytes: 0 };
        // SAFETY: the file system is open.
        let block_bytes = unsafe { weightd_ext4_block_bytes(handle.as_ptr()) };
        handle.block_bytes = usize::try_from(block_bytes).map_err(|_| invalid())?;
        Ok(handle)
    }

    fn as_ptr(&self) -> Pointer {
        self.fs.as_ptr()
    }

    /// Length in blocks.
    pub(super) fn blocks(&self) -> u64 {
        // SAFETY: the file system is open as long as the handle.
        unsafe { weightd_ext4_blocks(self.as_ptr()) }
    }

    /// Length of a block in bytes.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Inodes there are.
    pub(super) fn inodes(&self) -> u32 {
        // SAFETY: the file system is open as long as the handle.
        unsafe { weightd_ext4_inodes(self.as_ptr()) }
    }

    /// First block behind all bitmaps and inode tables.
    pub(super) fn tables_end(&self) -> u64 {
        // SAFETY: the file system is open as long as the handle.
        unsafe { weightd_ext4_tables_end(self.as_ptr()) }
    }

    /// Marks blocks as used.
    pub(super) fn claim_blocks(&mut self, first: u64, count: u64) -> Result<(), Code> {
        if first.checked_add(count).is_none_or(|end| end > self.blocks()) {
            return Err(invalid());
        }
        // SAFETY: the blocks lie in the file system.
        check(unsafe { weightd_ext4_claim_blocks(self.as_ptr(), first, count) })
    }

    /// Marks an inode as used.
    pub(super) fn claim_inode(&mut self, inode: u32, is_directory: bool) -> Result<(), Code> {
        if inode == 0 || inode > self.inodes() {
            return Err(invalid());
        }
        // SAFETY: there is such an inode.
        unsafe { weightd_ext4_claim_inode(self.as_ptr(), inode, c_int::from(is_directory)) };
        Ok(())
    }

    /// Writes an inode; `sectors` of 512 bytes are what it has on disk, its tree included.
    pub(super) fn write_inode(
        &mut self,
        number: u32,
        inode: &RawInode,
        sectors: u64,
        time: u32,
    ) -> Result<(), Code> {
        let RawInode { mode, links, bytes, root, .. } = inode;
        // SAFETY: the root has the bytes that are read. The library refuses inodes that are not there.
        check(unsafe {
            weightd_ext4_write_inode(
                self.as_ptr(),
                number,
                *mode,
                *links,
                *bytes,
                sectors,
                time,
                root.as_ptr(),
            )
        })
    }

    /// Changes how many names an inode has.
    pub(super) fn set_links(&mut self, number: u32, links: u16) -> Result<(), Code> {
        // SAFETY: the file system is open. The library refuses inodes that are not there.
        check(unsafe { weightd_ext4_set_links(self.as_ptr(), number, links) })
    }

    /// Writes a block of an inode's extent tree.
    pub(super) fn write_extent_block(
        &mut self,
        inode: u32,
        block: u64,
        bytes: &mut [u8],
    ) -> Result<(), Code> {
        self.check_block(block, bytes)?;
        check_extent_header(bytes)?;
        // SAFETY: the buffer is one block long, and by its header the checksum lies within.
        check(unsafe { weightd_ext4_write_extent_block(self.as_ptr(), inode, block, bytes.as_mut_ptr()) })
    }

    /// Writes a block of a directory, whose last 12 bytes are free.
    pub(super) fn write_directory_block(
        &mut self,
        inode: u32,
        block: u64,
        bytes: &mut [u8],
    ) -> Result<(), Code> {
        self.check_block(block, bytes)?;
        // SAFETY: the buffer is one block long.
        check(unsafe { weightd_ext4_write_directory_block(self.as_ptr(), inode, block, bytes.as_mut_ptr()) })
    }

    /// Writes all that is still in memory.
    pub(super) fn flush(&mut self) -> Result<(), Code> {
        // SAFETY: the file system is open as long as the handle.
        check(unsafe { weightd_ext4_flush(self.as_ptr()) })
    }

    /// What is wrong with the group descriptors.
    pub(super) fn check_groups(&self) -> Result<(), &'static str> {
        // SAFETY: the file system is open as long as the handle.
        match unsafe { weightd_ext4_check_groups(self.as_ptr()) } {
            0 => Ok(()),
            1 => Err("a group descriptor has a wrong checksum"),
            _ => Err("an inode table does not lie on the disk"),
        }
    }

    /// Checks what says which blocks and inodes are in use, and the inodes in front of the first that a file may have.
    ///
    /// # Errors
    /// What is wrong, or what the library says.
    pub(super) fn check_tables(&self, first_inode: u32) -> Result<Result<(), &'static str>, Code> {
        let (mut block, mut is_wrong) = (vec![0; self.block_bytes], 0);
        // SAFETY: the file system is open as long as the handle.
        for group in 0..unsafe { weightd_ext4_groups(self.as_ptr()) } {
            // SAFETY: there is such a group, the buffer is one block long, and by the superblock no bitmap is longer.
            check(unsafe {
                weightd_ext4_check_bitmaps(self.as_ptr(), group, block.as_mut_ptr(), &raw mut is_wrong)
            })?;
            if is_wrong != 0 {
                return Ok(Err("a bitmap is damaged"));
            }
        }
        for number in 1..first_inode {
            // SAFETY: the buffer is one block long, and by the superblock no inode is longer. The library refuses inodes that
            // are not there.
            check(unsafe {
                weightd_ext4_check_own_inode(self.as_ptr(), number, block.as_mut_ptr(), &raw mut is_wrong)
            })?;
            if is_wrong != 0 {
                return Ok(Err("an inode of the file system's own is damaged"));
            }
        }
        Ok(Ok(()))
    }

    /// Reads an inode and checks it.
    pub(super) fn read_inode(&self, number: u32) -> Result<RawInode, Code> {
        let mut inode = RawInode { mode: 0, links: 0, flags: 0, bytes: 0, root: [0; ROOT_BYTES] };
        let RawInode { mode, links, flags, bytes, root } = &mut inode;
        // SAFETY: all that is written to is there, the root with its 60 bytes. The library refuses inodes that are not.
        check(unsafe {
            weightd_ext4_read_inode(self.as_ptr(), number, mode, links, flags, bytes, root.as_mut_ptr())
        })?;
        Ok(inode)
    }

    /// Reads one block.
    pub(super) fn read_block(&self, block: u64, bytes: &mut [u8]) -> Result<(), Code> {
        self.check_block(block, bytes)?;
        // SAFETY: the buffer is one block long.
        check(unsafe { weightd_ext4_read_block(self.as_ptr(), block, bytes.as_mut_ptr()) })
    }

    /// Reads one block of a directory and checks it.
    pub(super) fn read_directory_block(&self, inode: u32, block: u64, bytes: &mut [u8]) -> Result<(), Code> {
        self.check_block(block, bytes)?;
        // SAFETY: the buffer is one block long.
        check(unsafe { weightd_ext4_read_directory_block(self.as_ptr(), inode, block, bytes.as_mut_ptr()) })
    }

    /// Checks a block of an extent tree.
    pub(super) fn check_extent_block(&self, inode: u32, bytes: &mut [u8]) -> Result<(), Code> {
        self.check_block(0, bytes)?;
        check_extent_header(bytes)?;
        // SAFETY: the buffer is one block long, and by its header the checksum lies within.
        check(unsafe { weightd_ext4_check_extent_block(self.as_ptr(), inode, bytes.as_mut_ptr()) })
    }

    fn check_block(&self, block: u64, bytes: &[u8]) -> Result<(), Code> {
        if bytes.len() == self.block_bytes && block < self.blocks() { Ok(()) } else { Err(invalid()) }
    }
}
