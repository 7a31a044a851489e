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
use serde::{Serialize, de::DeserializeOwned};

use crate::{ExposeError, fuse::Saved};

/// What the FUSE connection is called there.
const NAME: &str = "volumes";
/// How long the keeper may take to answer: what takes it longest is to provide memory, a little at a time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most descriptors under one name.
const DESCRIPTORS: usize = 8;

/// Why the keeper makes no arena.
#[derive(Debug)]
pub(crate) struct NoRoom {
    /// Most bytes of arenas.
    pub(crate) limit: u64,
    /// Bytes there are.
    pub(crate) used: u64,
    /// What stands in the way.
    pub(crate) why: String,
}

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
        let Some(descriptors) = self.attend_to(NAME)? else { return Ok(None) };
        let Ok([device, saved]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return Err(self.problem("keeps something else in the place of the connection".to_owned()));
        };
        Ok(Some((device, self.read_note(saved)?)))
    }

    /// Leaves the connection, and what the next agent needs to know of it.
    pub(crate) fn put(&self, device: BorrowedFd<'_>, saved: &Saved) -> Result<(), ExposeError> {
        let note = self.note(saved)?;
        let line = format!("put fuse {NAME} {}", whole_seconds(self.grace));
        self.ask_ok(&line, &[device, note.as_fd()])
    }

    /// Has the keeper forget the connection, which is over.
    pub(crate) fn drop_connection(&self) -> Result<(), ExposeError> {
        self.drop_name(NAME)
    }

    /// Descriptors under a name, to which this agent attends from here on.
    pub(crate) fn attend_to(&self, name: &str) -> Result<Option<Vec<OwnedFd>>, ExposeError> {
        match self.ask(&format!("attend {name}"), &[])? {
            (answer, _) if answer == "none" => Ok(None),
            (answer, descriptors) if answer == "ok" => Ok(Some(descriptors)),
            (answer, _) => Err(self.odd(&answer)),
        }
    }

    /// Leaves descriptors that mean nothing to the keeper.
    pub(crate) fn put_plain(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), ExposeError> {
        self.ask_ok(&format!("put plain {name} 0"), descriptors)
    }

    /// Has the keeper forget a name.
    pub(crate) fn drop_name(&self, name: &str) -> Result<(), ExposeError> {
        self.ask_ok(&format!("drop {name}"), &[])
    }

    /// Names that begin so, in order.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<String>, ExposeError> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().map(String::as_str).unwrap_or_default();
            let (answer, _) = self.ask(&format!("list {prefix} {after}"), &[])?;
            let mut words = answer.split(' ');
            if words.next() != Some("ok") {
                return Err(self.odd(&answer));
            }
            let before = names.len();
            names.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
            if names.len() == before {
                return Ok(names);
            }
        }
    }

    /// Makes an arena, a file in memory of so many bytes; or says why there is no room for it.
    pub(crate) fn make_arena(&self, name: &str, bytes: u64) -> Result<Result<OwnedFd, NoRoom>, ExposeError> {
        let (answer, mut descriptors) = self.ask(&format!("arena {name} {bytes}"), &[])?;
        if let (Some(arena), "ok") = (descriptors.pop(), answer.as_str()) {
            return Ok(Ok(arena));
        }
        match answer.splitn(4, ' ').collect::<Vec<_>>().as_slice() {
            ["full", limit, used, why] => {
                let number = |word: &str| word.parse().map_err(|_| self.odd(&answer));
                Ok(Err(NoRoom { limit: number(limit)?, used: number(used)?, why: (*why).to_owned() }))
            }
            _ => Err(self.odd(&answer)),
        }
    }

    /// Most bytes of arenas.
    pub(crate) fn arena_limit(&self) -> Result<u64, ExposeError> {
        let (answer, _) = self.ask("room", &[])?;
        match answer.split(' ').collect::<Vec<_>>().as_slice() {
            ["ok", limit, _] => limit.parse().map_err(|_| self.odd(&answer)),
            _ => Err(self.odd(&answer)),
        }
    }

    /// Has the keeper provide the memory of a part of an arena.
    pub(crate) fn allocate(&self, name: &str, from: u64, bytes: u64) -> Result<(), ExposeError> {
        self.ask_ok(&format!("allocate {name} {from} {bytes}"), &[])
    }

    /// Something to remember, as a file in memory that can be kept.
    pub(crate) fn note(&self, what: &impl Serialize) -> Result<OwnedFd, ExposeError> {
        let text = serde_json::to_string(what).expect("numbers and text are JSON");
        let file = rustix::fs::memfd_create("weightd-saved", MemfdFlags::CLOEXEC)
            .map_err(|error| self.problem(format!("cannot be given a file in memory: {error}")))?;
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes()).map_err(|error| self.problem(error.to_string()))?;
        Ok(file.into())
    }

    /// What an earlier agent remembered.
    pub(crate) fn read_note<T: DeserializeOwned>(&self, note: OwnedFd) -> Result<T, ExposeError> {
        let mut text = String::new();
        let mut file = std::fs::File::from(note);
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.map_err(|error| self.problem(format!("gave something unreadable: {error}")))?;
        serde_json::from_str(&text)
            .map_err(|error| self.problem(format!("keeps what this version cannot read: {error}")))
    }

    /// Whether the keeper has ended.
    pub(crate) fn is_gone(&self) -> bool {
        let mut waiting = [PollFd::new(&self.socket, PollFlags::empty())];
        let ready = poll(&mut waiting, Some(&Timespec::default())).unwrap_or_default();
        ready > 0 && waiting[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn ask_ok(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), ExposeError> {
        match self.ask(line, descriptors)? {
            (answer, _) if answer == "ok" => Ok(()),
            (answer, _) => Err(self.odd(&answer)),
        }
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
