//! The connection to the kernel: mounted anew, or taken over from an agent that died.
//!
//! fuser shakes hands with the kernel when a session begins, and the kernel does that once in a connection's life. So
//! the handshake always runs over a socket pair that plays back what the kernel said at first; then the connection
//! takes the socket's place under the same descriptor, before the session's threads read from it.

use std::{
    ffi::CString,
    fs::OpenOptions,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use fuser::{Config, Filesystem, INodeNo, Session, SessionACL};
use rustix::{
    io::{Errno, retry_on_intr},
    mount::{MountFlags, mount},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use serde::{Deserialize, Serialize};

use super::passthrough::Registered;
use crate::{ExposeError, sys};

/// `FUSE_NOTIFY_RESEND`: what an agent had taken and not answered is asked again.
const NOTIFY_RESEND: i32 = 7;
/// `FUSE_NOTIFY_INVAL_INODE`: the kernel forgets attributes, and pages unless told otherwise.
const NOTIFY_INVAL_INODE: i32 = 2;
/// Room for what the kernel may send at once: a request of `max_write`, which is the library's.
const REQUEST_BYTES: usize = (16 << 20) + 4096;

/// What the next agent needs to know of a connection, beside its descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// The kernel's first request, in base64.
    pub(crate) init: String,
    /// Files that the kernel reads itself.
    pub(crate) registered: Registered,
}

/// A connection that no session serves yet.
#[derive(Debug)]
pub(crate) struct Connection {
    device: Arc<OwnedFd>,
    init: Vec<u8>,
    /// Whether the kernel still waits for the answer to its first request.
    is_new: bool,
}

impl Connection {
    /// Mounts a file system that this process will serve, called `source` in the mount table.
    pub(crate) fn mount(directory: &Path, source: &str) -> Result<Self, ExposeError> {
        let no_fuse = |error: io::Error| ExposeError::NoFuse { why: format!("/dev/fuse: {error}") };
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(no_fuse)?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).expect("no NUL in digits and words");
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        std::fs::create_dir_all(directory).map_err(ExposeError::mount("make a directory at", directory))?;
        mount(source, directory, "fuse", flags, options.as_c_str())
            .map_err(|error| ExposeError::mount("mount FUSE at", directory)(error.into()))?;
        let device = Arc::new(OwnedFd::from(device));
        let mut init = vec![0; REQUEST_BYTES];
        let length =
            retry_on_intr(|| rustix::io::read(&device, &mut init)).map_err(|error| no_fuse(error.into()))?;
        init.truncate(length);
        Ok(Self { device, init, is_new: true })
    }

    /// Takes over a connection whose agent is gone.
    pub(crate) fn adopt(device: OwnedFd, init: Vec<u8>) -> Self {
        Self { device: Arc::new(device), init, is_new: false }
    }

    pub(crate) fn device(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    pub(crate) fn init(&self) -> &[u8] {
        &self.init
    }

    /// Whether the kernel can be given files to read itself, as its first request says.
    pub(crate) fn can_pass_through(&self) -> bool {
        // The second word of flags, `flags2`, lies behind the request's header of 40 bytes and four words; FUSE_PASSTHROUGH
        // is bit 37 of both together.
        let word =
            self.init.get(56..60).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        word >> (37 - 32) & 1 == 1
    }

    /// Begins a session, whose threads run when the caller says so.
    pub(crate) fn serve<F: Filesystem>(
        self,
        filesystem: F,
        threads: usize,
    ) -> Result<Session<F>, ExposeError> {
        let failed = |error: io::Error| ExposeError::NoFuse { why: format!("the handshake failed: {error}") };
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed(error.into()))?;
        let mut config = Config::default();
        config.n_threads = Some(threads);
        // One descriptor for all threads: what a descriptor of its own had taken from the queue is failed by the
        // kernel when its process dies, and kept for the next when the keeper holds the same one.
        config.clone_fd = false;
        let (device, init, is_new) = (Arc::clone(&self.device), self.init, self.is_new);
        let playback = std::thread::spawn(move || play_back(&ours, &device, &init, is_new));
        let session = Session::from_fd(filesystem, theirs, SessionACL::All, config);
        let played = playback.join().unwrap_or_else(|_| Err(io::Error::other("the playback panicked")));
        let session = session.map_err(failed)?;
        played.map_err(failed)?;
        sys::replace(session.as_fd(), self.device.as_fd()).map_err(failed)?;
        if !self.is_new {
            ask_again(&self.device);
        }
        Ok(session)
    }
}

/// Says to a session what the kernel said, and passes its answer on if the kernel still waits for one.
fn play_back(ours: &OwnedFd, device: &OwnedFd, init: &[u8], is_new: bool) -> io::Result<()> {
    send(ours, init, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = retry_on_intr(|| recv(ours, &mut answer[..], RecvFlags::empty()))?;
    if is_new {
        rustix::io::write(device, &answer[..length])?;
    }
    Ok(())
}

/// Whether the kernel still knows a node. It forgets one with its last user, so that of a snapshot whose name it was told to
/// forget nothing is open, mapped or anybody's working directory when its directory is not known.
pub(crate) fn is_known(device: impl AsFd, number: INodeNo) -> bool {
    let mut notice = [0; 40];
    notice[..4].copy_from_slice(&40_u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_INVAL_INODE.to_ne_bytes());
    notice[16..24].copy_from_slice(&number.0.to_ne_bytes());
    // An offset before the file's beginning: no page is forgotten, which would wait for those who read it.
    notice[24..32].copy_from_slice(&(-1_i64).to_ne_bytes());
    !matches!(rustix::io::write(device, &notice), Err(Errno::NOENT))
}

/// Has the kernel ask again what nobody answered. One that cannot keeps those readers waiting until the file system is
/// unmounted.
fn ask_again(device: &OwnedFd) {
    let mut notice = [0; 16];
    notice[..4].copy_from_slice(&16_u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    if let Err(error) = rustix::io::write(device, &notice) {
        tracing::warn!(%error, "this kernel cannot ask again what an agent left unanswered; reads that were under way hang");
    }
}
