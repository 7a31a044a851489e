//! A device of the driver, with what this process needs of it: its context, a stream for copies, and who sees to it that they
//! end.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::{
    collections::BTreeMap,
    ffi::c_int,
    io,
    marker::PhantomData,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::{
    driver::{Driver, Failure, Handle},
    flights::Flights,
    staging::Staging,
};
use crate::agents::lock;

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_BLOCKING_SYNC: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;
const MAX_PITCH: c_int = 11;
const USES_HOST_PAGE_TABLES: c_int = 100;
const READ_ONLY_HOST_REGISTER: c_int = 113;
const REGISTER_PORTABLE: u32 = 1;
const REGISTER_READ_ONLY: u32 = 8;

/// Those that are in use.
static DEVICES: Mutex<BTreeMap<u32, &'static Device>> = Mutex::new(BTreeMap::new());

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the CUDA driver cannot be loaded ({0}): is it installed here, and mounted into this container?")]
    NoDriver(String),
    #[error("there is no such CUDA device: the driver has {0}; see CUDA_VISIBLE_DEVICES")]
    NoDevice(c_int),
    #[error(
        "this process was forked off from one that uses CUDA, which no driver allows: start processes anew, as multiprocessing's method \"spawn\" does"
    )]
    Forked,
    #[error(
        "no thread can be started to wait for copies ({0}): has the container reached its limit of processes?"
    )]
    NoThread(#[source] io::Error),
    #[error("the CUDA driver refuses ({0}); does nvidia-smi work here?")]
    Failed(#[source] Failure),
    #[error(
        "an earlier copy to it failed ({0}), after which a device is of no use to a process: start it again"
    )]
    Broken(#[source] Failure),
}

/// A device that is in use. It stays so until the process ends, as it does for torch: memory that torch allocated on the
/// stream knows it by its handle, also when nobody copies any more.
#[derive(Debug)]
pub(crate) struct Device {
    driver: &'static Driver,
    number: u32,
    device: c_int,
    context: Handle,
    stream: Handle,
    flights: Arc<Flights>,
    /// As long as somebody needs them.
    staging: Mutex<Weak<Staging>>,
}

/// The device's context is the calling thread's as long as this lives.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    driver: &'a Driver,
    /// It must be left by the thread that entered it.
    _thread: PhantomData<*const ()>,
}

