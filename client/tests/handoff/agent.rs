//! An agent that does what a test has it do, over a real socket and real files in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    thread,
    time::Duration,
};

use prost::Message;
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown,
        SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv, sendmsg, shutdown,
        socket_with,
    },
};
use weightd_client::handoff::{self, Error, Request, Ring, Session, Stream};
use weightd_proto::v1::{
    FailureKind, HandoffAnswer, HandoffArenas, HandoffDelivered, HandoffFailed, HandoffFile, HandoffFull,
    HandoffOpen, HandoffOpened, HandoffPlace, HandoffRange, HandoffReady, HandoffRequest, HandoffTable,
    HandoffTensor, HandoffWant, handoff_answer::Answer, handoff_request::Request as Said,
};

/// Long enough for anything that happens here at all.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// What an arena is sealed with before anybody else sees it.
const ARENA: SealFlags =
    SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);
/// And a table.
const TABLE: SealFlags =
    SealFlags::GROW.union(SealFlags::SHRINK).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// A socket, and whoever serves it.
pub(crate) struct Agent {
    directory: tempfile::TempDir,
    listener: OwnedFd,
}

/// An agent's end of a connection. Dropping it ends the connection.
pub(crate) struct Client {
    socket: OwnedFd,
}

/// What an agent lends.
pub(crate) struct Model {
    pub(crate) snapshot: String,
    pub(crate) table: HandoffTable,
    pub(crate) arenas: Vec<OwnedFd>,
    pub(crate) lengths: Vec<u64>,
    pub(crate) complete: bool,
}

impl Agent {
    /// Serves one connection after another, each as the function has it.
    pub(crate) fn serving(serve: impl FnMut(Client) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(directory.path().join("socket")).unwrap()).unwrap();
        listen(&listener, 64).unwrap();
        let here = listener.try_clone().unwrap();
        thread::spawn(move || {
            let mut serve = serve;
            while let Ok(socket) = accept_with(&here, SocketFlags::CLOEXEC) {
                serve(Client { socket });
            }
        });
        Self { directory, listener }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Opens everything.
    pub(crate) fn open(&self) -> Result<Session, Error> {
        handoff::open(&self.socket(), &Request::default(), LONG)
    }

    /// Opens everything, to come through a ring.
    pub(crate) fn stream(&self) -> Result<Stream, Error> {
        handoff::stream(&self.socket(), &Request::default(), Ring::default(), LONG)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ended = shutdown(&self.listener, Shutdown::Both);
    }
}

impl Client {
    /// The next message; none at the end.
    pub(crate) fn hear(&self) -> Option<Said> {
        let mut packet = vec![0; 64 << 10];
        let (length, _) = recv(&self.socket, packet.as_mut_slice(), RecvFlags::empty()).ok()?;
        if length == 0 {
            return None;
        }
        HandoffRequest::decode(&packet[..length]).unwrap().request
    }

    pub(crate) fn hear_open(&self) -> HandoffOpen {
        match self.hear() {
            Some(Said::Open(open)) => open,
            other => panic!("{other:?} is no open"),
        }
    }

    /// The next that is wanted; none at the end.
    pub(crate) fn hear_want(&self) -> Option<HandoffWant> {
        match self.hear()? {
            Said::Want(want) => Some(want),
            other => panic!("{other:?}"),
        }
    }

    /// The next that are released; none at the end.
    pub(crate) fn hear_release(&self) -> Option<Vec<u32>> {
        match self.hear()? {
            Said::Release(release) => Some(release.tensors),
            other => panic!("{other:?}"),
        }
    }

    /// Tensors, and where they are in the ring.
    pub(crate) fn say_delivered(&self, places: &[(u32, u64)]) {
        let places = places.iter().map(|&(tensor, offset)| HandoffPlace { tensor, offset }).collect();
        self.say(Answer::Delivered(HandoffDelivered { places }), &[]);
    }

    pub(crate) fn say_full(&self, tensor: u32, bytes: u64) {
        self.say(Answer::Full(HandoffFull { tensor, bytes }), &[]);
    }

