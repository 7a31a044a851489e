//! At whose socket tensors are asked for, and what comes of it.

use std::{
    env, fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use weightd_client::handoff::{
    self, DEFAULT_SOCKET, Opening, Outcome, Request, Ring, Session, Stream, Table, VOLUME_SOCKET,
};

use crate::{
    agents::GLANCE,
    error::Error,
    files::{Choice, failed},
    layout::Layout,
    lease::Lease,
    memory::Memory,
    model::{Lender, Model, ModelFile},
    names::Names,
    slices::Slices,
    streaming::Streaming,
    tensor::{Place, Tensor},
};

/// Names the socket at which URIs are opened.
const SOCKET_VARIABLE: &str = "WEIGHTD_HANDOFF_SOCKET";
/// How long the agent of a volume may take. Without it the files are there all the same.
const VOLUME_PATIENCE: Duration = Duration::from_secs(5);
/// How long the agent of a node may take, which has to ask the origin first.
const NODE_PATIENCE: Duration = Duration::from_secs(300);

/// What is needed of a model, and how.
#[derive(Debug)]
pub(crate) struct Wish {
    /// Whether only what is known to be the origin's may be used.
    pub(crate) verified: bool,
    pub(crate) slices: Slices,
    pub(crate) names: Names,
    /// Bytes of the ring that it shall come through, if through one; zero for what the agent thinks best.
    pub(crate) ring: Option<u64>,
}

/// Where the files of a model are asked for.
#[derive(Debug)]
pub(crate) struct Counter {
    socket: PathBuf,
    /// The files, as they are called there and here.
    files: Vec<(String, PathBuf)>,
}

impl Counter {
    /// The socket of the volume that a path is in, if it is in one.
    pub(crate) fn of_volume(path: &Path, choice: &Choice) -> Result<Option<Self>, Error> {
        let real = fs::canonicalize(path).map_err(|source| failed(path, source))?;
        let directory = if real.is_dir() { real.as_path() } else { real.parent().unwrap_or(&real) };
        match volume(directory) {
            Some(top) => Self::below(path, &real, top, &top.join(VOLUME_SOCKET), choice).map(Some),
            None => Ok(None),
        }
    }

    /// A socket that the caller names. Files are those below its directory.
    pub(crate) fn named(path: &Path, socket: &Path, choice: &Choice) -> Result<Self, Error> {
        let real = fs::canonicalize(path).map_err(|source| failed(path, source))?;
        let top = socket.parent().filter(|top| !top.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let top = fs::canonicalize(top).map_err(|source| failed(top, source))?;
        Self::below(path, &real, &top, socket, choice)
    }

    fn below(path: &Path, real: &Path, top: &Path, socket: &Path, choice: &Choice) -> Result<Self, Error> {
        let outside = || Error::NotBelow { path: path.to_owned(), socket: socket.to_owned() };
        let in_volume = real.strip_prefix(top).map_err(|_| outside())?;
        let files = choice.files.iter().map(|file| {
            // Of the path itself, nothing is left.
            let rest = file.strip_prefix(path).map_err(|_| outside())?;
            let name = if rest.as_os_str().is_empty() { in_volume.to_owned() } else { in_volume.join(rest) };
            Ok((name.to_str().ok_or_else(outside)?.to_owned(), file.clone()))
        });
        Ok(Self { socket: socket.to_owned(), files: files.collect::<Result<_, Error>>()? })
    }

    /// Asks there.
    pub(crate) fn borrow(&self, py: Python<'_>, wish: &Wish) -> PyResult<Result<Model, handoff::Error>> {
        let files = self.files.iter().map(|(name, _)| name.clone()).collect();
        let request = Request { files, ..wish.request() };
        let here =
            |name: &str| self.files.iter().find(|(known, _)| known == name).map(|(_, file)| file.clone());
        let what = self.socket.display().to_string();
        wish.ask(py, &self.socket, &request, VOLUME_PATIENCE, &what, here)
    }
}

/// Whether something is a URI, not a path.
pub(crate) fn is_uri(path: &Path) -> bool {
    let Some((scheme, _)) = path.to_str().and_then(|text| text.split_once("://")) else { return false };
    scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

/// Asks the agent of the node for a URI.
pub(crate) fn borrow_uri(
    py: Python<'_>,
    uri: &str,
    socket: Option<PathBuf>,
    wish: &Wish,
) -> PyResult<Result<Model, handoff::Error>> {
    let by_variable = || env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
    let socket = socket.or_else(by_variable).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let request = Request { source: uri.to_owned(), ..wish.request() };
    let top = uri.trim_end_matches('/');
    let here = |name: &str| Some(PathBuf::from(format!("{top}/{name}")));
    wish.ask(py, &socket, &request, NODE_PATIENCE, uri, here)
}

impl Wish {
    fn request(&self) -> Request {
        Request { wanted_only: !self.names.are_all(), slices: self.slices.asked(), ..Request::default() }
    }

    /// Asks at a socket, for tensors in files as they are called here.
    fn ask(
        &self,
        py: Python<'_>,
        socket: &Path,
        request: &Request,
        patience: Duration,
        what: &str,
        here: impl Fn(&str) -> Option<PathBuf> + Send,
    ) -> PyResult<Result<Model, handoff::Error>> {
        let verified = self.verified;
        let model = if let Some(bytes) = self.ring {
            let opening = Opening::streaming(socket, request, Ring { bytes, verified });
            match ask(py, opening, patience)? {
                Ok(stream) => py.detach(|| streamed(what, stream, here)),
                Err(error) => return Ok(Err(error)),
            }
        } else {
            match ask(py, Opening::new(socket, request), patience)? {
                Ok(session) => py.detach(|| lent(what, session, verified, here)),
                Err(error) => return Ok(Err(error)),
            }
        };
        Ok(Ok(model?))
    }
}

/// Opens at a socket; what the agent says is apart from what Python says.
fn ask<O: Outcome + Send>(
    py: Python<'_>,
    mut opening: Opening<O>,
    patience: Duration,
) -> PyResult<Result<O, handoff::Error>> {
    let deadline = Instant::now() + patience;
    loop {
        match py.detach(|| opening.wait(GLANCE)) {
            Ok(Some(open)) => return Ok(Ok(open)),
            Ok(None) if Instant::now() >= deadline => return Ok(Err(opening.give_up())),
            Ok(None) => py.check_signals()?,
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// The tensors of a session.
fn lent(
    what: &str,
    session: Session,
    verified: bool,
    here: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Model, Error> {
    let lease = Arc::new(Lease::new(what.to_owned(), session, verified));
    let session = lease.session();
    let place = |position, offset| Place::Lent { lease: lease.clone(), position, offset };
    model(what, session.table(), Lender::Lease(lease.clone()), here, place)
}

/// The tensors of a stream.
fn streamed(what: &str, stream: Stream, here: impl Fn(&str) -> Option<PathBuf>) -> Result<Model, Error> {
    let streaming = Arc::new(Streaming::new(what.to_owned(), stream));
    let stream = streaming.stream();
    let place = |position, _| Place::Passing { stream: streaming.clone(), position };
    model(what, stream.table(), Lender::Stream(streaming.clone()), here, place)
}

/// The tensors of a table, in files as they are called here, each where its number and its offset say.
fn model(
    what: &str,
    table: &Table,
    lender: Lender,
    here: impl Fn(&str) -> Option<PathBuf>,
    place: impl Fn(usize, usize) -> Place,
) -> Result<Model, Error> {
    let mut files = Vec::new();
    for file in table.files() {
        let path = here(&file.path)
            .ok_or_else(|| Error::OtherFile { what: what.to_owned(), file: file.path.clone() })?;
        files.push(ModelFile { path: path.into(), metadata: file.metadata.clone() });
    }
    let nothing = Arc::new(Memory::nothing());
    let tensors = table.tensors().iter().enumerate().map(|(position, tensor)| {
        let place = match tensor.bytes {
            0 => Place::Here { memory: nothing.clone(), offset: 0 },
            _ => place(position, tensor.offset),
        };
        let layout = Layout::new(tensor.dtype, &tensor.shape, tensor.strides.as_deref(), tensor.bytes);
        Tensor::new(files[tensor.file].path.clone(), &tensor.name, layout, place)
    });
    let tensors = tensors.collect();
    Model::new(files, tensors, Some(lender))
}

/// The directory with a volume's socket: this one, or one above it in the same mount.
///
/// A socket is a mount of its own, so it is not asked which device it is on. The store has an empty file in its place, which
/// does not count; nor does anything in a directory where everybody may put a socket.
fn volume(directory: &Path) -> Option<&Path> {
    let device = fs::metadata(directory).ok()?.dev();
    directory
        .ancestors()
        .map_while(|at| fs::metadata(at).ok().filter(|found| found.dev() == device).map(|found| (at, found)))
        .filter(|(_, found)| found.permissions().mode() & 0o002 == 0)
        .map(|(at, _)| at)
        .find(|at| {
            let socket = fs::symlink_metadata(at.join(VOLUME_SOCKET));
            socket.is_ok_and(|socket| socket.file_type().is_socket())
        })
}
