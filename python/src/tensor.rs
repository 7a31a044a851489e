//! A tensor: its name, its type, its shape, and the memory it lies in.
#![expect(unsafe_code, reason = "memory of a device that Python names")]

use std::{path::Path, sync::Arc};

use pyo3::{
    IntoPyObjectExt,
    exceptions::PyAttributeError,
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyTuple},
};

use crate::{
    agents::GLANCE,
    borrow::is_uri,
    cuda::{Failure, Refusal, Source, Space, Uploader},
    dlpack::{self, Shared},
    dtype,
    error::Error,
    layout::Layout,
    lease::Lease,
    memory::Memory,
    streaming::Streaming,
    target::{Target, note_unregistrable},
};

/// DLPack's number for memory that a processor reaches, and the one there is.
const CPU: (i32, i32) = (1, 0);
/// DLPack's number for CUDA devices.
const CUDA: i32 = 2;
/// What torch makes tensors of capsules with.
static FROM_DLPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// A tensor in this process's memory. The memory lives as long as the last tensor, array or capsule over it.
#[pyclass(module = "weightd", frozen)]
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    file: Arc<Path>,
    name: Arc<str>,
    layout: Layout,
    place: Place,
    target: Target,
}

/// Where the bytes of a tensor are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// There.
    Here { memory: Arc<Memory>, offset: usize },
    /// In an arena that an agent lends, when it has come.
    Lent { lease: Arc<Lease>, position: usize, offset: usize },
    /// In a ring, as long as it is used.
    Passing { stream: Arc<Streaming>, position: usize },
}

/// A tensor that is there.
struct Present<'a> {
    tensor: &'a Tensor,
    layout: Layout,
    memory: Arc<Memory>,
    offset: usize,
}

impl Tensor {
    pub(crate) fn new(file: Arc<Path>, name: &str, layout: Layout, place: Place) -> Self {
        Self { file, name: name.into(), layout, place, target: Target::Host }
    }

    /// The same, to be given out elsewhere.
    pub(crate) fn on(self, target: Target) -> Self {
        Self { target, ..self }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file it is in.
    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// Its number at the agent, if one brings it.
    pub(crate) fn position(&self) -> Option<usize> {
        match &self.place {
            Place::Here { .. } => None,
            Place::Lent { position, .. } | Place::Passing { position, .. } => Some(*position),
        }
    }

    /// Waits until it is there.
    fn present(&self, py: Python<'_>) -> PyResult<Present<'_>> {
        let (memory, offset) = match &self.place {
            Place::Here { memory, offset } => (memory.clone(), *offset),
            Place::Lent { lease, position, offset } => (lease.memory(py, *position)?, *offset),
            Place::Passing { stream, position } => (stream.memory(py, *position)?, 0),
        };
        Ok(Present { tensor: self, layout: self.layout.clone(), memory, offset })
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        let (path, tensor) = (self.file.to_path_buf(), self.name.to_string());
        Error::Share { path, tensor, reason: reason.into() }
    }

    fn packed(&self) -> Error {
        self.refuse(format!(
            "{} packs several elements into a byte; raw() gives the bytes",
            self.layout.dtype
        ))
    }

    fn convert<'py>(&self, py: Python<'py>, function: &str) -> PyResult<Bound<'py, PyAny>> {
        py.import("weightd._frameworks")?.call_method1(function, (self.clone(),))
    }

    /// Where a device copies it from, once it is there.
    fn source(&self, py: Python<'_>, uploader: &Uploader) -> PyResult<Source> {
        Ok(match &self.place {
            Place::Here { memory, offset } => Source::Memory { memory: memory.clone(), offset: *offset },
            Place::Lent { lease, position, offset } => {
                let window = lease.window(py, *position, uploader)?;
                Source::Window { window, offset: *offset, memory: None }
            }
            Place::Passing { stream, position } => {
                let memory = stream.memory(py, *position)?;
                match py.detach(|| stream.window(&memory, uploader))? {
                    Some((window, offset)) => Source::Window { window, offset, memory: Some(memory) },
                    None => Source::Memory { memory, offset: 0 },
                }
            }
        })
    }

