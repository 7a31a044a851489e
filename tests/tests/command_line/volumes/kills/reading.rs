//! Reads that are compared with the origin, and whose errors come back.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use rand::{RngExt, rngs::StdRng};

use crate::volumes::map;

/// The longest read.
const LONGEST: u64 = 2_000_000;

/// How a file is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Call,
    Map,
}

/// A file of a volume, and what must be in it.
struct Pair {
    origin: File,
    shown: File,
    path: PathBuf,
}

impl Pair {
    fn open(origin: &Path, shown: &Path, name: &str) -> Result<Self, String> {
        let path = shown.join(name);
        let shown = File::open(&path).map_err(|error| format!("opening {}: {error}", path.display()))?;
        Ok(Self { origin: File::open(origin.join(name)).unwrap(), shown, path })
    }

    /// Reads somewhere, from the mapping if there is one, and says how much.
    fn read(&self, mapped: Option<&Mmap>, random: &mut StdRng) -> Result<u64, String> {
        let length = self.origin.metadata().unwrap().len();
        let at = random.random_range(0..length);
        let wanted = random.random_range(1..LONGEST).min(length - at);
        let (mut expected, mut found) = (vec![0; wanted as usize], vec![0; wanted as usize]);
        self.origin.read_exact_at(&mut expected, at).unwrap();
        let read = match mapped {
            None => self.shown.read_exact_at(&mut found, at),
            Some(mapped) => copy(mapped, at as usize, &mut found),
        };
        let what =
            || format!("{wanted} bytes of {} at {at}, mapped: {}", self.path.display(), mapped.is_some());
        read.map_err(|error| format!("{}: {error}", what()))?;
        if expected == found { Ok(wanted) } else { Err(format!("{}: wrong", what())) }
    }
}

/// Copies out of a mapping by way of a file: what cannot be read is an error then, where a touch would end the test.
fn copy(mapped: &Mmap, at: usize, into: &mut [u8]) -> io::Result<()> {
    let file = tempfile::tempfile()?;
    file.write_all_at(&mapped[at..at + into.len()], 0)?;
    file.read_exact_at(into, 0)
}

/// Opens one of these files, reads somewhere in it, and says how much.
pub(super) fn read_somewhere(
    way: Way,
    origin: &Path,
    shown: &Path,
    names: &[&String],
    random: &mut StdRng,
) -> Result<u64, String> {
    let pair = Pair::open(origin, shown, names[random.random_range(0..names.len())])?;
    match way {
        Way::Call => pair.read(None, random),
        Way::Map => pair.read(Some(&map(&pair.shown)), random),
    }
}

/// Files that stay open, and mapped.
pub(super) struct OpenFiles(Vec<(Pair, Mmap)>);

impl OpenFiles {
    pub(super) fn open(origin: &Path, shown: &Path, names: &[&String]) -> Self {
        let open = |name: &&String| {
            let pair = Pair::open(origin, shown, name).unwrap();
            let mapped = map(&pair.shown);
            (pair, mapped)
        };
        Self(names.iter().map(open).collect())
    }

    /// Reads somewhere in one of them, and says how much.
    pub(super) fn read(&self, random: &mut StdRng) -> Result<u64, String> {
        let (pair, mapped) = &self.0[random.random_range(0..self.0.len())];
        pair.read(random.random::<bool>().then_some(mapped), random)
    }
}
