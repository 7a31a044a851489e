//! A tensor: its name, its type, its shape, and the memory it lies in.

use std::{path::Path, sync::Arc};

use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use safetensors::Dtype;

use crate::{
    dlpack::{self, Shared},
    dtype,
    error::Error,
    files::Entry,
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
    memory: Arc<Memory>,
    offset: usize,
    bytes: usize,
}

impl Tensor {
    pub(crate) fn new(entry: &Entry<'_>) -> Self {
        let (start, end) = entry.info.data_offsets;
        Self {
            file: entry.file.path.clone(),
            name: entry.name.into(),
            dtype: entry.info.dtype,
            shape: entry.info.shape.as_slice().into(),
            memory: entry.file.memory.clone(),
            offset: entry.offset(),
            bytes: end - start,
        }
    }

    fn address(&self) -> usize {
        self.memory.start() as usize + self.offset
    }

    fn is_aligned(&self) -> bool {
        self.address().is_multiple_of(dtype::alignment(self.dtype))
    }

    fn copy(&self) -> Result<Self, Error> {
        let no_memory = || Error::NoMemory {
            path: self.file.to_path_buf(),
            tensor: self.name.to_string(),
            bytes: self.bytes,
        };
        let copy = self.memory.copy(self.offset, self.bytes).ok_or_else(no_memory)?;
        Ok(Self { memory: Arc::new(copy), offset: 0, ..self.clone() })
    }

    /// Itself, or a copy where its type cannot be used.
    fn aligned(&self) -> Result<Self, Error> {
        if self.is_aligned() { Ok(self.clone()) } else { self.copy() }
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        let (path, tensor) = (self.file.to_path_buf(), self.name.to_string());
        Error::Share { path, tensor, reason: reason.into() }
    }

    /// As DLPack describes it, and whether that is a copy.
    fn shared(&self, copy: Option<bool>) -> Result<(Shared, bool), Error> {
        let Some(dlpack_type) = dtype::dlpack(self.dtype) else {
            return Err(self.refuse(format!(
                "{} packs several elements into a byte; raw() gives the bytes",
                self.dtype
            )));
        };
        let copied = copy.unwrap_or(!self.is_aligned());
        if !copied && !self.is_aligned() {
            return Err(self.refuse(format!(
                "it does not lie on a multiple of {} bytes, and no copy is allowed",
                dtype::alignment(self.dtype)
            )));
        }
        let tensor = if copied { self.copy()? } else { self.clone() };
        let offset = tensor.offset;
        let shared = Shared::new(tensor.memory, offset, dlpack_type, &tensor.shape);
        Ok((shared.ok_or_else(|| self.refuse("its shape is beyond what DLPack can say"))?, copied))
    }

    fn convert<'py>(&self, py: Python<'py>, function: &str) -> PyResult<Bound<'py, PyAny>> {
        py.import("weightd._frameworks")?.call_method1(function, (self.clone(),))
    }
}

#[pymethods]
impl Tensor {
    #[getter]
    fn name(&self) -> &str {
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
    fn file(&self) -> &Path {
        &self.file
    }

    /// Its bytes, as a tensor of one dimension and the type "U8" over the same memory; a copy only where the tensor does
    /// not lie on a multiple of its element.
    fn raw(&self, py: Python<'_>) -> Result<Self, Error> {
        // A copy may wait for bytes that are on their way; other threads need not.
        let aligned = py.detach(|| self.aligned())?;
        Ok(Self { dtype: Dtype::U8, shape: [self.bytes].into(), ..aligned })
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
        let (shared, copied) = py.detach(|| self.shared(copy))?;
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
        interface.set_item("data", (self.address(), read_only))?;
        Ok(interface)
    }

    fn __repr__(&self) -> String {
        format!("Tensor(name={:?}, dtype={:?}, shape={:?})", self.name, self.dtype.to_string(), self.shape)
    }
}
