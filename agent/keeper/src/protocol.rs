//! Messages: one packet each, a line of words, with descriptors beside it.
//!
//! ```text
//! request                                 answer
//! put fuse|plain NAME GRACE   + 1 to 8    ok                  keeps them; this connection attends to NAME
//! arena NAME BYTES                        ok + descriptor     makes a file in memory, and keeps it; this connection attends
//!                                                             to NAME. Or `full LIMIT USED WHY`, all in bytes
//! allocate NAME FROM BYTES                ok                  has the kernel provide that part of the arena's memory now
//! room                                    ok LIMIT USED       bytes of arenas
//! attend NAME                             ok + descriptors | none
//! drop NAME                               ok                  closes them
//! list [PREFIX [AFTER]]                   ok NAME...          in order; those that fit, of those that follow AFTER
//! hand-over                               keep fuse|plain NAME GRACE + descriptors, or keep arena NAME BYTES +
//!                                         descriptor, for each; then all
//! end, after all                          ok, and the end: from here on the other keeper is in charge
//! ```
//! NAME is up to 255 printable letters of ASCII, and no space. What a client wants to remember of it goes into a file
//! in memory, as one of its descriptors. GRACE is seconds from the end of the connection that attends to NAME until a
//! FUSE connection's readers get EIO. The next `put`, `attend` or `drop` of NAME ends that: reads of the descriptor
//! wait then (no O_NONBLOCK). BYTES of an arena are whole pages, and its size is sealed; `allocate` takes up to 256 MiB at a
//! time, because nobody else is served meanwhile, and works on one that is sealed against writing too, unless another
//! keeper made it. An answer to anything else is `error` and why.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    str::FromStr,
};

use rustix::{
    io::retry_on_intr,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// Most descriptors under one name.
pub(crate) const DESCRIPTORS: usize = 8;
/// Longest message, either way.
pub(crate) const MESSAGE_BYTES: usize = 64 << 10;
/// Longest name.
const NAME_BYTES: usize = 255;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first descriptor is a FUSE connection.
    Fuse,
    /// Descriptors of no interest to anyone here.
    Plain,
    /// The only descriptor is a file in memory of this length, which was made here.
    Arena {
        /// Its length.
        bytes: u64,
    },
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Put { kind: Kind, name: String, grace: u64 },
    Attend(String),
    Drop(String),
    Arena { name: String, bytes: u64 },
    Allocate { name: String, from: u64, bytes: u64 },
    Room,
    List { prefix: String, after: String },
    HandOver,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Plain => "plain",
            Self::Arena { .. } => "arena",
        }
    }

    /// How something is handed over.
    pub(crate) fn keep(self, name: &str, grace: u64) -> String {
        let number = if let Self::Arena { bytes } = self { bytes } else { grace };
        format!("keep {} {name} {number}", self.word())
    }
}

impl FromStr for Request {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["put", _, name, _] if !is_name(name) => Err("a name is 1 to 255 printable letters of ASCII"),
            ["put", kind, name, grace] => put(kind, name, grace),
            ["arena", name, _] if !is_name(name) => Err("a name is 1 to 255 printable letters of ASCII"),
            ["arena", name, bytes] => Ok(Self::Arena { name: (*name).to_owned(), bytes: number(bytes)? }),
            ["allocate", name, from, bytes] => {
                Ok(Self::Allocate { name: (*name).to_owned(), from: number(from)?, bytes: number(bytes)? })
            }
            ["room"] => Ok(Self::Room),
            ["attend", name] => Ok(Self::Attend((*name).to_owned())),
            ["drop", name] => Ok(Self::Drop((*name).to_owned())),
            ["list", words @ ..] if words.len() <= 2 => {
                let word = |at: usize| words.get(at).copied().unwrap_or_default().to_owned();
                Ok(Self::List { prefix: word(0), after: word(1) })
            }
            ["hand-over"] => Ok(Self::HandOver),
            _ => Err("no such request"),
        }
    }
}

