//! Messages over a hand-off socket: a packet each, with descriptors beside those that go out.
#![allow(unsafe_code, reason = "tokio watches descriptors that it does not own")]

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};

use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, UCred, accept_with, bind, listen, recv, sendmsg, socket_with,
    sockopt::socket_peercred,
};
use tokio::{io::unix::AsyncFd, time::sleep};

/// Longest message, either way.
pub(crate) const MESSAGE_BYTES: usize = 64 << 10;
/// Most descriptors beside one message; the kernel takes 253.
pub(crate) const DESCRIPTORS: usize = 64;
/// How often it is looked whether a client has gone that has said something nobody wants to hear yet.
const LOOK: Duration = Duration::from_secs(1);
/// Clients that may wait for their turn to connect.
const BACKLOG: i32 = 64;

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Packets {
    socket: AsyncFd<OwnedFd>,
}

/// A socket that clients connect to.
#[derive(Debug)]
pub(crate) struct PacketListener {
    socket: AsyncFd<OwnedFd>,
}

/// Makes a socket that listens at a path, which whoever gets there with these permissions may connect to.
pub(crate) fn listen_at(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => bind(&socket, &SocketAddrUnix::new(path)?)?,
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A socket that tokio says of when it can be read or written.
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and the same, for as long as it lives.
    unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)
}

impl PacketListener {
    /// Listens with a socket that does not block. Needs a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watched(socket)? })
    }

    /// Waits for a client; also says which process it is, as the kernel has it.
    pub(crate) async fn accept(&self) -> io::Result<(Packets, Option<UCred>)> {
        loop {
            let mut ready = self.socket.readable().await?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = ready.try_io(|socket| Ok(accept_with(socket.get_ref(), flags)?));
            if let Ok(accepted) = accepted {
                let client = accepted?;
                let who = socket_peercred(&client).ok();
                return Ok((Packets { socket: watched(client)? }, who));
            }
        }
    }
}

impl Packets {
    /// The next message; `None` at the end. Descriptors beside it are closed by the kernel.
    pub(crate) async fn receive<M: Message + Default>(&self) -> io::Result<Option<M>> {
        // Most that wait here hear nothing for long: memory is made for what has come.
        match self.receive_into(&mut [0], RecvFlags::PEEK).await? {
            0 => Ok(None),
            whole if whole > MESSAGE_BYTES => Err(io::Error::other(format!("it has {whole} bytes"))),
            whole => {
                let mut bytes = vec![0; whole];
                self.receive_into(&mut bytes, RecvFlags::empty()).await?;
                M::decode(bytes.as_slice()).map(Some).map_err(io::Error::other)
            }
        }
    }

    /// Waits until the client has gone, whatever it said before that and nobody heard.
    pub(crate) async fn hung_up(&self) {
        while self.receive_into(&mut [0], RecvFlags::PEEK).await.unwrap_or(0) > 0 {
            sleep(LOOK).await;
        }
    }

    /// Length of the next packet, whatever it is; zero at the end.
    pub(crate) async fn receive_any(&self) -> io::Result<usize> {
        self.receive_into(&mut [0], RecvFlags::empty()).await
    }

    /// Length of the next packet, which is cut off where it does not fit.
    async fn receive_into(&self, bytes: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received =
                ready.try_io(|socket| Ok(recv(socket.get_ref(), &mut *bytes, flags | RecvFlags::TRUNC)?));
            if let Ok(received) = received {
                return received.map(|(_, whole)| whole);
            }
        }
    }

    /// Sends a message as soon as the client has room for it.
    pub(crate) async fn send(&self, message: &impl Message, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = message.encode_to_vec();
        loop {
            let mut ready = self.socket.writable().await?;
            let sent = ready.try_io(|socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
                let mut rights = SendAncillaryBuffer::new(&mut space);
                if !beside.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(beside)) {
                    return Err(io::Error::other("too many descriptors for one message"));
                }
                let words = [IoSlice::new(&bytes)];
                Ok(sendmsg(socket.get_ref(), &words, &mut rights, SendFlags::NOSIGNAL)?)
            });
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }
}
