//! The driver's functions, as `cuda.h` declares them, found when they are first needed.
#![expect(unsafe_code, reason = "functions of a library that is written in C")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fmt, process, ptr,
    sync::OnceLock,
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::Refusal;

/// The driver's library, by the name that every version of it has.
const LIBRARY: &str = "libcuda.so.1";

/// A context, a stream or an event: pointers of the driver's own, which mean nothing here.
pub(super) type Handle = usize;
/// An address in a device's memory.
pub(super) type DevicePointer = u64;

const NOT_INITIALIZED: c_int = 3;
const HOST: c_uint = 1;
const DEVICE: c_uint = 2;

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Rectangle {
    source_x: usize,
    source_y: usize,
    source_kind: c_uint,
    source_host: *const c_void,
    source_device: DevicePointer,
    source_array: Handle,
    source_pitch: usize,
    target_x: usize,
    target_y: usize,
    target_kind: c_uint,
    target_host: *mut c_void,
    target_device: DevicePointer,
    target_array: Handle,
    target_pitch: usize,
    width: usize,
    height: usize,
}

impl Rectangle {
    /// Rows that are apart here and follow each other there.
    pub(super) fn gathered(
        from: *const u8,
        pitch: usize,
        width: usize,
        rows: usize,
        to: DevicePointer,
    ) -> Self {
        Self {
            source_x: 0,
            source_y: 0,
            source_kind: HOST,
            source_host: from.cast(),
            source_device: 0,
            source_array: 0,
            source_pitch: pitch,
            target_x: 0,
            target_y: 0,
            target_kind: DEVICE,
            target_host: ptr::null_mut(),
            target_device: to,
            target_array: 0,
            target_pitch: width,
            width,
            height: rows,
        }
    }
}

/// A call that the driver refused.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    call: &'static str,
    code: c_int,
    /// What the driver calls it, and what it says of it.
    said: Box<str>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.said)
    }
}

impl std::error::Error for Failure {}

macro_rules! functions {
    ($($symbol:ident as $name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The functions, in the library that they are in.
        #[derive(Debug)]
        pub(super) struct Driver {
            $($name: unsafe extern "C" fn($($kind),*) -> c_int,)*
            error_name: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
            error_text: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
            /// The process that began to use it. One that is forked off cannot.
            process: u32,
            _library: Library,
        }

        impl Driver {
            fn find(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: these are the names and types that `cuda.h` has for these versions of them.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!(stringify!($symbol), "\0").as_bytes())?,)*
                        error_name: *library.get(b"cuGetErrorName\0")?,
                        error_text: *library.get(b"cuGetErrorString\0")?,
                        process: process::id(),
                        _library: library,
                    })
                }
            }

            $(
                /// # Safety
                /// Pointers and handles are what the driver's documentation says.
                pub(super) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), Failure> {
                    // SAFETY: the caller's to see to.
                    let code = unsafe { (self.$name)($($argument),*) };
                    if code == 0 { Ok(()) } else { Err(self.failure(stringify!($symbol), code)) }
                }
            )*
        }
    };
}

functions! {
    cuInit as init(flags: c_uint);
    cuDeviceGetCount as device_count(count: *mut c_int);
    cuDeviceGet as device(device: *mut c_int, number: c_int);
    cuDeviceGetAttribute as attribute(value: *mut c_int, attribute: c_int, device: c_int);
    cuDevicePrimaryCtxRetain as retain_context(context: *mut Handle, device: c_int);
    cuDevicePrimaryCtxRelease_v2 as release_context(device: c_int);
    cuCtxPushCurrent_v2 as push_context(context: Handle);
    cuCtxPopCurrent_v2 as pop_context(context: *mut Handle);
    cuStreamCreate as create_stream(stream: *mut Handle, flags: c_uint);
    cuStreamWaitEvent as stream_wait(stream: Handle, event: Handle, flags: c_uint);
    cuEventCreate as create_event(event: *mut Handle, flags: c_uint);
    cuEventRecord as record_event(event: Handle, stream: Handle);
    cuEventSynchronize as wait_for_event(event: Handle);
    cuEventDestroy_v2 as destroy_event(event: Handle);
    cuMemHostRegister_v2 as register(start: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister as unregister(start: *mut c_void);
    cuMemHostAlloc as allocate_host(start: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost as free_host(start: *mut c_void);
    cuMemcpyHtoDAsync_v2 as copy(to: DevicePointer, from: *const c_void, bytes: usize, stream: Handle);
    cuMemcpy2DAsync_v2 as copy_rectangle(what: *const Rectangle, stream: Handle);
}

/// What went wrong, and what the system said of it.
fn whole(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Driver {
    /// The driver of this machine, ready for use. Where there is none it is looked for again the next time.
    pub(super) fn get() -> Result<&'static Self, Refusal> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        if let Some(driver) = DRIVER.get() {
            return if driver.is_ours() { Ok(driver) } else { Err(Refusal::Forked) };
        }
        // SAFETY: the driver's library is made to be loaded so, and runs nothing of ours.
        let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_LOCAL) };
        let driver = library.and_then(Self::find).map_err(|error| Refusal::NoDriver(whole(&error)))?;
        // SAFETY: flags must be zero, and are. Calling it twice does nothing.
        unsafe { driver.init(0) }.map_err(|failure| {
            // As it says in a process that was forked off from one that uses it, torch's doing, say.
            if failure.code == NOT_INITIALIZED { Refusal::Forked } else { Refusal::Failed(failure) }
        })?;
        Ok(DRIVER.get_or_init(|| driver))
    }

    /// Whether this process may use it.
    pub(super) fn is_ours(&self) -> bool {
        self.process == process::id()
    }

    fn failure(&self, call: &'static str, code: c_int) -> Failure {
        let words = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: it sets the pointer to a text that stays, or to null.
            let outcome = unsafe { function(code, &raw mut text) };
            if outcome != 0 || text.is_null() {
                return None;
            }
            // SAFETY: a text of the driver, which ends in a zero.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = words(self.error_name).unwrap_or_else(|| format!("error {code}"));
        let said = words(self.error_text).map_or(name.clone(), |text| format!("{name}: {text}"));
        Failure { call, code, said: said.into() }
    }
}
