//! What of a file is in the page cache.
#![allow(unsafe_code, reason = "a system call that no crate has a function for")]

use std::{fs::File, io, os::fd::AsRawFd};

use weightd_types::ByteRange;

/// Of cachestat(2), on every architecture.
const CACHESTAT: libc::c_long = 451;

/// As the kernel has it.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// As the kernel has it: counts of pages.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    under_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all of a range is in the page cache. Asking does not read ahead, as reading without waiting does. Kernels before
/// 6.5 do not tell, and then it is not.
pub(crate) fn is_cached(file: &File, range: ByteRange) -> bool {
    let page = rustix::param::page_size() as u64;
    let pages = range.end.div_ceil(page) - range.start / page;
    cached_pages(file, range).is_ok_and(|cached| cached >= pages)
}

fn cached_pages(file: &File, range: ByteRange) -> io::Result<u64> {
    let (range, mut pages) = (Range { offset: range.start, len: range.len() }, Pages::default());
    // SAFETY: both structures are as the kernel has them, and last as long as the call.
    let outcome =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, 0_u32) };
    if outcome == 0 { Ok(pages.cached) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use rustix::fs::{Advice, fadvise};

    use super::*;

    #[test]
    fn it_is_known_what_was_read_and_asking_reads_nothing() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let (all, half) = (ByteRange::new(0, 1 << 20), ByteRange::new(1 << 19, 1 << 20));
        // Not everywhere is it told.
        let tells = cached_pages(&file, all).is_ok();
        assert_eq!(is_cached(&file, all), tells);
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(!is_cached(&file, all) && !is_cached(&file, half));
        fadvise(&file, 0, None, Advice::Random).unwrap();
        file.read_exact_at(&mut vec![0; 1 << 19], 1 << 19).unwrap();
        assert_eq!((is_cached(&file, half), is_cached(&file, all)), (tells, false));
    }
}
