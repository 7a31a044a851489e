//! A tensor: its name, its type, its shape, and the memory it lies in.

use std::{path::Path, sync::Arc};

use pyo3::{
    IntoPyObjectExt,
    prelude::*,
    types::{PyDict, PyTuple},
};
use safetensors::Dtype;

use crate::{
    borrow::is_uri,
    dlpack::{self, Shared},
    dtype,
    error::Error,
    lease::Lease,
    memory::Memory,
};

/// Where everything lies: DLPack's number for memory that a processor reaches, and the one there is.
const CPU: (i32, i32) = (1, 0);

/// A tensor in this process's memory. The memory lives as long as the last tensor, array or capsule over it.
#[pyclass(module = "weightd", frozen)]
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    file: Arc<Path>,
    name: Arc<str>,
    dtype: Dtype,
    shape: Arc<[usize]>,
    bytes: usize,
    place: Place,
}

/// Where the bytes of a tensor are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// There.
    Here { memory: Arc<Memory>, offset: usize },
    /// In an arena that an agent lends, when it has come.
    Lent { lease: Arc<Lease>, position: usize, offset: usize },
}

/// A tensor that is there.
struct Present<'a> {
    tensor: &'a Tensor,
    memory: Arc<Memory>,
    offset: usize,
}

impl Tensor {
    pub(crate) fn new(
        file: Arc<Path>,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: usize,
        place: Place,
    ) -> Self {
        Self { file, name: name.into(), dtype, shape: shape.into(), bytes, place }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file it is in.
    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// Waits until it is there.
    fn present(&self, py: Python<'_>) -> PyResult<Present<'_>> {
        let (memory, offset) = match &self.place {
            Place::Here { memory, offset } => (memory.clone(), *offset),
            Place::Lent { lease, position, offset } => (lease.memory(py, *position)?, *offset),
        };
        Ok(Present { tensor: self, memory, offset })
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        let (path, tensor) = (self.file.to_path_buf(), self.name.to_string());
        Error::Share { path, tensor, reason: reason.into() }
    }

    fn convert<'py>(&self, py: Python<'py>, function: &str) -> PyResult<Bound<'py, PyAny>> {
        py.import("weightd._frameworks")?.call_method1(function, (self.clone(),))
    }
}

impl Present<'_> {
    fn address(&self) -> usize {
        self.memory.start() as usize + self.offset
    }

    fn is_aligned(&self) -> bool {
        self.address().is_multiple_of(dtype::alignment(self.tensor.dtype))
    }

    fn copy(&self) -> Result<Self, Error> {
        let Self { tensor, .. } = *self;
        let no_memory = || Error::NoMemory {
            path: tensor.file.to_path_buf(),
            tensor: tensor.name.to_string(),
            bytes: tensor.bytes,
        };
        let copy = self.memory.copy(self.offset, tensor.bytes).ok_or_else(no_memory)?;
        Ok(Self { tensor, memory: Arc::new(copy), offset: 0 })
    }

    /// As DLPack describes it, and whether that is a copy.
    fn shared(self, copy: Option<bool>) -> Result<(Shared, bool), Error> {
        let Self { tensor, .. } = self;
        let Some(dlpack_type) = dtype::dlpack(tensor.dtype) else {
            return Err(tensor.refuse(format!(
                "{} packs several elements into a byte; raw() gives the bytes",
                tensor.dtype
            )));
        };
        let copied = copy.unwrap_or(!self.is_aligned());
        if !copied && !self.is_aligned() {
            return Err(tensor.refuse(format!(
                "it does not lie on a multiple of {} bytes, and no copy is allowed",
                dtype::alignment(tensor.dtype)
            )));
        }
        let there = if copied { self.copy()? } else { self };
        let shared = Shared::new(there.memory, there.offset, dlpack_type, &tensor.shape);
        Ok((shared.ok_or_else(|| tensor.refuse("its shape is beyond what DLPack can say"))?, copied))
    }
}

/// A path as Python has it; a URI as text, because a path would lose one of its slashes.
pub(crate) fn shown<'py>(py: Python<'py>, path: &Path) -> PyResult<Bound<'py, PyAny>> {
    if is_uri(path) {
        return Ok(path.to_string_lossy().into_pyobject(py)?.into_any());
    }
    path.into_bound_py_any(py)
}

#[pymethods]
impl Tensor {
    #[getter(name)]
    fn python_name(&self) -> &str {
        &self.name
    }

    /// The type as safetensors writes it: "BF16", "F8_E4M3".
    #[getter]
    fn dtype(&self) -> String {
        self.dtype.to_string()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.shape.iter())
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }

    /// The file it is in.
    #[getter]
    fn file<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        shown(py, &self.file)
    }

    /// Whether it may be used without waiting. Of mapped files nobody knows what reading takes.
    #[getter]
    fn ready(&self) -> bool {
        match &self.place {
            Place::Here { .. } => true,
            Place::Lent { lease, position, .. } => lease.is_ready(*position),
        }
    }

    /// Its bytes, as a tensor of one dimension and the type "U8" over the same memory; a copy only where the tensor does
    /// not lie on a multiple of its element.
    fn raw(&self, py: Python<'_>) -> PyResult<Self> {
        let mut present = self.present(py)?;
        if !present.is_aligned() {
            // A copy may wait for bytes that are on their way; other threads need not.
            present = py.detach(|| present.copy())?;
        }
        let place = Place::Here { memory: present.memory, offset: present.offset };
        Ok(Self { dtype: Dtype::U8, shape: [self.bytes].into(), place, ..self.clone() })
    }

    fn torch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.convert(py, "to_torch")
    }

    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.convert(py, "to_numpy")
    }

    fn jax<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.convert(py, "to_jax")
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if stream.is_some() {
            return Err(self.refuse("it is in the processor's memory, which has no streams").into());
        }
        if let Some((kind, number)) = dl_device.filter(|&device| device != CPU) {
            let reason =
                format!("it is in the processor's memory, not on DLPack's device ({kind}, {number})");
            return Err(self.refuse(reason).into());
        }
        let present = self.present(py)?;
        let (shared, copied) = py.detach(|| present.shared(copy))?;
        match max_version {
            Some((major, _)) if major >= 1 => dlpack::versioned(py, shared, copied),
            _ => dlpack::legacy(py, shared),
        }
    }

    #[expect(clippy::unused_self, reason = "the protocol asks each tensor")]
    fn __dlpack_device__(&self) -> (i32, i32) {
        CPU
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Some(numpy_type) = dtype::numpy(self.dtype) else {
            let reason = format!("{} packs several elements into a byte; raw() gives the bytes", self.dtype);
            return Err(self.refuse(reason).into());
        };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item("typestr", numpy_type)?;
        let read_only = false;
        interface.set_item("data", (self.present(py)?.address(), read_only))?;
        Ok(interface)
    }

    fn __repr__(&self) -> String {
        format!("Tensor(name={:?}, dtype={:?}, shape={:?})", self.name, self.dtype.to_string(), self.shape)
    }
}
