//! What an archive will be, decided before its first byte.

use super::{
    DISK_UNIT_BYTES,
    gzip::{self, Crc32},
    tar,
};
use weightd_types::ByteRange;

/// A disk that cannot be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Compute Engine would refuse it.
    #[error("a disk of {0} bytes cannot be imported: make it a multiple of 1 GiB, and at most 8 EiB")]
    Size(u64),
    /// The map would not be one.
    #[error(
        "the data in bytes {}..{} of the disk is out of order, beyond its end, or not whole sectors of 512 bytes",
        .0.start, .0.end
    )]
    Range(ByteRange),
}

/// The archive of a disk: its exact length, the headers, and where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The ranges with data, none of them empty, no two touching.
    data: Vec<ByteRange>,
    /// For each, how many bytes of data come before it.
    before: Vec<u64>,
    /// Their bytes together.
    data_bytes: u64,
    /// The tar stream up to the data.
    head: Vec<u8>,
}

impl Plan {
    /// The archive of a disk of `disk_bytes` that holds data in `data` and zeros elsewhere. Its member carries
    /// `time`, in seconds since 1970. Ranges that are empty or touch the next are taken, and left out or joined.
    ///
    /// # Errors
    /// [`PlanError::Size`] when the disk is empty or not whole GiB; [`PlanError::Range`] for the first range that
    /// begins before the last one ended, ends after the disk, or is not whole sectors.
    pub(crate) fn new(
        disk_bytes: u64,
        data: impl IntoIterator<Item = ByteRange>,
        time: u64,
    ) -> Result<Self, PlanError> {
        // The bound keeps every sum with framing and padding within 64 bits.
        if disk_bytes == 0 || !disk_bytes.is_multiple_of(DISK_UNIT_BYTES) || disk_bytes > 1 << 63 {
            return Err(PlanError::Size(disk_bytes));
        }
        let mut map = RangeMap::new(disk_bytes);
        for range in data {
            map.push(range).map_err(|_| PlanError::Range(range))?;
        }
        let data = map.into_ranges();
        let head = tar::head(disk_bytes, &data, time);
        let mut data_bytes = 0;
        let before = data.iter().map(|range| {
            data_bytes += range.len();
            data_bytes - range.len()
        });
        Ok(Self { before: before.collect(), data, data_bytes, head })
    }

    /// Exact length of the archive in bytes.
    pub(crate) fn archive_bytes(&self) -> u64 {
        gzip::file_bytes(self.tar_bytes())
    }

    /// Number of bytes of data, which is what an encoder wants to be given.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Where the data lies on the disk: what to give to an encoder, in this order.
    #[cfg(test)]
    pub(crate) fn data(&self) -> &[ByteRange] {
        &self.data
    }

    /// Where the byte `disk` of the disk lies in the archive; `None` in a hole and beyond the end. The rest of
    /// its sector of 512 bytes follows in one piece.
    #[cfg(test)]
    pub(crate) fn position_of(&self, disk: u64) -> Option<u64> {
        let at = self.data.partition_point(|range| range.end <= disk);
        let within = disk.checked_sub(self.data.get(at)?.start)?;
        Some(gzip::position_of(self.head_bytes() + self.before[at] + within))
    }

    /// The tar stream up to the first byte of data: the header with the map of the data, and its extensions.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Length of [`Plan::head`].
    pub(super) fn head_bytes(&self) -> u64 {
        self.head.len() as u64
    }

    /// The zeros after the data.
    pub(super) fn tail(&self) -> Vec<u8> {
        tar::tail(self.head_bytes() + self.data_bytes)
    }

    /// Length of the tar stream.
    pub(super) fn tar_bytes(&self) -> u64 {
        let content = self.head_bytes() + self.data_bytes;
        content + tar::tail_bytes(content)
    }

    /// What tells this plan from others: its head says all there is about it.
    pub(super) fn fingerprint(&self) -> u32 {
        Crc32::of(&self.head).0
    }
}

/// Ranges in order, as they come in from a plan or from the map of an archive.
#[derive(Debug)]
pub(super) struct RangeMap {
    disk_bytes: u64,
    end: u64,
    ranges: Vec<ByteRange>,
}

/// A range that does not belong into a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfPlace;

impl RangeMap {
    /// No ranges yet, of a disk of `disk_bytes`.
    pub(super) const fn new(disk_bytes: u64) -> Self {
        Self { disk_bytes, end: 0, ranges: Vec::new() }
    }

    /// Adds the next range, joins it to the last where they touch, and drops it when empty.
    ///
    /// # Errors
    /// When it begins before the last one ended, ends after the disk, or is not whole sectors.
    pub(super) fn push(&mut self, range: ByteRange) -> Result<(), OutOfPlace> {
        let whole =
            range.start.is_multiple_of(tar::BLOCK_BYTES) && range.end.is_multiple_of(tar::BLOCK_BYTES);
        if !whole || range.start < self.end || range.end < range.start || range.end > self.disk_bytes {
            return Err(OutOfPlace);
        }
        self.end = range.end;
        match self.ranges.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        Ok(())
    }

    /// The ranges: in order, none empty, no two touching.
    pub(super) fn into_ranges(self) -> Vec<ByteRange> {
        self.ranges
    }
}