fn put(kind: &str, name: &str, grace: &str) -> Result<Request, &'static str> {
    let kind = match kind {
        "fuse" => Kind::Fuse,
        "plain" => Kind::Plain,
        _ => return Err("the kind is fuse or plain"),
    };
    let grace = grace.parse().map_err(|_| "the grace is a number of seconds")?;
    Ok(Request::Put { kind, name: name.to_owned(), grace })
}

/// Kind, name and grace of something that another keeper hands over; its name may be of another time.
pub(crate) fn handed(line: &str) -> Option<(Kind, String, u64)> {
    match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["keep", "arena", name, bytes] => {
            Some((Kind::Arena { bytes: number(bytes).ok()? }, (*name).to_owned(), u64::MAX))
        }
        ["keep", kind, name, grace] => match put(kind, name, grace).ok()? {
            Request::Put { kind, name, grace } => Some((kind, name, grace)),
            _ => None,
        },
        _ => None,
    }
}

fn number(word: &str) -> Result<u64, &'static str> {
    word.parse().map_err(|_| "bytes are a number")
}

/// Whether something may be a name. All that are kept can be handed over, and listed.
fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(|letter| letter.is_ascii_graphic())
}

/// Sends one message.
pub(crate) fn send(to: impl AsFd, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let words = [IoSlice::new(line.as_bytes())];
    // With a limit on its time, the kernel does not take up by itself what a signal interrupted.
    retry_on_intr(|| sendmsg(&to, &words, &mut beside, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message; `None` at the end of the connection. What the kernel cut off, of its words or of its
/// descriptors, makes it an error: half of what was to be kept is as good as nothing, and its sender can still be told.
pub(crate) fn receive(from: impl AsFd) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut words = [IoSliceMut::new(&mut bytes)];
    let received = retry_on_intr(|| recvmsg(&from, &mut words, &mut beside, RecvFlags::CMSG_CLOEXEC))?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::other("the message is too long"));
    }
    // The kernel may have had room for more than were asked for, and found none for what the process may open.
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTORS {
        return Err(io::Error::other("descriptors were lost: more than 8 came, or too many are open"));
    }
    bytes.truncate(received.bytes);
    Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_nonsense_is_refused() {
        let put = Request::Put { kind: Kind::Fuse, name: "volumes".to_owned(), grace: 300 };
        assert_eq!("put fuse volumes 300".parse(), Ok(put));
        assert_eq!("attend volumes".parse(), Ok(Request::Attend("volumes".to_owned())));
        for (line, prefix, after) in [("list", "", ""), ("list a", "a", ""), ("list  b", "", "b")] {
            let list = Request::List { prefix: prefix.to_owned(), after: after.to_owned() };
            assert_eq!(line.parse(), Ok(list), "{line:?}");
        }
        let arena = Request::Arena { name: "a".to_owned(), bytes: 4096 };
        assert_eq!("arena a 4096".parse(), Ok(arena));
        let part = Request::Allocate { name: "a".to_owned(), from: 0, bytes: 4096 };
        assert_eq!("allocate a 0 4096".parse(), Ok(part));
        let kind = Kind::Arena { bytes: 4096 };
        assert_eq!(handed(&kind.keep("a", u64::MAX)), Some((kind, "a".to_owned(), u64::MAX)));
        let long = "x".repeat(256);
        assert_eq!(handed(&Kind::Plain.keep(&long, 3)), Some((Kind::Plain, long, 3)));
        for nonsense in ["keep", "keep odd a 3", "keep arena a x", "put plain a 3"] {
            assert_eq!(handed(nonsense), None, "{nonsense:?}");
        }
        for nonsense in [
            "",
            "put",
            "put fuse volumes",
            "put fuse volumes x",
            "put odd volumes 3",
            "put arena a 4096",
            "keep plain a 3",
            "keep arena a 4096",
            "arena a -1",
            "arena a",
            "allocate a 0",
            "take",
            "list a b c",
        ] {
            assert!(nonsense.parse::<Request>().is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn a_name_is_short_and_printable() {
        let put = |name: &str| format!("put plain {name} 3").parse::<Request>();
        assert!(put(&"x".repeat(255)).is_ok());
        for name in ["", "a\tb", "a\n", "\u{fffd}", &"x".repeat(256)] {
            assert!(put(name).is_err(), "{name:?}");
        }
    }
}
