//! A disk small enough to fill.

use std::{fs, io, path::Path, process::Command};

use crate::loop_mount::{LoopMount, run};

/// An ext4 file system on a loop device, mounted; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mount: LoopMount,
}

impl SmallDisk {
    /// Makes one of `bytes` in the directory `under`. Needs root and loop devices: without them the test is skipped,
    /// which this has said then.
    pub fn mount(under: &Path, bytes: u64) -> Option<Self> {
        Self::try_mount(under, bytes).inspect_err(|reason| crate::skip(reason)).ok()
    }

    fn try_mount(under: &Path, bytes: u64) -> Result<Self, String> {
        let image = under.join("small.img");
        let words = |error: io::Error| error.to_string();
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).map_err(words)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let mount = LoopMount::writable(&image, &under.join("small")).map_err(|error| error.to_string())?;
        Ok(Self { mount })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.mount.path()
    }

    /// Makes it read-only.
    ///
    /// # Errors
    /// Says why not; most often, because someone has a file open for writing there.
    pub fn make_read_only(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()))
    }
}
