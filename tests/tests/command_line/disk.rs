//! A small disk of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An ext4 file system in a file, mounted; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    pub(crate) mounted_at: PathBuf,
}

impl SmallDisk {
    /// Needs root and loop devices; says why otherwise.
    pub(crate) fn mount(under: &Path, bytes: u64) -> Result<Self, String> {
        let (image, mounted_at) = (under.join("small.img"), under.join("small"));
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
        fs::create_dir(&mounted_at).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted_at))?;
        Ok(Self { mounted_at })
    }

    pub(crate) fn make_read_only(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.mounted_at))
    }
}

impl Drop for SmallDisk {
    /// Lazily, because a test that fails still holds files there, and must not leave a mount behind.
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.mounted_at)) {
            eprintln!("{} stays mounted: {error}", self.mounted_at.display());
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
