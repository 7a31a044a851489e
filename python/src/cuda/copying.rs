//! How the rows of a tensor are copied: in few calls, none of which crosses the border of what is registered, because the driver
//! takes no such copy. What is not registered goes through buffers.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::ops::Range;

use super::{
    driver::{DevicePointer, Failure, Rectangle},
    uploads::Uploader,
};
use crate::layout::Rows;

/// Bytes that a device can be told to copy.
pub(super) struct Readable<'a> {
    pub(super) start: *const u8,
    /// What of it is registered, from `start` on.
    pub(super) registered: &'a [Range<usize>],
}

impl Uploader {
    /// Begins to copy rows to where they follow each other.
    ///
    /// # Safety
    /// All rows may be read, those that are registered until their copy is over. The target has room for them.
    pub(super) unsafe fn copy_rows(
        &self,
        source: &Readable<'_>,
        all_rows: &[Rows],
        mut target: DevicePointer,
    ) -> Result<(), Failure> {
        for rows in all_rows {
            let mut rows = *rows;
            while rows.count > 0 {
                // SAFETY: the caller's to see to.
                let done = unsafe { self.copy_some(source, rows, target) }?;
                target += (done * rows.width) as u64;
                rows.start += done * rows.pitch;
                rows.count -= done;
            }
        }
        Ok(())
    }

    /// Copies at least one row, and as many as one call does. Says how many.
    unsafe fn copy_some(
        &self,
        source: &Readable<'_>,
        rows: Rows,
        target: DevicePointer,
    ) -> Result<usize, Failure> {
        let Rows { start, width, pitch, count } = rows;
        let piece = source.piece(start);
        let fitting = |end: usize| {
            let whole = end.checked_sub(start + width).map_or(0, |rest| rest / pitch.max(1) + 1);
            if count == 1 || pitch > self.max_pitch { whole.min(1) } else { whole.min(count) }
        };
        let from = source.start.wrapping_add(start);
        match piece {
            Ok(end) if fitting(end) > 1 => {
                let rectangle = Rectangle::gathered(from, pitch, width, fitting(end), target);
                // SAFETY: all of the rows are in one registered piece, and the caller sees to the target.
                unsafe { self.device.driver().copy_rectangle(&raw const rectangle, self.device.stream()) }?;
                Ok(fitting(end))
            }
            // Rows that lie before the next registered piece.
            Err(end) if end >= start + width => {
                let whole = ((end - start - width) / pitch.max(1) + 1).min(count);
                // SAFETY: all of the rows may be read.
                unsafe { self.staging().copy(from, (width, pitch, whole), target) }?;
                Ok(whole)
            }
            // One row, in as many pieces as it lies in.
            Ok(_) | Err(_) => {
                // SAFETY: a row that may be read.
                unsafe { self.copy_row(source, start..start + width, target) }?;
                Ok(1)
            }
        }
    }

    unsafe fn copy_row(
        &self,
        source: &Readable<'_>,
        row: Range<usize>,
        target: DevicePointer,
    ) -> Result<(), Failure> {
        let mut at = row.start;
        while at < row.end {
            let (from, to) = (source.start.wrapping_add(at), target + (at - row.start) as u64);
            let (piece, is_registered) = match source.piece(at) {
                Ok(end) => (end.min(row.end) - at, true),
                Err(end) => (end.min(row.end) - at, false),
            };
            if is_registered {
                // SAFETY: it lies in one registered piece, which is held until the device has read it.
                unsafe { self.device.driver().copy(to, from.cast(), piece, self.device.stream()) }?;
            } else {
                // SAFETY: a part of a row that may be read.
                unsafe { self.staging().copy(from, (piece, piece, 1), to) }?;
            }
            at += piece;
        }
        Ok(())
    }
}

impl Readable<'_> {
    /// Where the registered piece ends that a byte lies in; else, as an error, where the next one begins.
    fn piece(&self, at: usize) -> Result<usize, usize> {
        let next = self.registered.partition_point(|piece| piece.end <= at);
        match self.registered.get(next) {
            Some(piece) if piece.start <= at => Ok(piece.end),
            Some(piece) => Err(piece.start),
            None => Err(usize::MAX),
        }
    }
}
