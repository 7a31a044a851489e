//! Lending a tensor's memory by DLPack, in the form that each consumer asks for: with a version, or as it was before there
//! were any. The structures are those of `dlpack.h` 1.1.
#![expect(unsafe_code, reason = "the protocol is C structures behind a Python capsule")]

use std::{
    ffi::{CStr, c_void},
    ptr,
    sync::Arc,
};

use pyo3::{ffi, prelude::*};

use crate::{dtype::DlpackType, layout::Layout, memory::Memory};

const CPU: i32 = 1;
const VERSION: Version = Version { major: 1, minor: 1 };
const FLAG_IS_COPIED: u64 = 1 << 1;

/// Names of capsules that nobody has taken yet. Who takes one renames it, and frees what is in it.
const LEGACY: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

#[repr(C)]
struct Device {
    kind: i32,
    number: i32,
}

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: Device,
    dimensions: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
struct ManagedVersioned {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: DlTensor,
}

/// What a capsule's structure points to.
pub(crate) struct Shared {
    memory: Arc<Memory>,
    offset: usize,
    dtype: DlpackType,
    dimensions: i32,
    shape: Box<[i64]>,
    strides: Box<[i64]>,
}

impl Shared {
    /// None when a number is too large for DLPack.
    pub(crate) fn new(
        memory: Arc<Memory>,
        offset: usize,
        dtype: DlpackType,
        layout: &Layout,
    ) -> Option<Self> {
        let numbers = |numbers: &[usize]| -> Option<Box<[i64]>> {
            numbers.iter().map(|&number| i64::try_from(number).ok()).collect()
        };
        let (shape, strides) = (numbers(&layout.shape)?, numbers(&layout.distances()?)?);
        let dimensions = i32::try_from(shape.len()).ok()?;
        Some(Self { memory, offset, dtype, dimensions, shape, strides })
    }

    /// The structure, and what keeps alive what it points to. Both are on the heap, so moving the latter moves nothing.
    fn into_parts(self) -> (DlTensor, *mut c_void) {
        let shared = Box::into_raw(Box::new(self));
        // SAFETY: just made from a box, and nobody else has it yet.
        let this = unsafe { &mut *shared };
        let (code, bits) = this.dtype;
        let tensor = DlTensor {
            // What consumers of the protocol expect: the address itself, and no offset, which some of them ignore.
            data: this.memory.start().wrapping_add(this.offset).cast(),
            device: Device { kind: CPU, number: 0 },
            dimensions: this.dimensions,
            dtype: DataType { code, bits, lanes: 1 },
            shape: this.shape.as_mut_ptr(),
            strides: this.strides.as_mut_ptr(),
            byte_offset: 0,
        };
        (tensor, shared.cast())
    }
}

/// A capsule for a consumer that knows of no versions.
pub(crate) fn legacy(py: Python<'_>, shared: Shared) -> PyResult<Bound<'_, PyAny>> {
    let (tensor, context) = shared.into_parts();
    let managed = Box::into_raw(Box::new(Managed { tensor, context, deleter: Some(delete) }));
    // SAFETY: the capsule owns the structure until somebody renames it; its destructor is made for that structure.
    let capsule = unsafe { ffi::PyCapsule_New(managed.cast(), LEGACY.as_ptr(), Some(drop_legacy)) };
    // SAFETY: a new reference, or null with Python's error set.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }.inspect_err(|_| {
        // SAFETY: there is no capsule, so nobody else frees it.
        unsafe { delete(managed) };
    })
}

/// A capsule for a consumer that knows DLPack 1.0 or later.
pub(crate) fn versioned(py: Python<'_>, shared: Shared, copied: bool) -> PyResult<Bound<'_, PyAny>> {
    let (tensor, context) = shared.into_parts();
    // Never read-only: the mapping is private, so whoever writes gets pages of its own.
    let flags = if copied { FLAG_IS_COPIED } else { 0 };
    let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut ManagedVersioned));
    let managed =
        Box::into_raw(Box::new(ManagedVersioned { version: VERSION, context, deleter, flags, tensor }));
    // SAFETY: as for the legacy one.
    let capsule = unsafe { ffi::PyCapsule_New(managed.cast(), VERSIONED.as_ptr(), Some(drop_versioned)) };
    // SAFETY: a new reference, or null with Python's error set.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }.inspect_err(|_| {
        // SAFETY: there is no capsule, so nobody else frees it.
        unsafe { delete_versioned(managed) };
    })
}

/// Called by whoever took the tensor, on any thread, perhaps without Python. Memory is all it lets go of.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: the protocol has it called once, with the structure that `legacy` made.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: the context is the box that `into_parts` made, and is freed with its structure only.
    drop(unsafe { Box::from_raw(managed.context.cast::<Shared>()) });
}

unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: as for `delete`.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: as for `delete`.
    drop(unsafe { Box::from_raw(managed.context.cast::<Shared>()) });
}

/// Frees the tensor of a capsule that nobody has taken.
unsafe extern "C" fn drop_legacy(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with the capsule; one that still has its name holds what `legacy` put there.
    let managed: *mut Managed = unsafe { untaken(capsule, LEGACY) }.cast();
    if !managed.is_null() {
        // SAFETY: nobody has taken it, so it is freed here and only here.
        unsafe { delete(managed) };
    }
}

unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as for `drop_legacy`.
    let managed: *mut ManagedVersioned = unsafe { untaken(capsule, VERSIONED) }.cast();
    if !managed.is_null() {
        // SAFETY: as for `drop_legacy`.
        unsafe { delete_versioned(managed) };
    }
}

/// What is in a capsule that still has the name it was given, else null.
unsafe fn untaken(capsule: *mut ffi::PyObject, name: &CStr) -> *mut c_void {
    // SAFETY: the caller's capsule is alive; asking for the name first means that no error of Python's is set.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name.as_ptr()) == 1 {
            ffi::PyCapsule_GetPointer(capsule, name.as_ptr())
        } else {
            ptr::null_mut()
        }
    }
}