    /// Room for a copy of it, as soon as there is. Other threads run meanwhile, and signals are heard.
    fn space(&self, py: Python<'_>, uploader: &Uploader) -> PyResult<Space> {
        loop {
            uploader.check().map_err(|reason| self.unusable(uploader, reason))?;
            if let Some(space) = py.detach(|| uploader.room(self.layout.bytes, GLANCE)) {
                return Ok(space);
            }
            py.check_signals()?;
        }
    }

    fn unusable(&self, uploader: &Uploader, reason: Refusal) -> Error {
        let (path, tensor) = (self.file.to_path_buf(), self.name.to_string());
        Error::Unusable { path, tensor, device: format!("cuda:{}", uploader.device().number()), reason }
    }

    fn uncopied(&self, uploader: &Uploader, source: Failure) -> Error {
        let (path, tensor) = (self.file.to_path_buf(), self.name.to_string());
        Error::Device { path, tensor, device: format!("cuda:{}", uploader.device().number()), source }
    }
}

impl Tensor {
    /// A capsule of a torch tensor on the device: torch has the memory there.
    fn device_capsule<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if dl_device.is_some_and(|device| Some(device) != self.__dlpack_device__().ok()) {
            return Err(self.refuse("it is given out on a CUDA device, and asked for on another one").into());
        }
        if copy == Some(false) {
            return Err(self.refuse("it is copied to its device, and no copy is allowed").into());
        }
        let arguments = (self.torch(py)?, stream, max_version);
        py.import("weightd._cuda")?.call_method1("capsule", arguments)
    }
}

