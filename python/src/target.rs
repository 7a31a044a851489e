//! Where tensors shall be: `device=` of `weightd.open`.

use std::{sync::Arc, time::Duration};

use pyo3::{IntoPyObjectExt, prelude::*};

use crate::{
    cuda::{Device, Uploader},
    error::Error,
};

/// How long copies may take that are on their way when a process ends.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// What was asked for, checked: a device that is not there is told before anybody is asked for tensors.
#[derive(Debug)]
pub(crate) enum Wanted {
    Host,
    Cuda { device: &'static Device, chunk: usize, limit: usize },
    Jax(Py<PyAny>),
}

/// Where the tensors of a model are given out.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// In the processor's memory.
    Host,
    /// On a CUDA device.
    Cuda(Arc<Uploader>),
    /// Where JAX puts arrays that it is given with this.
    Jax(Arc<Py<PyAny>>),
}

impl<'py> FromPyObject<'_, 'py> for Wanted {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Self::Host);
        }
        let py = given.py();
        let devices = py.import("weightd._devices")?;
        let (kind, which): (String, Bound<'py, PyAny>) =
            devices.call_method1("known", (given,))?.extract()?;
        match kind.as_str() {
            "cuda" => {
                let number = which.extract()?;
                let bytes = |name| devices.getattr(name)?.extract();
                let (chunk, limit) = (bytes("REGISTERED_AT_ONCE_BYTES")?, bytes("IN_FLIGHT_BYTES")?);
                let refused = |reason| Error::NoDevice { device: format!("cuda:{number}"), reason };
                let device = py.detach(|| Device::open(number)).map_err(refused)?;
                Ok(Self::Cuda { device, chunk, limit })
            }
            "jax" => Ok(Self::Jax(which.unbind())),
            _ => Ok(Self::Host),
        }
    }
}

impl Wanted {
    /// For the tensors of one model. `unregistrable`: why they cannot be registered, where that is so from the outset.
    pub(crate) fn target(self, py: Python<'_>, unregistrable: Option<String>) -> PyResult<Target> {
        Ok(match self {
            Self::Host => Target::Host,
            Self::Jax(device) => Target::Jax(Arc::new(device)),
            Self::Cuda { device, chunk, limit } => {
                let is_off = (chunk == 0).then(|| "it was switched off".to_owned());
                let unregistrable = unregistrable.or(is_off);
                let uploader = Arc::new(Uploader::new(device, chunk, limit, unregistrable));
                note_unregistrable(py, &uploader)?;
                Target::Cuda(uploader)
            }
        })
    }
}

impl Target {
    /// As Python has it.
    pub(crate) fn shown<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Host => "cpu".into_bound_py_any(py),
            Self::Cuda(uploader) => format!("cuda:{}", uploader.device().number()).into_bound_py_any(py),
            Self::Jax(device) => Ok(device.bind(py).clone()),
        }
    }

    /// How tensors get there.
    pub(crate) fn transfer(&self) -> Option<&'static str> {
        match self {
            Self::Host => None,
            Self::Cuda(uploader) if uploader.unregistrable().is_some() => Some("staging buffers"),
            Self::Cuda(_) => Some("registered memory"),
            Self::Jax(_) => Some("jax.device_put"),
        }
    }

    /// Seconds in which memory was registered for that.
    pub(crate) fn registering_seconds(&self) -> f64 {
        match self {
            Self::Cuda(uploader) => uploader.registering_for().as_secs_f64(),
            Self::Host | Self::Jax(_) => 0.0,
        }
    }

    /// Why not in a better way.
    pub(crate) fn transfer_why(&self) -> Option<String> {
        match self {
            Self::Cuda(uploader) => uploader.unregistrable(),
            Self::Host | Self::Jax(_) => None,
        }
    }
}

/// Waits for copies that are on their way, before a process ends.
#[pyfunction]
pub(crate) fn _settle(py: Python<'_>) {
    py.detach(|| Device::settle_all(LAST_PATIENCE));
}

/// Writes to Python's log why memory is not registered, when that is new.
pub(crate) fn note_unregistrable(py: Python<'_>, uploader: &Uploader) -> PyResult<()> {
    let Some(why) = uploader.news() else { return Ok(()) };
    let log = py.import("logging")?.call_method1("getLogger", ("weightd",))?;
    let words = "cuda:%d: tensors are copied through staging buffers, which is slower: %s";
    log.call_method1("warning", (words, uploader.device().number(), why))?;
    Ok(())
}
