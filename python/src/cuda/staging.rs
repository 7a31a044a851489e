//! Buffers that the driver made, through which bytes go that it does not take where they lie. A copy to one of them is on the
//! processor, and the device's copy from it goes on while the next one is filled.
#![expect(unsafe_code, reason = "calls of the driver, and copies to memory that it gives")]

use std::{
    collections::VecDeque,
    ptr::{self, NonNull},
    sync::Mutex,
};

use super::{
    device::Device,
    driver::{DevicePointer, Failure, Handle},
};
use crate::agents::lock;

/// Length of a buffer.
const BYTES: usize = 16 << 20;
/// How many there are at most: one is filled, one is read, and two are where the one waits for the other.
const COUNT: usize = 4;
/// Where a piece in a buffer begins, as the device reads it fastest.
const ALIGNMENT: usize = 256;
const HOST_PORTABLE: u32 = 1;

/// The buffers of a device.
#[derive(Debug)]
pub(crate) struct Staging {
    device: &'static Device,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The one that is being filled comes last, the one that was filled first comes first.
    buffers: VecDeque<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    used: usize,
    /// Comes to pass when the device has read all of it.
    read: Handle,
}

// SAFETY: its memory is the driver's, and any thread may use it; the lock lets one at a time.
unsafe impl Send for Buffer {}

impl Staging {
    pub(super) fn new(device: &'static Device) -> Self {
        Self { device, state: Mutex::default() }
    }

    /// Copies rows of `width` bytes, `pitch` apart, to the device, where they follow each other. They have been read when it
    /// returns. The device's context must be the thread's.
    ///
    /// # Safety
    /// All rows may be read.
    pub(super) unsafe fn copy(
        &self,
        from: *const u8,
        (width, pitch, rows): (usize, usize, usize),
        to: DevicePointer,
    ) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let total = width * rows;
        let mut done = 0;
        while done < total {
            let room = state.room(self.device)?;
            let filled = (total - done).min(room.len);
            // SAFETY: the rows may be read, and the buffer has room for so many bytes, which the device has read.
            unsafe { gather(from, (width, pitch), done, filled, room.start) };
            let target = to.wrapping_add(done as u64);
            // SAFETY: the buffer stays until the device has read it, which its event tells.
            unsafe { self.device.driver().copy(target, room.start.cast(), filled, self.device.stream()) }?;
            state.fill(self.device, filled)?;
            done += filled;
        }
        Ok(())
    }
}

/// Room in a buffer.
struct Free {
    start: *mut u8,
    len: usize,
}

impl State {
    /// Room in the buffer that is being filled, or in the next one, for which it waits.
    fn room(&mut self, device: &Device) -> Result<Free, Failure> {
        if self.buffers.back().is_none_or(|buffer| buffer.used >= BYTES) {
            if self.buffers.len() < COUNT {
                self.buffers.push_back(Buffer::new(device)?);
            } else if let Some(mut oldest) = self.buffers.pop_front() {
                let read = device.wait_for(oldest.read);
                oldest.used = 0;
                self.buffers.push_back(oldest);
                read?;
            }
        }
        let buffer = self.buffers.back().expect("one was made, or there were all");
        // SAFETY: it is not full.
        let start = unsafe { buffer.start.as_ptr().add(buffer.used) };
        Ok(Free { start, len: BYTES - buffer.used })
    }

    /// Counts what the device was told to read of the buffer that is being filled.
    fn fill(&mut self, device: &Device, bytes: usize) -> Result<(), Failure> {
        let buffer = self.buffers.back_mut().expect("it has room");
        buffer.used = (buffer.used + bytes).next_multiple_of(ALIGNMENT).min(BYTES);
        // Also of one that is not full: it may be freed, and nobody would know what is still to be read.
        device.record(buffer.read)
    }
}

impl Buffer {
    fn new(device: &Device) -> Result<Self, Failure> {
        let mut start = ptr::null_mut();
        let read = device.create_event()?;
        // SAFETY: it sets the pointer that it is given.
        let made = unsafe { device.driver().allocate_host(&raw mut start, BYTES, HOST_PORTABLE) };
        if let Err(failure) = made {
            device.destroy_event(read);
            return Err(failure);
        }
        let start = NonNull::new(start.cast()).expect("the driver made it");
        Ok(Self { start, used: 0, read })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let Some(_entered) = self.device.enter_to_undo() else { return };
        for buffer in lock(&self.state).buffers.drain(..) {
            // Of a device that failed nothing is read any more.
            let _ = self.device.wait_for(buffer.read);
            // SAFETY: the driver made it, and nobody reads or writes it.
            let _ = unsafe { self.device.driver().free_host(buffer.start.as_ptr().cast()) };
            self.device.destroy_event(buffer.read);
        }
    }
}

/// Copies bytes `done` to `done + bytes` of rows, as if they followed each other.
///
/// # Safety
/// The rows may be read, and so many bytes may be written.
unsafe fn gather(
    from: *const u8,
    (width, pitch): (usize, usize),
    mut done: usize,
    mut bytes: usize,
    mut to: *mut u8,
) {
    while bytes > 0 {
        let (row, column) = (done / width, done % width);
        let piece = (width - column).min(bytes);
        // SAFETY: within a row, and within what may be written.
        unsafe {
            ptr::copy_nonoverlapping(from.add(row * pitch + column), to, piece);
            to = to.add(piece);
        }
        done += piece;
        bytes -= piece;
    }
}
