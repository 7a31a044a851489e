//! The image of a disk, mounted as a node would.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::Unready;

/// A disk image mounted through a loop device, read-only; unmounted when dropped.
#[derive(Debug)]
pub struct LoopMount {
    mounted_at: PathBuf,
}

impl LoopMount {
    /// Mounts an image at a directory, which is made when it is missing.
    ///
    /// # Errors
    /// [`Unready`] without root or loop devices.
    pub fn read_only(image: &Path, target: &Path) -> Result<Self, Unready> {
        Self::mount(image, target, "loop,ro,noload")
    }

    /// The same for writing.
    ///
    /// # Errors
    /// As [`LoopMount::read_only`].
    pub fn writable(image: &Path, target: &Path) -> Result<Self, Unready> {
        Self::mount(image, target, "loop")
    }

    fn mount(image: &Path, target: &Path, options: &str) -> Result<Self, Unready> {
        let refused = |why: String| Unready::NotAllowed { what: "mounting an image".to_owned(), why };
        fs::create_dir_all(target).map_err(|error| refused(error.to_string()))?;
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "ext4", "-o", options]).arg(image).arg(target)).map_err(refused)?;
        Ok(Self { mounted_at: target.to_owned() })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Takes it away at once, whoever has files of it open.
    pub fn detach(self) {}
}

impl Drop for LoopMount {
    /// Lazily, because a test that fails still holds files there, and must not leave a mount behind.
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.mounted_at)) {
            let words = format!("{} stays mounted: {error}\n", self.mounted_at.display());
            // Nothing can be done about a closed stderr.
            let _ = io::stderr().write_all(words.as_bytes());
        }
    }
}

/// Runs a program of the system; what it said is the error.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