    pub(crate) fn say(&self, answer: Answer, descriptors: &[BorrowedFd<'_>]) {
        self.say_bytes(&HandoffAnswer { answer: Some(answer) }.encode_to_vec(), descriptors);
    }

    /// Whether the client is still there is of no interest.
    pub(crate) fn say_bytes(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(beside.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let _gone = sendmsg(&self.socket, &[IoSlice::new(packet)], &mut beside, SendFlags::NOSIGNAL);
    }

    pub(crate) fn say_ready(&self, tensors: &[std::ops::Range<u32>], verified: bool) {
        let ranges = tensors.iter().map(|range| HandoffRange { start: range.start, end: range.end });
        self.say(Answer::Ready(HandoffReady { tensors: ranges.collect(), verified }), &[]);
    }

    pub(crate) fn say_failed(&self, kind: FailureKind, message: &str) {
        let (message, remedy) = (message.to_owned(), "mend it".to_owned());
        self.say(Answer::Failed(HandoffFailed { kind: kind.into(), message, remedy }), &[]);
    }

    pub(crate) fn say_opened(&self, model: &Model) {
        let encoded = model.table.encode_to_vec();
        let table = memory(&encoded, encoded.len() as u64, TABLE);
        self.say(Answer::Opened(model.opened()), &[table.as_fd()]);
    }

    pub(crate) fn say_arenas(&self, model: &Model) {
        for (number, arenas) in model.arenas.chunks(64).enumerate() {
            let first = 64 * number;
            let lengths = model.lengths[first..first + arenas.len()].to_vec();
            let descriptors: Vec<_> = arenas.iter().map(AsFd::as_fd).collect();
            self.say(Answer::Arenas(HandoffArenas { first: first as u32, lengths }), &descriptors);
        }
    }

    /// All that an agent says to `open`.
    pub(crate) fn lend(&self, model: &Model) {
        self.say_opened(model);
        self.say_arenas(model);
    }
}

impl Model {
    /// A file for each list of tensors, which are of bytes and of that length. Every byte of a tensor is its position.
    pub(crate) fn new(files: &[&[usize]]) -> Self {
        let mut model = Self {
            snapshot: "5f0c.aligned".to_owned(),
            table: HandoffTable::default(),
            arenas: Vec::new(),
            lengths: Vec::new(),
            complete: false,
        };
        files.iter().for_each(|lengths| model.add_file(lengths));
        model
    }

    pub(crate) fn complete(mut self) -> Self {
        self.complete = true;
        self
    }

    pub(crate) fn opened(&self) -> HandoffOpened {
        HandoffOpened {
            snapshot: self.snapshot.clone(),
            source: "gs://models/x".to_owned(),
            table_bytes: self.table.encoded_len() as u64,
            arenas: self.arenas.len() as u32,
            complete: self.complete,
        }
    }

    fn add_file(&mut self, lengths: &[usize]) {
        let (file, mut content) = (self.table.files.len() as u32, Vec::new());
        for &length in lengths {
            let position = self.table.tensors.len();
            self.table.tensors.push(HandoffTensor {
                name: format!("t{position}"),
                dtype: "U8".to_owned(),
                shape: vec![length as u64],
                file,
                arena: file,
                offset: content.len() as u64,
                bytes: length as u64,
                strides: Vec::new(),
            });
            content.resize(content.len() + length, position as u8);
            content.resize(content.len().next_multiple_of(256), 0);
        }
        let bytes = content.len().next_multiple_of(4096) as u64;
        self.arenas.push(memory(&content, bytes, ARENA));
        self.lengths.push(bytes);
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        self.table.files.push(HandoffFile { path: format!("{file}.safetensors"), metadata });
    }
}

/// The ring of an agent: what is written to it is seen by whoever was lent it.
pub(crate) struct RingFile {
    file: std::fs::File,
    bytes: u64,
}

impl RingFile {
    pub(crate) fn new(bytes: u64) -> Self {
        let file = memfd_create("ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(bytes).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).unwrap();
        Self { file, bytes }
    }

    /// Every byte of a tensor is its position.
    pub(crate) fn fill(&self, position: u32, offset: u64, bytes: u64) {
        let content = vec![position as u8; usize::try_from(bytes).unwrap()];
        self.file.write_all_at(&content, offset).unwrap();
    }

    /// Lends the tensors of a model through this.
    pub(crate) fn lend(&self, client: &Client, model: &Model) {
        let encoded = model.table.encode_to_vec();
        let table = memory(&encoded, encoded.len() as u64, TABLE);
        let opened = HandoffOpened { arenas: 1, ..model.opened() };
        client.say(Answer::Opened(opened), &[table.as_fd()]);
        let arenas = HandoffArenas { first: 0, lengths: vec![self.bytes] };
        client.say(Answer::Arenas(arenas), &[self.file.as_fd()]);
    }

    /// Does so as docs/HANDOFF.md says, until the client has gone.
    pub(crate) fn serve(&self, client: &Client, model: &Model, wanted_only: bool) {
        self.lend(client, model);
        let bytes = |tensor: u32| model.table.tensors[tensor as usize].bytes;
        let count = model.table.tensors.len() as u32;
        let mut next: VecDeque<u32> = if wanted_only { VecDeque::new() } else { (0..count).collect() };
        let mut places: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        loop {
            while let Some(&tensor) = next.front() {
                let is_there = places.values().any(|&(_, there)| there == tensor);
                if is_there || bytes(tensor) == 0 {
                    next.pop_front();
                    continue;
                }
                let length = bytes(tensor).next_multiple_of(4096);
                let starts = [0].into_iter().chain(places.values().map(|&(end, _)| end));
                let ends = places.keys().copied().chain([self.bytes]);
                let Some((start, _)) = starts.zip(ends).find(|(start, end)| end - start >= length) else {
                    client.say_full(tensor, length);
                    break;
                };
                self.fill(tensor, start, bytes(tensor));
                places.insert(start, (start + length, tensor));
                client.say_delivered(&[(tensor, start)]);
                next.pop_front();
            }
            match client.hear() {
                None => return,
                Some(Said::Want(want)) => {
                    let wanted: Vec<u32> =
                        want.tensors.iter().flat_map(|range| range.start..range.end).collect();
                    next.retain(|tensor| !wanted.contains(tensor));
                    wanted.into_iter().rev().for_each(|tensor| next.push_front(tensor));
                }
                Some(Said::Release(release)) => {
                    for tensor in release.tensors {
                        let before = places.len();
                        places.retain(|_, (_, there)| *there != tensor);
                        assert_eq!(places.len() + 1, before, "{tensor} was there");
                    }
                }
                Some(Said::Open(again)) => panic!("{again:?}"),
            }
        }
    }
}

/// A file in memory, open for reading as clients have it.
pub(crate) fn memory(content: &[u8], bytes: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = std::fs::File::from(file);
    file.write_all_at(content, 0).unwrap();
    file.set_len(bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// The bytes of a tensor, read from a private mapping.
pub(crate) fn bytes(session: &Session, position: usize) -> Vec<u8> {
    let tensor = &session.table().tensors()[position];
    let arena = std::fs::File::from(session.arena(tensor.arena).as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; tensor.bytes];
    arena.read_exact_at(&mut bytes, tensor.offset as u64).unwrap();
    bytes
}
