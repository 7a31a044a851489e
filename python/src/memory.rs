//! Memory that tensors lie in: it is there as long as anything refers to it, and not longer.
#![expect(unsafe_code, reason = "mapping a file, and memory that Python's frameworks write to")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    fs::File,
    io,
    ptr::{self, NonNull},
    sync::Arc,
};

use memmap2::{MmapOptions, MmapRaw};
use weightd_client::handoff::{Session, Taken};

/// Where copies begin: a cache line, which is what JAX needs to use memory in place.
const COPY_ALIGNMENT: usize = 64;

/// A piece of memory that others read and write.
#[derive(Debug)]
pub(crate) enum Memory {
    /// A private mapping of a file: what is written stays here.
    Mapped(MmapRaw),
    /// A private mapping of an arena, and what must not end before it.
    Lent { map: MmapRaw, _lease: Arc<Session> },
    /// A tensor's place in a ring, which is given back with it.
    Taken(Taken),
    /// A copy of a tensor.
    Copied(Copied),
}

impl Memory {
    /// Maps a whole file, which was opened for reading only. Model servers write into what they are given, so the mapping
    /// is writable: a page that is written to becomes this process's own.
    pub(crate) fn map(file: &File, bytes: u64) -> io::Result<Self> {
        // Without a reservation: the kernel would ask for as much swap as the model is long, though hardly a page is
        // ever written to.
        let mut options = MmapOptions::new();
        options.len(usize::try_from(bytes).map_err(io::Error::other)?).no_reserve_swap();
        // SAFETY: no reference to the mapped bytes is ever made, only raw pointers. What the kernel does to a mapping
        // whose file is cut short is the caller's to know: docs/PYTHON.md says so.
        let map = unsafe { options.map_copy(file) }?;
        Ok(Self::Mapped(MmapRaw::from(map)))
    }

    /// An arena that an agent lends as long as the session lasts.
    pub(crate) fn lent(map: MmapRaw, session: Arc<Session>) -> Self {
        Self::Lent { map, _lease: session }
    }

    /// For tensors without bytes.
    pub(crate) fn nothing() -> Self {
        Self::Copied(Copied::new(0).expect("there is room for one cache line"))
    }

    /// A copy of runs of bytes, `run` long, one behind the other, at an address that suits every type. They have `bytes`
    /// together. None when there is no memory for it.
    pub(crate) fn copy(&self, run: usize, starts: impl Iterator<Item = usize>, bytes: usize) -> Option<Self> {
        let copied = Copied::new(bytes)?;
        let mut filled = 0;
        for start in starts {
            assert!(start.checked_add(run).is_some_and(|end| end <= self.len()), "a part of this memory");
            assert!(filled + run <= bytes, "there is room for it");
            // SAFETY: source and target were checked above. The target was just allocated, and nobody else has it.
            unsafe {
                ptr::copy_nonoverlapping(self.start().add(start), copied.start.as_ptr().add(filled), run);
            }
            filled += run;
        }
        Some(Self::Copied(copied))
    }

    /// Whether it has `length` bytes from `offset` on.
    pub(crate) fn has(&self, offset: usize, length: usize) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.len())
    }

    /// Whether `length` bytes from `offset` on are those that another piece of memory has from `other_offset` on.
    pub(crate) fn has_same(&self, offset: usize, other: &Self, other_offset: usize, length: usize) -> bool {
        assert!(self.has(offset, length) && other.has(other_offset, length), "parts of this memory");
        // SAFETY: both were checked above. Nobody writes there meanwhile: it is asked of mappings of its own, of tensors that
        // have come, which are never filled again.
        unsafe {
            let part = |memory: &Self, offset| std::slice::from_raw_parts(memory.start().add(offset), length);
            part(self, offset) == part(other, other_offset)
        }
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        match self {
            Self::Mapped(map) | Self::Lent { map, .. } => map.as_mut_ptr(),
            Self::Taken(taken) => taken.as_mut_ptr(),
            Self::Copied(copied) => copied.start.as_ptr(),
        }
    }

    /// How many bytes it has.
    fn len(&self) -> usize {
        match self {
            Self::Mapped(map) | Self::Lent { map, .. } => map.len(),
            Self::Taken(taken) => taken.bytes(),
            Self::Copied(copied) => copied.length,
        }
    }
}

/// Allocated memory.
#[derive(Debug)]
pub(crate) struct Copied {
    start: NonNull<u8>,
    length: usize,
    layout: Layout,
}

// SAFETY: it owns its memory, which is reached through raw pointers only.
unsafe impl Send for Copied {}
// SAFETY: as above; nothing here writes to it after it was made.
unsafe impl Sync for Copied {}

impl Copied {
    fn new(length: usize) -> Option<Self> {
        let layout = Layout::from_size_align(length.max(1), COPY_ALIGNMENT).ok()?;
        // SAFETY: the layout has at least one byte.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, length, layout })
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
