//! `weightd.open`: whether tensors come from an agent, or from files.

use std::path::{Path, PathBuf};

use pyo3::{prelude::*, types::PyBool};
use weightd_client::handoff::{self, FailureKind, VOLUME_SOCKET};
use weightd_types::parse_bytes;

use crate::{
    borrow::{Counter, Wish, borrow_uri, is_uri},
    error::{Error, one_line},
    files::Choice,
    model::Model,
    names::Names,
    slices::Slices,
    target::Wanted,
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

/// Bytes of the ring that tensors shall come through, if through one; zero for what the agent thinks best.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingBytes(Option<u64>);

impl<'py> FromPyObject<'_, 'py> for RingBytes {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Self(None));
        }
        if let Ok(switch) = given.cast::<PyBool>() {
            return Ok(Self(switch.is_true().then_some(0)));
        }
        let given = given.to_owned();
        let said = given.extract::<String>().ok().and_then(|text| parse_bytes(&text).ok());
        match said.or_else(|| given.extract().ok()).filter(|&bytes| bytes > 0) {
            Some(bytes) => Ok(Self(Some(bytes))),
            None => {
                let problem =
                    format!("stream={given} is no size: it is True, a number of bytes, or as \"256MiB\"");
                Err(Error::Argument(problem).into())
            }
        }
    }
}

/// Opens a file of tensors, or all of a directory, or a URI.
#[pyfunction]
#[pyo3(
    signature = (
        path, *, verified=false, agent=Agent::Any, slices=Slices::default(), names=Names::All, stream=RingBytes(None),
        device=Wanted::Host
    ),
    text_signature = "(path, *, verified=False, agent=None, slices=None, names=None, stream=None, device=None)"
)]
#[expect(clippy::too_many_arguments, reason = "they are Python's, by name")]
pub(crate) fn open(
    py: Python<'_>,
    path: PathBuf,
    verified: bool,
    agent: Agent,
    slices: Slices,
    names: Names,
    stream: RingBytes,
    device: Wanted,
) -> PyResult<Tensors> {
    let wish = Wish { verified, slices, names, ring: stream.0 };
    let (model, why) = found(py, &path, agent, &wish)?;
    let model = wish.names.of(py, &path, model)?;
    py.detach(|| model.begin(wish.names.are_all()));
    let is_mapped = model.lender().is_none();
    let unregistrable =
        is_mapped.then(|| "mapped files are not registered, only what an agent lends".to_owned());
    let target = device.target(py, unregistrable)?;
    Ok(Tensors::new(path, model, why, target))
}

/// All tensors, and why they are not in shared memory, where they are not.
fn found(py: Python<'_>, path: &Path, agent: Agent, wish: &Wish) -> PyResult<(Model, Option<String>)> {
    // What makes no sense is said before anybody is asked.
    let slicing = wish.slices.slicing()?;
    if is_uri(path) {
        let socket = match agent {
            Agent::Any => None,
            Agent::At(socket) => Some(socket),
            Agent::Nobody => return Err(Error::Uri(path.to_owned()).into()),
        };
        let uri = path.to_string_lossy();
        let model = borrow_uri(py, &uri, socket, wish)?.map_err(|source| refused(&uri, source, wish))?;
        return Ok((model, None));
    }
    let choice = py.detach(|| Choice::of(path))?;
    let (counter, is_named) = match &agent {
        Agent::Any => (py.detach(|| Counter::of_volume(path, &choice))?, false),
        Agent::Nobody => (None, false),
        Agent::At(socket) => (Some(py.detach(|| Counter::named(path, socket, &choice))?), true),
    };
    let why = match counter {
        Some(counter) => match counter.borrow(py, wish)? {
            Ok(model) => return Ok((choice.checked(model)?, None)),
            Err(error) if may_map(&error, wish) && !is_named => warned(py, path, &error)?,
            Err(source) => return Err(refused(&path.display().to_string(), source, wish).into()),
        },
        None if matches!(agent, Agent::Nobody) => "agent=False".to_owned(),
        None => format!("there is no socket {VOLUME_SOCKET} beside it or above it in its mount"),
    };
    let model = py.detach(|| choice.map(&slicing))?;
    Ok((model, Some(why)))
}

/// Whether the files serve as well: nobody lends memory, or there is none left to lend. A ring that is too small or too large
/// is someone's mistake.
fn may_map(error: &handoff::Error, wish: &Wish) -> bool {
    matches!(error, handoff::Error::Connect { .. })
        || error.is_absence()
        || (error.kind() == FailureKind::Memory && wish.ring.is_none())
}

/// Why nothing is lent. An agent that cannot make sense of a request with slices means these.
fn refused(what: &str, source: handoff::Error, wish: &Wish) -> Error {
    let what = what.to_owned();
    match source {
        handoff::Error::Failed { kind: FailureKind::Usage, .. } if !wish.slices.is_empty() => {
            Error::Uncut { what, source }
        }
        source => Error::Handoff { what, source },
    }
}

/// Writes to Python's log why an agent that should be there lends nothing.
fn warned(py: Python<'_>, path: &Path, error: &handoff::Error) -> PyResult<String> {
    let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    let why = one_line(&format!("{error}{remedy}"));
    let log = py.import("logging")?.call_method1("getLogger", ("weightd",))?;
    log.call_method1("warning", ("%s: its files are mapped, not shared: %s", path, &why))?;
    Ok(why)
}
