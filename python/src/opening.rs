//! `weightd.open`: whether tensors come from an agent, or from files.

use std::path::{Path, PathBuf};

use pyo3::{prelude::*, types::PyBool};
use weightd_client::handoff::{self, FailureKind, VOLUME_SOCKET};

use crate::{
    borrow::{Counter, borrow_uri, is_uri},
    error::{Error, one_line},
    files::Choice,
    tensors::Tensors,
};

/// Who shall be asked for shared memory.
#[derive(Debug)]
pub(crate) enum Agent {
    /// Whoever is found.
    Any,
    Nobody,
    At(PathBuf),
}

impl<'py> FromPyObject<'_, 'py> for Agent {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Self::Any);
        }
        match given.cast::<PyBool>() {
            Ok(switch) if !switch.is_true() => Ok(Self::Nobody),
            Ok(_) => Ok(Self::Any),
            Err(_) => Ok(Self::At(given.extract()?)),
        }
    }
}

/// Opens a file of tensors, or all of a directory, or a URI.
#[pyfunction]
#[pyo3(
    signature = (path, *, verified=false, agent=Agent::Any),
    text_signature = "(path, *, verified=False, agent=None)"
)]
pub(crate) fn open(py: Python<'_>, path: PathBuf, verified: bool, agent: Agent) -> PyResult<Tensors> {
    if is_uri(&path) {
        let socket = match agent {
            Agent::Any => None,
            Agent::At(socket) => Some(socket),
            Agent::Nobody => return Err(Error::Uri(path).into()),
        };
        let model = borrow_uri(py, &path.to_string_lossy(), socket, verified)?;
        return Ok(Tensors::new(path, model, None));
    }
    let choice = py.detach(|| Choice::of(&path))?;
    let (counter, is_named) = match &agent {
        Agent::Any => (py.detach(|| Counter::of_volume(&path, &choice))?, false),
        Agent::Nobody => (None, false),
        Agent::At(socket) => (Some(py.detach(|| Counter::named(&path, socket, &choice))?), true),
    };
    let why = match counter {
        Some(counter) => match counter.borrow(py, verified)? {
            Ok(model) => return Ok(Tensors::new(path, choice.checked(model)?, None)),
            Err(error) if may_map(&error) && !is_named => warned(py, &path, &error)?,
            Err(source) => return Err(Error::Handoff { what: path.display().to_string(), source }.into()),
        },
        None if matches!(agent, Agent::Nobody) => "agent=False".to_owned(),
        None => format!("there is no socket {VOLUME_SOCKET} beside it or above it in its mount"),
    };
    let model = py.detach(|| choice.map())?;
    Ok(Tensors::new(path, model, Some(why)))
}

/// Whether the files serve as well: nobody lends memory, or there is none left to lend.
fn may_map(error: &handoff::Error) -> bool {
    matches!(error, handoff::Error::Connect { .. })
        || error.is_absence()
        || error.kind() == FailureKind::Memory
}

/// Writes to Python's log why an agent that should be there lends nothing.
fn warned(py: Python<'_>, path: &Path, error: &handoff::Error) -> PyResult<String> {
    let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    let why = one_line(&format!("{error}{remedy}"));
    let log = py.import("logging")?.call_method1("getLogger", ("weightd",))?;
    log.call_method1("warning", ("%s: its files are mapped, not shared: %s", path, &why))?;
    Ok(why)
}
