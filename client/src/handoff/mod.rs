//! The sockets where the agent lends the tensors of a snapshot: memory that is shared, already filled or about to be.
//! `docs/HANDOFF.md` tells what is said there.
//!
//! Everything here blocks the thread that asks, and for no longer than it says; there is no async runtime. What the agent
//! says is checked before it is believed: a mapping that [`Arena`] gives is as long as it says and cannot shrink, and
//! every tensor of a [`Table`] lies inside of one.
//!
//! ```no_run
//! use std::time::Duration;
//! use weightd_client::handoff::{self, Request};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let socket = "/models/llama/.weightd.sock".as_ref();
//! let session = handoff::open(socket, &Request::default(), Duration::from_secs(5))?;
//! let position = session.table().tensors().iter().position(|tensor| tensor.name == "lm_head.weight");
//! let position = position.ok_or("no such tensor")?;
//! session.wait(&[position..position + 1], false)?;
//! let tensor = &session.table().tensors()[position];
//! let memory = session.arena(tensor.arena).map_private()?;
//! let first_byte = memory.as_ptr().wrapping_add(tensor.offset);
//! # Ok(())
//! # }
//! ```
//! The session must live as long as the memory is used: with it ends the lease, and the agent forgets that anybody has
//! its tensors.
//!
//! Who needs each tensor only for a while opens a [`stream`]: tensors come one after the other through a ring of memory, and
//! each stays there until the [`Taken`] that was had of it is dropped.

mod arena;
mod connection;
mod error;
mod line;
mod opening;
mod readiness;
mod ring;
mod session;
mod stream;
mod strides;
mod table;

use std::{path::Path, time::Duration};

pub use arena::Arena;
pub use error::Error;
pub use memmap2::MmapRaw;
pub use opening::{Opening, Outcome};
pub use safetensors::Dtype;
pub use session::Session;
pub use stream::{Stream, Taken, Taking};
pub use table::{File, Table, Tensor};
pub use weightd_proto::v1::FailureKind;

/// Where the agent of a node lends tensors of any snapshot, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weightd/handoff.sock";
/// What the socket at the top of a volume is called.
pub const VOLUME_SOCKET: &str = ".weightd.sock";

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// A URI, or the id of a snapshot that the node has. Empty on a volume's socket, which has one.
    pub source: String,
    /// Paths in the snapshot. Empty for the shards that the index at its top names, or else all `.safetensors` files
    /// there.
    pub files: Vec<String>,
    /// Whether only what is wanted shall be brought; otherwise everything is, what is wanted first.
    pub wanted_only: bool,
    /// Which parts of tensors are needed. Of several that name a tensor the first counts; what none names is whole.
    pub slices: Vec<Slice>,
}

/// A part of tensors: one of several equal parts along a dimension, as the ranks of a model server have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// A name, or a pattern of names as a shell has it.
    pub tensors: String,
    /// Along which dimension.
    pub dimension: u32,
    /// Which part, from zero.
    pub part: u32,
    /// How many parts there are; zero leaves the tensors whole.
    pub parts: u32,
}

/// A piece of memory through which tensors come one after the other, instead of into memory that they stay in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ring {
    /// Most bytes that it takes; zero for what the agent thinks best.
    pub bytes: u64,
    /// Whether only what is known to be what the origin has shall come.
    pub verified: bool,
}

/// Opens a snapshot at the agent that listens on `socket`, and waits for its answer no longer than `patience`.
///
/// # Errors
/// Those of [`Opening::wait`], and [`Error::Silent`] when the time is over.
pub fn open(socket: &Path, request: &Request, patience: Duration) -> Result<Session, Error> {
    let mut opening = Opening::new(socket, request);
    match opening.wait(patience)? {
        Some(session) => Ok(session),
        None => Err(opening.give_up()),
    }
}

/// Opens a snapshot at the agent that listens on `socket`, to come through a ring, and waits for its answer no longer than
/// `patience`.
///
/// # Errors
/// As of [`open`].
pub fn stream(socket: &Path, request: &Request, ring: Ring, patience: Duration) -> Result<Stream, Error> {
    let mut opening = Opening::streaming(socket, request, ring);
    match opening.wait(patience)? {
        Some(stream) => Ok(stream),
        None => Err(opening.give_up()),
    }
}