impl Present<'_> {
    fn address(&self) -> usize {
        self.memory.start() as usize + self.offset
    }

    fn is_aligned(&self) -> bool {
        self.address().is_multiple_of(self.layout.alignment())
    }

    fn copy(&self) -> Result<Self, Error> {
        let Self { tensor, ref layout, ref memory, offset } = *self;
        let no_memory = || Error::NoMemory {
            path: tensor.file.to_path_buf(),
            tensor: tensor.name.to_string(),
            bytes: layout.bytes,
        };
        let (run, starts) = layout.runs();
        let copy =
            memory.copy(run, starts.map(|start| offset + start), layout.bytes).ok_or_else(no_memory)?;
        Ok(Self { tensor, layout: layout.contiguous(), memory: Arc::new(copy), offset: 0 })
    }

    /// As DLPack describes it, and whether that is a copy.
    fn shared(self, copy: Option<bool>) -> Result<(Shared, bool), Error> {
        let tensor = self.tensor;
        let Some(dlpack_type) = dtype::dlpack(self.layout.dtype) else {
            return Err(tensor.packed());
        };
        let copied = copy.unwrap_or(!self.is_aligned());
        if !copied && !self.is_aligned() {
            return Err(tensor.refuse(format!(
                "it does not lie on a multiple of {} bytes, and no copy is allowed",
                self.layout.alignment()
            )));
        }
        let there = if copied { self.copy()? } else { self };
        let shared = Shared::new(there.memory, there.offset, dlpack_type, &there.layout);
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
        self.layout.dtype.to_string()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.layout.shape.iter())
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.layout.bytes
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
            Place::Passing { stream, position } => stream.is_there(*position),
        }
    }

    /// Where it is given out: "cpu", "cuda:0", or what JAX calls it.
    #[getter]
    fn device<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.target.shown(py)
    }

    /// Its bytes, as a tensor of one dimension and the type "U8" over the same memory; a copy only where the tensor does
    /// not lie on a multiple of its element, or its elements do not follow each other.
    fn raw(&self, py: Python<'_>) -> PyResult<Self> {
        if matches!(self.target, Target::Cuda(_)) && self.layout.strides.is_none() {
            // In its place, where it may be registered; and bytes may begin anywhere.
            return Ok(Self { layout: Layout::of_bytes(self.layout.bytes), ..self.clone() });
        }
        let mut present = self.present(py)?;
        if !present.is_aligned() || present.layout.strides.is_some() {
            // A copy may wait for bytes that are on their way; other threads need not.
            present = py.detach(|| present.copy())?;
        }
        let place = Place::Here { memory: present.memory, offset: present.offset };
        Ok(Self { layout: Layout::of_bytes(self.layout.bytes), place, ..self.clone() })
    }

    /// Its elements as integers of their size over the same memory, which every framework takes and sees as what they are.
    /// A copy only where the tensor does not lie on a multiple of its element.
    fn _integers(&self, py: Python<'_>) -> PyResult<Self> {
        let mut present = self.present(py)?;
        if !present.is_aligned() {
            present = py.detach(|| present.copy())?;
        }
        let layout = present.layout.as_integers().ok_or_else(|| self.packed())?;
        let place = Place::Here { memory: present.memory, offset: present.offset };
        Ok(Self { layout, place, target: Target::Host, ..self.clone() })
    }

    /// Begins to copy it to memory of its device. `allocate` is called with the stream that does so, when there is room for
    /// one more copy, and gives an address there and the stream that is to wait.
    fn _upload(&self, py: Python<'_>, allocate: &Bound<'_, PyAny>) -> PyResult<()> {
        let Target::Cuda(uploader) = &self.target else {
            return Err(self.refuse("it is not given out on a CUDA device").into());
        };
        uploader.check().map_err(|reason| self.unusable(uploader, reason))?;
        let source = self.source(py, uploader)?;
        let space = self.space(py, uploader)?;
        let (address, waiting) = allocate.call1((uploader.stream(),))?.extract()?;
        // SAFETY: the source is this tensor, which has come, and its layout was checked against where it lies. The memory was
        // allocated for a tensor of this layout, on the stream of the copy, as `_cuda.py` sees to.
        let copied = py.detach(|| unsafe { uploader.copy(source, &self.layout, address, waiting, space) });
        note_unregistrable(py, uploader)?;
        Ok(copied.map_err(|failure| self.uncopied(uploader, failure))?)
    }

    /// On its device, if that is torch's; else in the processor's memory.
    fn torch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.target {
            Target::Cuda(uploader) => {
                let arguments = (self.clone(), uploader.device().number());
                py.import("weightd._cuda")?.call_method1("to_torch", arguments)
            }
            Target::Host if dtype::is_known_to_torch(self.layout.dtype) => {
                // Given a tensor, it asks half a dozen questions first; there may be 90,000 of them.
                let capsule = self.__dlpack__(py, None, None, None, None)?;
                FROM_DLPACK.import(py, "torch.utils.dlpack", "from_dlpack")?.call1((capsule,))
            }
            Target::Host | Target::Jax(_) => self.convert(py, "to_torch"),
        }
    }

    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.convert(py, "to_numpy")
    }

    /// On its device.
    fn jax<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let devices = || py.import("weightd._devices");
        let device = match &self.target {
            Target::Host => return self.convert(py, "to_jax"),
            Target::Cuda(uploader) => devices()?.call_method1("jax_cuda", (uploader.device().number(),))?,
            Target::Jax(device) => device.bind(py).clone(),
        };
        devices()?.call_method1("to_jax", (self.clone(), device))
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
        if let Target::Cuda(_) = self.target {
            return self.device_capsule(py, stream, max_version, dl_device, copy);
        }
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

    fn __dlpack_device__(&self) -> PyResult<(i32, i32)> {
        match &self.target {
            Target::Cuda(uploader) => Ok((CUDA, i32::try_from(uploader.device().number())?)),
            Target::Host | Target::Jax(_) => Ok(CPU),
        }
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if matches!(self.place, Place::Passing { .. }) {
            // Whoever asks holds this tensor, not its place in the ring. There is `__array__` for them.
            return Err(PyAttributeError::new_err("__array_interface__"));
        }
        let numpy_type = dtype::numpy(self.layout.dtype).ok_or_else(|| self.packed())?;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.shape(py)?)?;
        interface.set_item("typestr", numpy_type)?;
        if let Some(strides) = &self.layout.strides {
            let element = self.layout.dtype.bitsize() / 8;
            interface
                .set_item("strides", PyTuple::new(py, strides.iter().map(|stride| stride * element))?)?;
        }
        let read_only = false;
        interface.set_item("data", (self.present(py)?.address(), read_only))?;
        Ok(interface)
    }

    /// What numpy asks where there is no `__array_interface__`.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let numpy_type = dtype::numpy(self.layout.dtype).ok_or_else(|| self.packed())?;
        let arguments = (self._integers(py)?, numpy_type, dtype, copy);
        py.import("weightd._frameworks")?.call_method1("to_array", arguments)
    }

    fn __repr__(&self) -> String {
        format!("Tensor(name={:?}, dtype={:?}, shape={:?})", self.name, self.dtype(), self.layout.shape)
    }
}
