//! The keeper as a process, and clients of every kind.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and wait")]

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read, Seek, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
        socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

mod arenas;
mod first;
mod limit;
mod refuse;
mod replace;

const PATIENCE: Duration = Duration::from_secs(20);

struct Keeper(Child);

impl Keeper {
    fn start(socket: &Path, more: &[&str]) -> Self {
        let keeper = Self::spawn(socket, more);
        until("it listens", || connect(unix_socket(), &SocketAddrUnix::new(socket).unwrap()).is_ok());
        keeper
    }

    fn spawn(socket: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weightd-keeper"));
        Self(command.arg("--socket").arg(socket).args(more).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Starts one that may open a number of files, as the shell is told: `-S` lets it raise that itself.
    fn spawn_with(limit: &str, socket: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_weightd-keeper")).arg("--socket").arg(socket).args(more);
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }

    fn code(&mut self) -> Option<i32> {
        until("it ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unix_socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn client(socket: &Path) -> OwnedFd {
    let client = unix_socket();
    // A keeper that takes over listens a moment after the old one has ended; agents try again too.
    until("someone listens", || connect(&client, &SocketAddrUnix::new(socket).unwrap()).is_ok());
    set_socket_timeout(&client, Timeout::Recv, Some(PATIENCE)).unwrap();
    client
}

fn send(client: &OwnedFd, line: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg(client, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL).unwrap();
}

fn receive(client: &OwnedFd) -> (String, Vec<OwnedFd>) {
    let (mut bytes, mut descriptors) = (vec![0; 64 << 10], Vec::new());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut words = [IoSliceMut::new(&mut bytes)];
    // With a limit on its time, the kernel does not take up by itself what stopping the machine interrupted.
    let received = retry_on_intr(|| recvmsg(client, &mut words, &mut beside, RecvFlags::CMSG_CLOEXEC));
    let length = received.map_or(0, |received| received.bytes);
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (String::from_utf8(bytes[..length].to_vec()).unwrap(), descriptors)
}

fn ask(client: &OwnedFd, line: &str) -> (String, Vec<OwnedFd>) {
    send(client, line.as_bytes(), &[]);
    receive(client)
}

fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn put(client: &OwnedFd, name: &str, text: &str) {
    send(client, format!("put plain {name} 300").as_bytes(), &[file_with(text).as_fd()]);
    assert_eq!(receive(client).0, "ok");
}

fn text_of(client: &OwnedFd, name: &str) -> String {
    let (answer, mut descriptors) = ask(client, &format!("attend {name}"));
    assert_eq!(answer, "ok", "{name}");
    let (mut file, mut text) = (File::from(descriptors.pop().unwrap()), String::new());
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_a_client_leaves_the_next_one_gets() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let first = client(&socket);
    put(&first, "a", "one");
    put(&first, "b", "two");
    put(&first, "a", "three");
    drop(first);
    let second = client(&socket);
    assert_eq!(ask(&second, "list").0, "ok a b");
    assert_eq!((text_of(&second, "a"), text_of(&second, "b")), ("three".to_owned(), "two".to_owned()));
    assert_eq!(ask(&second, "drop a").0, "ok");
    assert_eq!(ask(&second, "attend a").0, "none");
    assert_eq!(ask(&second, "drop a").0, "ok", "every request may be repeated");
}

#[test]
fn names_are_listed_by_how_they_begin_and_as_many_as_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let client = client(&socket);
    // Twice what fits into a message.
    let names: Vec<_> = (100..600).map(|number| format!("arena/{number}{}", "x".repeat(246))).collect();
    for name in names.iter().map(String::as_str).chain(["arena", "volumes"]) {
        put(&client, name, "");
    }
    let (mut found, mut rounds) = (Vec::<String>::new(), 0);
    loop {
        let after = found.last().map_or("", String::as_str);
        let (answer, _) = ask(&client, &format!("list arena/ {after}"));
        let (ok, page) = answer.split_once(' ').unwrap_or((&answer, ""));
        assert_eq!(ok, "ok");
        if page.is_empty() {
            break;
        }
        found.extend(page.split(' ').map(str::to_owned));
        rounds += 1;
    }
    assert!(found == names, "{} of {}", found.len(), names.len());
    assert_eq!(rounds, 2);
    assert_eq!(ask(&client, "list v").0, "ok volumes");
    assert_eq!(ask(&client, "list none").0, "ok");
    assert_eq!(ask(&client, &format!("list  {}", names[499])).0, "ok volumes");
}

#[test]
fn hostile_clients_hurt_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let good = client(&socket);
    put(&good, "good", "kept");
    let junk = client(&socket);
    let long = [&b"attend "[..], &[b'x'; 100_000]].concat();
    for line in [&b"\xff\xfe\x00"[..], b"put", b"put fuse x y", b"attend", &[b'x'; 60_000], &long] {
        send(&junk, line, &[]);
        assert!(receive(&junk).0.starts_with("error "), "{:?}", &line[..line.len().min(9)]);
    }
    assert!(ask(&junk, "put plain nothing 5").0.starts_with("error there is no descriptor"));
    let file = tempfile::tempfile().unwrap();
    for count in 9..=16 {
        send(&junk, b"put plain many 5", &vec![file.as_fd(); count]);
        let answer = receive(&junk).0;
        assert!(answer.starts_with("error descriptors were lost"), "{count}: {answer}");
    }
    assert_eq!(ask(&junk, "attend many").0, "none", "what lost some is not kept at all");
    // One that never reads its answers is left behind in the end.
    let deaf = client(&socket);
    set_socket_timeout(&deaf, Timeout::Send, Some(Duration::from_millis(200))).unwrap();
    for _ in 0..2000 {
        let mut beside = SendAncillaryBuffer::default();
        if sendmsg(&deaf, &[IoSlice::new(b"list")], &mut beside, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    // More clients than it takes.
    let crowd: Vec<_> = (0..100).map(|_| client(&socket)).collect();
    assert_eq!(ask(&good, "list").0.split(' ').next(), Some("ok"));
    drop(crowd);
    drop(deaf);
    assert_eq!(text_of(&good, "good"), "kept");
}

#[test]
fn a_second_keeper_and_a_wrong_command_line_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weightd-keeper")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--socket", socket.to_str().unwrap()]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("--replace"), "{said}");
    assert_eq!(run(&[]).0, Some(64));
    assert_eq!(run(&["--sokcet", "x"]).0, Some(64));
    assert_eq!(run(&["--help"]).0, Some(0));
}
