//! The two forms of a disk: as it is, and in an archive.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use tokio::sync::watch;
use weightd_source::chain;
use weightd_types::ByteRange;

use super::scan::{Next, Scan};
use crate::{
    ImageError, Progress,
    archive::{ArchiveError, Reader},
};

/// What is read at once.
const READ_BYTES: usize = 4 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Gives a scan what it wants of a disk, in the order of the disk.
pub(super) fn read(
    path: &Path,
    scan: &mut Scan,
    progress: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let mut magic = [0; 2];
    let begins = file.read_at(&mut magic, 0).map_err(ImageError::io("read", path))?;
    match begins == magic.len() && magic == GZIP {
        true => read_archive(path, &mut file, scan, progress),
        false => read_disk(path, &file, scan, progress),
    }
}

fn read_disk(
    path: &Path,
    file: &File,
    scan: &mut Scan,
    progress: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let wanted = match scan.next()? {
            Next::Range(range) => range,
            Next::Enough => return Ok(()),
        };
        let len = usize::try_from(wanted.len()).unwrap_or(READ_BYTES).min(READ_BYTES);
        match file.read_exact_at(&mut buffer[..len], wanted.start) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && wanted.start == 0 => {
                let why = "it is shorter than any".to_owned();
                return Err(ImageError::NotAnImage { path: path.to_owned(), why });
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let why = format!("it ends before byte {}", wanted.start + len as u64);
                return Err(ImageError::Damaged { path: path.to_owned(), why });
            }
            Err(error) => return Err(ImageError::io("read", path)(error)),
        }
        scan.feed(wanted.start, &buffer[..len])?;
        report(scan, progress);
    }
}

fn read_archive(
    path: &Path,
    file: impl Read,
    scan: &mut Scan,
    progress: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let failed = |cause: ArchiveError| ImageError::Archive { path: path.to_owned(), why: chain(&cause) };
    let mut reader = Reader::open(file).map_err(failed)?;
    scan.set_disk_bytes(reader.disk_bytes());
    let mut buffer = vec![0; READ_BYTES];
    while let Some(ByteRange { start, end }) = reader.next_run(&mut buffer).map_err(failed)? {
        let run = usize::try_from(end - start).unwrap_or(READ_BYTES);
        scan.feed(start, &buffer[..run])?;
        report(scan, progress);
        // What was asked for is known before the archive's own checksum is.
        if scan.has_names() {
            return Ok(());
        }
    }
    Ok(())
}

fn report(scan: &Scan, progress: Option<&watch::Sender<Progress>>) {
    if let Some(progress) = progress {
        progress.send_replace(scan.progress());
    }
}
