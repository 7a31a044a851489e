//! Packets: one message each, and descriptors beside it.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{Pid, getpid},
};
use weightd_proto::v1::{
    HandoffAnswer, HandoffRequest, handoff_answer::Answer, handoff_request::Request as Said,
};

use super::Error;

/// Most descriptors beside one packet.
const DESCRIPTORS: usize = 64;
/// Longest packet, either way.
const PACKET_BYTES: usize = 64 << 10;

/// A connection to an agent: a lease, once it is open.
#[derive(Debug)]
pub(super) struct Connection {
    path: PathBuf,
    socket: OwnedFd,
    /// Who connected. A process that was forked off has the same connection, and would take away packets.
    process: Pid,
}

/// What an agent said.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) answer: Answer,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Connection {
    /// Connects, which takes long only where many others wait for the same agent.
    pub(super) fn new(path: &Path, deadline: Instant) -> Result<Self, Error> {
        let failed = |error: Errno| Error::Connect { socket: path.to_owned(), source: error.into() };
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
        // None at all would be for ever.
        let patience = left(deadline).max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(patience)).map_err(failed)?;
        match dial(&socket, path) {
            Ok(()) => Ok(Self { path: path.to_owned(), socket, process: getpid() }),
            Err(Errno::AGAIN) => Err(Error::Silent { socket: path.to_owned(), waited: patience }),
            Err(error) => Err(failed(error)),
        }
    }

    /// The socket's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process made the connection.
    pub(super) fn is_ours(&self) -> bool {
        getpid() == self.process
    }

    /// Sends a message; false when the agent has not read enough of what it was sent before.
    pub(super) fn send(&self, said: Said) -> Result<bool, Error> {
        let packet = HandoffRequest { request: Some(said) }.encode_to_vec();
        if packet.len() > PACKET_BYTES {
            let source = io::Error::other("a request of more than 64 KiB: ask for fewer files at once");
            return Err(Error::System { socket: self.path.clone(), source });
        }
        if !self.is_ours() {
            return Err(self.gone());
        }
        match retry_on_intr(|| send(&self.socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The next message; none when the time is over.
    pub(super) fn receive(&self, deadline: Instant) -> Result<Option<Packet>, Error> {
        if !self.wait(PollFlags::IN, deadline)? {
            return Ok(None);
        }
        let mut bytes = vec![0; PACKET_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut words = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = loop {
            match recvmsg(&self.socket, &mut words, &mut beside, flags) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Ok(None),
                // It ended without having heard everything. The kernel says so once, before what it has said itself.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(self.failed(error)),
            }
        };
        let descriptors = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptors: Vec<_> = descriptors.flatten().collect();
        if received.bytes == 0 {
            return Err(self.gone());
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            let source = io::Error::other(
                "descriptors of shared memory were lost: this process may not open as many (ulimit -n)",
            );
            return Err(Error::System { socket: self.path.clone(), source });
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(self.broken("sent a packet of more than 64 KiB"));
        }
        match HandoffAnswer::decode(&bytes[..received.bytes]) {
            Ok(HandoffAnswer { answer: Some(answer) }) => Ok(Some(Packet { answer, descriptors })),
            Ok(HandoffAnswer { answer: None }) => Err(self.broken("sent a message of no known kind")),
            Err(error) => Err(self.broken(format!("sent what is no message ({error})"))),
        }
    }

    /// Waits until the agent has read, or said something.
    pub(super) fn wait_for_room(&self, deadline: Instant) -> Result<bool, Error> {
        self.wait(PollFlags::OUT | PollFlags::IN, deadline)
    }

    /// That the agent broke the protocol.
    pub(super) fn broken(&self, problem: impl Into<String>) -> Error {
        Error::Broken { socket: self.path.clone(), problem: problem.into() }
    }

    pub(super) fn gone(&self) -> Error {
        Error::AgentGone { socket: self.path.clone() }
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<bool, Error> {
        if !self.is_ours() {
            return Err(self.gone());
        }
        loop {
            let mut polled = [PollFd::new(&self.socket, events)];
            match poll(&mut polled, Some(&timespec(left(deadline)))) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: Errno) -> Error {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => self.gone(),
            error => Error::System { socket: self.path.clone(), source: error.into() },
        }
    }
}

/// When it is so much later.
pub(super) fn after(patience: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + patience.min(LONG)
}

/// What is left until then.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Does nothing for so long.
pub(super) fn pause(time: Duration) {
    // A signal that ends it early does no harm to anyone who calls it in a loop.
    let _interrupted = poll(&mut [], Some(&timespec(time)));
}

fn timespec(time: Duration) -> Timespec {
    Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

/// The address of a socket has room for 107 letters. A path that is longer goes by its directory's descriptor.
fn dial(socket: &OwnedFd, path: &Path) -> rustix::io::Result<()> {
    match SocketAddrUnix::new(path) {
        Ok(address) => connect(socket, &address),
        Err(Errno::NAMETOOLONG) => {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Errno::NAMETOOLONG);
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(directory, flags, Mode::empty())?;
            let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
            connect(socket, &SocketAddrUnix::new(short)?)
        }
        Err(error) => Err(error),
    }
}
