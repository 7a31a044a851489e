//! EIO for readers of a FUSE file system that nobody serves.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

/// What the kernel wants room for: the longest write that the connection was agreed to take.
const REQUEST_BYTES: usize = (16 << 20) + 4096;
/// Code of the notice that has the kernel ask again what a dead agent had taken.
const NOTIFY_RESEND: i32 = 7;

// Operations, from <linux/fuse.h>.
const FORGET: u32 = 2;
const RELEASE: u32 = 18;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Begins: what a dead agent had taken is asked again, and reading no longer waits.
pub(crate) fn begin(device: BorrowedFd<'_>) -> io::Result<()> {
    fcntl_setfl(device, fcntl_getfl(device)? | OFlags::NONBLOCK)?;
    // A kernel that cannot do this leaves those few readers waiting, as it would without us.
    let _ = rustix::io::write(device, &header(NOTIFY_RESEND, 0));
    Ok(())
}

/// Ends, for an agent that came after all: it expects reads that wait, and would ask without a pause otherwise.
pub(crate) fn end(device: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfl(device, fcntl_getfl(device)? & !OFlags::NONBLOCK)?)
}

/// Answers what is asked right now. Says whether the file system still exists.
pub(crate) fn refuse_all(device: impl AsFd) -> io::Result<bool> {
    // Never touched beyond a request, and requests to read are short.
    let mut request = vec![0; REQUEST_BYTES];
    loop {
        let length = match rustix::io::read(device.as_fd(), &mut request) {
            Ok(length) => length,
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR | Errno::NOENT) => continue,
            Err(Errno::NODEV) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let Some(answer) = answer(&request[..length]) else { continue };
        match rustix::io::write(device.as_fd(), &answer) {
            // Whoever asked has gone.
            Ok(_) | Err(Errno::NOENT | Errno::INTR) => {}
            Err(Errno::NODEV) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The answer to a request; `None` for those that want none.
fn answer(request: &[u8]) -> Option<[u8; 16]> {
    let word = |at: usize| {
        request.get(at..at + 4).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
    };
    let unique = u64::from_ne_bytes(request.get(8..16)?.try_into().expect("eight bytes"));
    match word(4)? {
        FORGET | BATCH_FORGET | INTERRUPT => None,
        RELEASE | RELEASEDIR => Some(header(0, unique)),
        _ => Some(header(-Errno::IO.raw_os_error(), unique)),
    }
}

/// `fuse_out_header`: length, error or notice, and the request it is for.
fn header(error: i32, unique: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: u32) -> Vec<u8> {
        let mut request = vec![0; 40];
        request[4..8].copy_from_slice(&operation.to_ne_bytes());
        request[8..16].copy_from_slice(&77_u64.to_ne_bytes());
        request
    }

    #[test]
    fn reads_fail_closes_succeed_and_forgetting_wants_no_answer() {
        assert_eq!(answer(&request(15)), Some(header(-5, 77)));
        assert_eq!(answer(&request(RELEASE)), Some(header(0, 77)));
        assert_eq!(answer(&request(FORGET)), None);
        assert_eq!(answer(b"short"), None);
    }
}
