//! The keeper, as the agent sees it: what it leaves there, and gets back. `agent/keeper/src/protocol.rs` has the
//! messages.

use std::{
    io::{IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
        socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{ExposeError, fuse::Saved};

/// What the FUSE connection is called there.
const NAME: &str = "volumes";
/// How long the keeper may take to answer: it does nothing that takes time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors of the connection: the device, and a file in memory with what belongs to it.
const DESCRIPTORS: usize = 2;

/// A connection to the keeper. As long as it lasts the keeper knows that an agent is there.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    socket: OwnedFd,
    grace: Duration,
}

impl Keeper {
    /// Connects. `grace` is how long readers wait for an agent before they get EIO.
    pub(crate) fn connect(path: &Path, grace: Duration) -> Result<Self, ExposeError> {
        let failed = |error: rustix::io::Errno| ExposeError::Keeper {
            socket: path.to_owned(),
            problem: format!("cannot be reached: {error}; start weightd-keeper --socket {}", path.display()),
        };
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
        for timeout in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, timeout, Some(PATIENCE)).map_err(failed)?;
        }
        connect(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
        Ok(Self { path: path.to_owned(), socket, grace })
    }

    /// What an earlier agent left, if anything; from here on this agent attends to it.
    pub(crate) fn attend(&self) -> Result<Option<(OwnedFd, Saved)>, ExposeError> {
        let (answer, descriptors) = self.ask(&format!("attend {NAME}"), &[])?;
        let Ok([device, saved]) = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) else {
            return if answer == "none" { Ok(None) } else { Err(self.odd(&answer)) };
        };
        let mut text = String::new();
        let mut file = std::fs::File::from(saved);
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.map_err(|error| self.problem(format!("gave something unreadable: {error}")))?;
        let saved = serde_json::from_str(&text)
            .map_err(|error| self.problem(format!("keeps what this version cannot read: {error}")))?;
        Ok(Some((device, saved)))
    }

    /// Leaves the connection, and what the next agent needs to know of it.
    pub(crate) fn put(&self, device: BorrowedFd<'_>, saved: &Saved) -> Result<(), ExposeError> {
        let text = serde_json::to_string(saved).expect("numbers and text are JSON");
        let file = rustix::fs::memfd_create("weightd-saved", MemfdFlags::CLOEXEC)
            .map_err(|error| self.problem(format!("cannot be given a file in memory: {error}")))?;
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes()).map_err(|error| self.problem(error.to_string()))?;
        let line = format!("put fuse {NAME} {}", whole_seconds(self.grace));
        match self.ask(&line, &[device, file.as_fd()])? {
            (answer, _) if answer == "ok" => Ok(()),
            (answer, _) => Err(self.odd(&answer)),
        }
    }

    /// Has the keeper forget the connection, which is over.
    pub(crate) fn drop_connection(&self) -> Result<(), ExposeError> {
        self.ask(&format!("drop {NAME}"), &[]).map(drop)
    }

    /// Whether the keeper has ended.
    pub(crate) fn is_gone(&self) -> bool {
        let mut waiting = [PollFd::new(&self.socket, PollFlags::empty())];
        let ready = poll(&mut waiting, Some(&Timespec::default())).unwrap_or_default();
        ready > 0 && waiting[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn ask(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(String, Vec<OwnedFd>), ExposeError> {
        let failed = |error: rustix::io::Errno| self.problem(format!("does not answer: {error}"));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            beside.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let words = [IoSlice::new(line.as_bytes())];
        // With a limit on its time, the kernel does not take up by itself what a signal interrupted.
        retry_on_intr(|| sendmsg(&self.socket, &words, &mut beside, SendFlags::NOSIGNAL)).map_err(failed)?;
        let mut bytes = vec![0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut words = [IoSliceMut::new(&mut bytes)];
        let received =
            retry_on_intr(|| recvmsg(&self.socket, &mut words, &mut beside, RecvFlags::CMSG_CLOEXEC))
                .map_err(failed)?;
        if received.bytes == 0 {
            return Err(self.problem("went away".to_owned()));
        }
        let rights = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        Ok((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), descriptors))
    }

    fn odd(&self, answer: &str) -> ExposeError {
        self.problem(format!("said: {answer}"))
    }

    fn problem(&self, problem: String) -> ExposeError {
        ExposeError::Keeper { socket: self.path.clone(), problem }
    }
}

/// The grace, as the keeper counts it. Never shorter than it was meant: none at all would be EIO at once.
fn whole_seconds(grace: Duration) -> u64 {
    grace.as_secs().saturating_add(u64::from(grace.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_is_never_shortened() {
        let seconds = |millis| whole_seconds(Duration::from_millis(millis));
        assert_eq!([500, 1000, 1001, 300_000].map(seconds), [1, 1, 2, 300]);
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
