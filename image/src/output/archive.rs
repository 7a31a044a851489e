//! An archive in a file.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::spawn_blocking;
use weightd_store::io::Buffer;

use super::Partial;
use crate::{
    ImageError,
    archive::{EncodeError, Encoder, EncoderState, Plan},
};

/// What is encoded and written at once: it is still in the processor's caches then.
const AT_ONCE: usize = 1 << 20;

/// An archive that is being written.
pub(crate) struct ArchiveFile {
    /// `None` while a thread has it, or after that failed.
    writer: Option<Writer>,
    path: PathBuf,
    /// Length of the whole, for messages.
    archive_bytes: u64,
}

struct Writer {
    encoder: Encoder,
    file: Arc<File>,
    out: Vec<u8>,
}

impl ArchiveFile {
    /// Begins, or goes on where an earlier run was.
    pub(super) fn open(
        partial: &Partial,
        plan: Plan,
        state: Option<EncoderState>,
    ) -> Result<Self, ImageError> {
        let (path, archive_bytes) = (partial.path().to_owned(), plan.archive_bytes());
        let encoder = match state {
            Some(state) => Encoder::resume(plan, state).map_err(refused(&path))?,
            None => Encoder::new(plan),
        };
        let at = encoder.state().archive_bytes;
        let open = || {
            let mut file = partial.file().try_clone()?;
            file.set_len(at)?;
            file.seek(SeekFrom::Start(at))?;
            Ok(file)
        };
        let file = Arc::new(open().map_err(ImageError::io("write", &path))?);
        Ok(Self { writer: Some(Writer { encoder, file, out: Vec::new() }), path, archive_bytes })
    }

    pub(super) async fn put(&mut self, buffer: Buffer) -> Result<(), ImageError> {
        self.with(move |writer| {
            for part in buffer.chunks(AT_ONCE) {
                writer.encoder.write(part, &mut writer.out).map_err(io::Error::other)?;
                writer.flush()?;
            }
            Ok(())
        })
        .await
    }

    /// Where it is. Nothing is held back: all that was taken is in the file.
    pub(super) fn state(&self) -> EncoderState {
        self.writer.as_ref().expect("nothing is asked after a failure").encoder.state()
    }

    pub(super) async fn sync(&mut self) -> Result<(), ImageError> {
        self.with(|writer| writer.file.sync_data()).await
    }

    pub(super) async fn finish(mut self) -> Result<u64, ImageError> {
        let Some(Writer { encoder, file, mut out }) = self.writer.take() else {
            return Err(self.failed(io::Error::other("an earlier write failed")));
        };
        encoder.finish(&mut out).map_err(refused(&self.path))?;
        let written = spawn_blocking(move || (&*file).write_all(&out).and_then(|()| file.sync_all())).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| self.failed(error))?;
        Ok(self.archive_bytes)
    }

    /// Has a thread work with the writer.
    async fn with(
        &mut self,
        work: impl FnOnce(&mut Writer) -> io::Result<()> + Send + 'static,
    ) -> Result<(), ImageError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(self.failed(io::Error::other("an earlier write failed")));
        };
        let worked = spawn_blocking(move || {
            let outcome = work(&mut writer);
            (writer, outcome)
        });
        let (writer, outcome) = worked.await.map_err(|error| self.failed(io::Error::other(error)))?;
        self.writer = Some(writer);
        outcome.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> ImageError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ImageError::Full { path: self.path.clone(), needed: self.archive_bytes }
            }
            _ => ImageError::io("write", &self.path)(error),
        }
    }
}

/// A state or bytes that do not go with the plan.
fn refused(path: &Path) -> impl FnOnce(EncodeError) -> ImageError {
    ImageError::encode(path.display().to_string())
}

impl Writer {
    fn flush(&mut self) -> io::Result<()> {
        (&*self.file).write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }
}
