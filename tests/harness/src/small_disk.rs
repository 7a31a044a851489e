//! A disk small enough to fill.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

/// An ext4 file system on a loop device, mounted; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mounted_at: PathBuf,
}

impl SmallDisk {
    /// Makes one of `bytes` in the directory `under`. Needs root and loop devices: without them the test is skipped,
    /// which this has said then.
    pub fn mount(under: &Path, bytes: u64) -> Option<Self> {
        Self::try_mount(under, bytes).inspect_err(|reason| crate::skip(reason)).ok()
    }

    fn try_mount(under: &Path, bytes: u64) -> Result<Self, String> {
        let (image, mounted_at) = (under.join("small.img"), under.join("small"));
        let words = |error: io::Error| error.to_string();
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).map_err(words)?;
        fs::create_dir(&mounted_at).map_err(words)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted_at))?;
        Ok(Self { mounted_at })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Makes it read-only.
    ///
    /// # Errors
    /// Says why not; most often, because someone has a file open for writing there.
    pub fn make_read_only(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.mounted_at))
    }
}

impl Drop for SmallDisk {
    /// Lazily, because a test that fails still holds files there, and must not leave a mount behind.
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.mounted_at)) {
            let words = format!("{} stays mounted: {error}\n", self.mounted_at.display());
            // Nothing can be done about a closed stderr.
            let _ = io::stderr().write_all(words.as_bytes());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
