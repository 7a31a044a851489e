//! The system calls that no safe crate offers.
#![allow(unsafe_code, reason = "the kernel's interface to mounts and to FUSE is descriptors and structs")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Makes a detached mount read-only, and its set-user-id files and device nodes harmless, before anyone sees it.
pub(crate) fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a string that ends, the struct is as long as we say, and the kernel only reads both.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts `new` in the place of the descriptor `old`, whoever owns that.
pub(crate) fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open, and what `old` stood for is closed by the kernel in the same step.
    let outcome = unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
    if outcome == old.as_raw_fd() { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `FUSE_DEV_IOC_BACKING_CLOSE`, as `<linux/fuse.h>` has it.
const BACKING_CLOSE: libc::Ioctl = libc::_IOW::<u32>(229, 2);

/// Gives up a file that was registered for passthrough. Those who have it open keep it.
pub(crate) fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    // SAFETY: the kernel reads the four bytes that the request's number says it does.
    let outcome = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BACKING_CLOSE, &raw const id) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Answers an open with a file that was registered for passthrough, which stays registered.
pub(crate) fn open_through(reply: fuser::ReplyOpen, handle: fuser::FileHandle, id: u32) {
    // SAFETY: the caller closes ids only after it has stopped handing them out, and this session knows them all.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, fuser::FopenFlags::FOPEN_NOFLUSH, &backing);
    let _still_registered = backing.into_raw();
}
