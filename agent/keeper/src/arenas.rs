//! Memory for tensors. It is made and touched here, so that the keeper's cgroup pays for it, whoever fills and maps it.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};

use crate::cgroup;

/// Arenas are whole huge pages, so that what one takes is its length, whatever pages the kernel gives.
const PAGE: u64 = 2 << 20;
/// Most that is provided at once: some tens of milliseconds, in which nobody else is served.
const STEP: u64 = 256 << 20;
/// What is left to the keeper itself of what its cgroup may have.
const OWN: u64 = 32 << 20;
/// For so many bytes of an arena the kernel takes up to one more to find its pages by, which the cgroup pays too: 1 in 430
/// was measured, with pages of 4 KiB.
const PER_BOOKKEEPING: u64 = 256;
/// Of `fstat`'s blocks.
const BLOCK: u64 = 512;

/// An arena's length, and its file.
pub(crate) type Arena<'a> = (u64, BorrowedFd<'a>);

/// A size as Kubernetes writes it, or in bytes.
pub(crate) fn size(text: &str) -> Option<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix('B').unwrap_or(text).strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Whether an arena can have that length.
pub(crate) fn check(bytes: u64) -> Result<(), String> {
    match bytes > 0 && bytes.is_multiple_of(PAGE) {
        true => Ok(()),
        false => Err(format!("an arena has a multiple of {PAGE} bytes")),
    }
}

/// The bytes of arenas, whether or not they are touched yet.
pub(crate) fn used<'a>(arenas: impl Iterator<Item = Arena<'a>>) -> u64 {
    arenas.fold(0, |sum, (bytes, _)| sum.saturating_add(bytes))
}

/// Makes sure that one more fits, else gives the answer that says why not: beside what is kept here, what someone has
/// mapped that was kept is still charged to the cgroup, of which `left` bytes are left, and nobody may be killed for it.
pub(crate) fn find_room<'a>(
    arenas: impl Iterator<Item = Arena<'a>>,
    bytes: u64,
    limit: u64,
    left: Option<u64>,
) -> Result<(), String> {
    let (mut used, mut untouched) = (0_u64, 0_u64);
    for (length, memory) in arenas {
        let touched = fstat(memory).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK);
        used = used.saturating_add(length);
        untouched = untouched.saturating_add(length.saturating_sub(touched));
    }
    let full = |why: &str| Err(format!("full {limit} {used} {why}"));
    if bytes > limit.saturating_sub(used) {
        return full("the keeper's --resident-limit is reached");
    }
    match fits(bytes.saturating_add(untouched), left) {
        true => Ok(()),
        false => full(
            "the keeper's cgroup has no more memory: it may still be charged for what clients have mapped",
        ),
    }
}

/// Whether so many bytes can be touched where so many are left.
fn fits(bytes: u64, left: Option<u64>) -> bool {
    let needed = bytes.saturating_add(bytes / PER_BOOKKEEPING).saturating_add(OWN);
    left.is_none_or(|left| needed <= left)
}

/// Makes a file in memory whose length cannot change, and a mapping of it: once its user has sealed it, nobody can make
/// another that may be written to. None of its memory is there yet.
pub(crate) fn make(bytes: u64) -> Result<(OwnedFd, MmapRaw), String> {
    let name = "weightd-arena";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 know nothing of files that cannot be run.
    let memory = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL).or_else(|_| memfd_create(name, flags));
    let made = memory.map_err(std::io::Error::from).and_then(|memory| {
        ftruncate(&memory, bytes)?;
        fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK)?;
        let mapping = map(memory.as_fd(), 0, bytes)?;
        Ok((memory, mapping))
    });
    made.map_err(|error| format!("no file in memory of {bytes} bytes can be made: {error}"))
}

fn map(memory: BorrowedFd<'_>, from: u64, bytes: u64) -> std::io::Result<MmapRaw> {
    let file = File::from(memory.try_clone_to_owned()?);
    let len = usize::try_from(bytes).map_err(std::io::Error::other)?;
    MmapOptions::new().offset(from).len(len).map_raw(&file)
}

