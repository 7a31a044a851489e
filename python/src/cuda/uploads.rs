//! Tensors on their way to a device.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    copying::Readable,
    device::{Device, Refusal},
    driver::{DevicePointer, Failure, Handle},
    flights::{Events, Failed, Held, Room},
    registration::Window,
    staging::Staging,
};
use crate::{agents::lock, layout::Layout, memory::Memory};

/// Where the bytes of a tensor are copied from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Memory that the driver does not know.
    Memory { memory: Arc<Memory>, offset: usize },
    /// An arena, and what must stay for its bytes to be the tensor's.
    Window { window: Arc<Window>, offset: usize, memory: Option<Arc<Memory>> },
}

/// Brings the tensors of one model to a device.
#[derive(Debug)]
pub(crate) struct Uploader {
    pub(super) device: &'static Device,
    /// Most bytes that are registered at once.
    chunk: usize,
    /// Most bytes that are on their way at once.
    limit: usize,
    /// Most bytes that rows of one copy may be apart.
    pub(super) max_pitch: usize,
    /// With which flags memory is registered; else why it is not.
    registering: Mutex<Result<u32, String>>,
    /// Whether somebody was told why it is not.
    is_told: AtomicBool,
    /// Nanoseconds in which memory was registered.
    registering_for: AtomicU64,
    events: Arc<Events>,
    failed: Arc<Failed>,
    /// Kept from when they are first needed.
    staging: OnceLock<Arc<Staging>>,
}

/// Room for a copy, given back when it is over.
#[derive(Debug)]
pub(crate) struct Space(Room);

impl Uploader {
    /// To a device. `unregistrable`: why nothing that it copies can be registered, where that is so from the outset.
    pub(crate) fn new(
        device: &'static Device,
        chunk: usize,
        limit: usize,
        unregistrable: Option<String>,
    ) -> Self {
        let is_told = AtomicBool::new(unregistrable.is_some());
        let registering = Mutex::new(unregistrable.map_or_else(|| device.registering(), Err));
        let (max_pitch, events) = (device.max_pitch(), Arc::new(Events::new(device)));
        let (failed, staging) = (Arc::default(), OnceLock::new());
        Self {
            device,
            chunk,
            limit,
            max_pitch,
            registering,
            is_told,
            registering_for: AtomicU64::new(0),
            events,
            failed,
            staging,
        }
    }

    pub(crate) fn device(&self) -> &'static Device {
        self.device
    }

    /// Most bytes that are registered at once.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk
    }

    /// The stream that copies are made on, as torch knows streams.
    pub(crate) fn stream(&self) -> usize {
        self.device.stream()
    }

    /// Why nothing more is registered, if that is so.
    pub(crate) fn unregistrable(&self) -> Option<String> {
        lock(&self.registering).as_ref().err().cloned()
    }

    /// The same, once, unless it was known from the outset.
    pub(crate) fn news(&self) -> Option<String> {
        let why = self.unregistrable()?;
        (!self.is_told.swap(true, Ordering::Relaxed)).then_some(why)
    }

    /// For how long memory was registered, while copies that had begun before went on.
    pub(crate) fn registering_for(&self) -> Duration {
        Duration::from_nanos(self.registering_for.load(Ordering::Relaxed))
    }

    /// Whether copies can be begun.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if !self.device.is_ours() {
            return Err(Refusal::Forked);
        }
        self.failed.get().map_or(Ok(()), |failure| Err(Refusal::Broken(failure)))
    }

    /// Room for a copy of so many bytes; none when the patience is over.
    pub(crate) fn room(&self, bytes: usize, patience: Duration) -> Option<Space> {
        self.device.flights().room(bytes, self.limit, patience).map(Space)
    }

    /// Begins to copy a tensor, row by row, to memory of the device, and has a stream of somebody else wait for it.
    ///
    /// # Safety
    /// The source has all that the layout says. The target has room for its bytes, and is used on that stream only, or by what
    /// waits for it.
    pub(crate) unsafe fn copy(
        &self,
        source: Source,
        layout: &Layout,
        target: DevicePointer,
        waiting: Handle,
        Space(room): Space,
    ) -> Result<(), Failure> {
        let _entered = self.device.enter()?;
        // SAFETY: the caller's to see to.
        let (outcome, held) = unsafe { self.begin(source, layout, target) };
        // Also of a copy that failed, the parts that had begun go on.
        let event = self.events.take().and_then(|event| self.device.record(event).map(|()| event));
        let event = match event {
            Ok(event) => event,
            Err(failure) => {
                // Nobody will know when it is over, so it stays.
                std::mem::forget(held);
                return Err(failure);
            }
        };
        // SAFETY: the event is this device's, the stream one of its context.
        let waits = unsafe { self.device.driver().stream_wait(waiting, event, 0) };
        self.device.flights().hold(event, self.events.clone(), held, room, &self.failed);
        outcome.and(waits)
    }

    /// Says also what has to stay until it is over.
    unsafe fn begin(
        &self,
        source: Source,
        layout: &Layout,
        target: DevicePointer,
    ) -> (Result<(), Failure>, Vec<Held>) {
        let (all_rows, span) = layout.rows();
        match source {
            Source::Memory { memory, offset } => {
                assert!(memory.has(offset, span), "a part of this memory");
                let start = memory.start().cast_const().wrapping_add(offset);
                let readable = Readable { start, registered: &[] };
                // Staging has read it when it returns.
                // SAFETY: as it was checked, and as the caller says.
                (unsafe { self.copy_rows(&readable, &all_rows, target) }, Vec::new())
            }
            Source::Window { window, offset, memory } => {
                let inside = offset.checked_add(span).is_some_and(|end| end <= window.len());
                assert!(inside, "a part of the arena");
                let flags = lock(&self.registering).as_ref().ok().copied();
                let begun = Instant::now();
                let (mut registered, failure) = window.registered(offset..offset + span, flags);
                let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.registering_for.fetch_add(nanos, Ordering::Relaxed);
                if let Some(failure) = failure {
                    *lock(&self.registering) = Err(failure.to_string());
                }
                for piece in &mut registered {
                    *piece = piece.start - offset..piece.end - offset;
                }
                let start = window.start().wrapping_add(offset);
                let readable = Readable { start, registered: &registered };
                // SAFETY: as it was checked, and as the caller says.
                let outcome = unsafe { self.copy_rows(&readable, &all_rows, target) };
                let held: Held = Box::new((memory, window.held()));
                (outcome, if registered.is_empty() { Vec::new() } else { vec![held] })
            }
        }
    }

    pub(super) fn staging(&self) -> &Staging {
        self.staging.get_or_init(|| self.device.staging())
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        // Letting go of buffers waits until the device has read them, which whoever closes a model need not.
        if let Some(staging) = self.staging.take()
            && self.device.is_ours()
        {
            let mut staging = Some(staging);
            self.device.flights().undo(Box::new(move || {
                staging.take();
                false
            }));
        }
    }
}
