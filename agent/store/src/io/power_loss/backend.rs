//! The index under a power-loss engine: its writes get lost like all others.

use std::{fs::File, io, os::unix::fs::FileExt};

use redb::StorageBackend;

use super::PowerLossEngine;

/// The index's file.
#[derive(Debug)]
pub(super) struct Backend {
    engine: PowerLossEngine,
    file: File,
}

impl Backend {
    pub(super) fn new(engine: PowerLossEngine, file: File) -> Self {
        Self { engine, file }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let _alive = self.engine.alive()?;
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let _alive = self.engine.alive()?;
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.engine.change(|state| {
            state.contents.before_set_len(&self.file, len)?;
            self.file.set_len(len)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.engine.change(|state| state.contents.synced(&self.file))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.engine.change(|state| state.write(&self.file, offset, data))
    }
}