/// Has the kernel provide a part of an arena: in huge pages where it gives them to those who ask, for page tables, not
/// bytes, are what each process that maps it costs. One that another keeper made has no mapping here.
pub(crate) fn allocate(
    (length, memory): Arena<'_>,
    mapping: Option<&MmapRaw>,
    from: u64,
    bytes: u64,
) -> Result<(), String> {
    if bytes > STEP {
        return Err(format!("{STEP} bytes can be provided at a time"));
    }
    if !from.is_multiple_of(PAGE) || from.checked_add(bytes).is_none_or(|end| end > length) {
        return Err(format!("that is no part of {length} bytes"));
    }
    if bytes == 0 {
        return Ok(());
    }
    // Asked for again, because the kernel has no error for it: it kills. Others may share the limit.
    if !fits(bytes, cgroup::headroom()) {
        return Err("the keeper's cgroup has no more memory".to_owned());
    }
    let failed = |error: std::io::Error| format!("its memory cannot be provided: {error}");
    let len = usize::try_from(bytes).expect("a step fits");
    let (own, at);
    let mapping = match mapping {
        Some(whole) => {
            at = usize::try_from(from).expect("an arena is mapped");
            whole
        }
        None => {
            (own, at) = (map(memory, from, bytes).map_err(failed)?, 0);
            &own
        }
    };
    // It is no error to get small ones.
    let _ = mapping.advise_range(Advice::HugePage, at, len);
    mapping.advise_range(Advice::PopulateWrite, at, len).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64Mi", 64 << 20), ("70Gi", 70 << 30), ("1GiB", 1 << 30)]
        {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1.5Gi", "Gi", "99999999999Ti"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn there_is_room_up_to_the_limit_whether_or_not_it_was_touched() {
        let (one, _) = make(8 * PAGE).unwrap();
        let arenas = || [(8 * PAGE, one.as_fd())].into_iter();
        assert_eq!(used(arenas()), 8 * PAGE);
        assert_eq!(find_room(arenas(), 2 * PAGE, 10 * PAGE, None), Ok(()));
        let full = find_room(arenas(), 3 * PAGE, 10 * PAGE, None).unwrap_err();
        assert!(full.starts_with(&format!("full {} {} ", 10 * PAGE, 8 * PAGE)), "{full}");
        assert!(find_room(arenas(), u64::MAX, u64::MAX, None).is_err());
    }

    #[test]
    fn what_is_left_of_the_cgroup_is_for_what_is_promised_too_and_for_finding_it() {
        let (one, _) = make(8 * PAGE).unwrap();
        let arenas = || [(8 * PAGE, one.as_fd())].into_iter();
        // Untouched, 8 are promised, and 2 more are asked for.
        let needed = 10 * PAGE + 10 * PAGE / PER_BOOKKEEPING + OWN;
        assert_eq!(find_room(arenas(), 2 * PAGE, u64::MAX, Some(needed)), Ok(()));
        let full = find_room(arenas(), 2 * PAGE, u64::MAX, Some(needed - 1)).unwrap_err();
        assert!(full.contains("cgroup"), "{full}");
        allocate((8 * PAGE, one.as_fd()), None, 0, 8 * PAGE).unwrap();
        let needed = 2 * PAGE + 2 * PAGE / PER_BOOKKEEPING + OWN;
        assert_eq!(find_room(arenas(), 2 * PAGE, u64::MAX, Some(needed)), Ok(()), "what is touched is paid");
    }

    #[test]
    fn a_part_is_provided_and_nothing_beside_it() {
        let (memory, mapping) = make(8 * PAGE).unwrap();
        let touched = || u64::try_from(fstat(&memory).unwrap().st_blocks).unwrap() * BLOCK;
        assert_eq!(touched(), 0);
        allocate((8 * PAGE, memory.as_fd()), Some(&mapping), PAGE, 2 * PAGE).unwrap();
        assert!((2 * PAGE..8 * PAGE).contains(&touched()), "{}", touched());
        for (from, bytes) in
            [(1, PAGE), (0, 9 * PAGE), (8 * PAGE, 1), (u64::MAX - PAGE + 1, 2 * PAGE), (0, STEP + 1)]
        {
            assert!(allocate((8 * PAGE, memory.as_fd()), None, from, bytes).is_err(), "{from} {bytes}");
        }
        assert!(ftruncate(&memory, PAGE).is_err() && ftruncate(&memory, 9 * PAGE).is_err());
        fcntl_add_seals(&memory, SealFlags::FUTURE_WRITE).unwrap();
        allocate((8 * PAGE, memory.as_fd()), Some(&mapping), 4 * PAGE, PAGE).unwrap();
        let late = allocate((8 * PAGE, memory.as_fd()), None, 6 * PAGE, PAGE);
        assert!(late.is_err(), "sealed, it takes a mapping that was there before");
    }
}