impl Device {
    /// The device of that number, as `CUDA_VISIBLE_DEVICES` counts.
    pub(crate) fn open(number: u32) -> Result<&'static Self, Refusal> {
        let driver = Driver::get()?;
        let mut count = 0;
        // SAFETY: it sets the number that it is given.
        unsafe { driver.device_count(&raw mut count) }.map_err(Refusal::Failed)?;
        if i64::from(number) >= i64::from(count) {
            return Err(Refusal::NoDevice(count));
        }
        let mut devices = lock(&DEVICES);
        if let Some(device) = devices.get(&number) {
            return Ok(device);
        }
        let device: &'static Self = Box::leak(Box::new(Self::new(driver, number).map_err(Refusal::Failed)?));
        device.flights.start(device).map_err(Refusal::NoThread)?;
        devices.insert(number, device);
        Ok(device)
    }

    /// Waits until nothing is on its way to any of them, but not longer than that: a process that ends takes the driver from
    /// under whoever is in it.
    pub(crate) fn settle_all(patience: Duration) {
        if !Driver::get().is_ok_and(Driver::is_ours) {
            return;
        }
        let devices: Vec<&Self> = lock(&DEVICES).values().copied().collect();
        devices.into_iter().for_each(|device| device.flights.settle(patience));
    }

    fn new(driver: &'static Driver, number: u32) -> Result<Self, Failure> {
        let (mut device, mut context, mut stream) = (0, 0, 0);
        // SAFETY: it sets the number that it is given.
        unsafe { driver.device(&raw mut device, c_int::try_from(number).unwrap_or(c_int::MAX)) }?;
        // SAFETY: as above. The context is torch's and JAX's, too.
        unsafe { driver.retain_context(&raw mut context, device) }?;
        let created = enter(driver, context).and_then(|_entered| {
            // SAFETY: it sets the handle that it is given.
            unsafe { driver.create_stream(&raw mut stream, STREAM_NON_BLOCKING) }
        });
        if let Err(failure) = created {
            // SAFETY: it was retained above, and nothing of it is in use.
            let _ = unsafe { driver.release_context(device) };
            return Err(failure);
        }
        let staging = Mutex::default();
        Ok(Self { driver, number, device, context, stream, flights: Arc::default(), staging })
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Its number, as `CUDA_VISIBLE_DEVICES` counts.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The stream on which all copies are made.
    pub(super) fn stream(&self) -> Handle {
        self.stream
    }

    /// The copies that are being made.
    pub(super) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    /// Whether this process may use it, which one that was forked off may not.
    pub(super) fn is_ours(&self) -> bool {
        self.driver.is_ours()
    }

    /// Makes its context the calling thread's.
    pub(super) fn enter(&self) -> Result<Entered<'static>, Failure> {
        enter(self.driver, self.context)
    }

    /// The same for whoever lets go of something, if the driver may still be called: not in a process that was forked off, nor in
    /// one that ends.
    pub(super) fn enter_to_undo(&self) -> Option<Entered<'static>> {
        if self.is_ours() && !self.flights.is_ending() { self.enter().ok() } else { None }
    }

    /// The buffers that copies go through, one set for all.
    pub(super) fn staging(&'static self) -> Arc<Staging> {
        let mut known = lock(&self.staging);
        known.upgrade().unwrap_or_else(|| {
            let staging = Arc::new(Staging::new(self));
            *known = Arc::downgrade(&staging);
            staging
        })
    }

    /// With which flags memory is registered that this process may only read; else why it cannot be.
    pub(super) fn registering(&self) -> Result<u32, String> {
        let has = |attribute| self.attribute(attribute).map(|value| value != 0);
        match (has(READ_ONLY_HOST_REGISTER), has(USES_HOST_PAGE_TABLES)) {
            (Ok(true), _) => Ok(REGISTER_PORTABLE | REGISTER_READ_ONLY),
            // Such a device goes by the processor's own page tables, and needs not be told.
            (Ok(false), Ok(true)) => Ok(REGISTER_PORTABLE),
            (Ok(false), Ok(false)) => {
                Err("this device or its driver cannot register memory that is read-only".to_owned())
            }
            (Err(failure), _) | (_, Err(failure)) => Err(failure.to_string()),
        }
    }

    /// Most bytes that rows of one copy may be apart.
    pub(super) fn max_pitch(&self) -> usize {
        self.attribute(MAX_PITCH).ok().and_then(|pitch| usize::try_from(pitch).ok()).unwrap_or(0)
    }

    fn attribute(&self, attribute: c_int) -> Result<c_int, Failure> {
        let mut value = 0;
        // SAFETY: it sets the number that it is given.
        unsafe { self.driver.attribute(&raw mut value, attribute, self.device) }?;
        Ok(value)
    }

    /// An event, for waiting without keeping a processor busy. Its context must be the thread's, as for all below.
    pub(super) fn create_event(&self) -> Result<Handle, Failure> {
        let mut event = 0;
        // SAFETY: it sets the handle that it is given.
        unsafe { self.driver.create_event(&raw mut event, EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING) }?;
        Ok(event)
    }

    /// Has an event come to pass when everything on the stream so far has.
    pub(super) fn record(&self, event: Handle) -> Result<(), Failure> {
        // SAFETY: both were made by this device.
        unsafe { self.driver.record_event(event, self.stream) }
    }

    /// Waits until an event has come to pass.
    pub(super) fn wait_for(&self, event: Handle) -> Result<(), Failure> {
        // SAFETY: it was made by this device.
        unsafe { self.driver.wait_for_event(event) }
    }

    /// Nobody waits for the event any more.
    pub(super) fn destroy_event(&self, event: Handle) {
        // SAFETY: it was made by this device, and is forgotten by the caller. One that cannot be destroyed is lost.
        let _ = unsafe { self.driver.destroy_event(event) };
    }
}

fn enter(driver: &'static Driver, context: Handle) -> Result<Entered<'static>, Failure> {
    // SAFETY: the context was retained, and is never released once it was entered.
    unsafe { driver.push_context(context) }?;
    Ok(Entered { driver, _thread: PhantomData })
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut context = 0;
        // SAFETY: it sets the handle that it is given. What it pops was pushed by this thread.
        let _ = unsafe { self.driver.pop_context(&raw mut context) };
    }
}
