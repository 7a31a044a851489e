//! What the agent does when its keeper is replaced. A thread plays the keeper.

use std::sync::mpsc;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with,
};

use super::*;

/// A keeper that gives one client after the other the next of its answers, and hangs up on none. Gives what it heard.
fn keeper_at(path: &Path, answers: &'static [&'static str]) -> mpsc::Receiver<String> {
    let listener =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listener, 16).unwrap();
    let (heard, hears) = mpsc::channel();
    std::thread::spawn(move || {
        let mut clients = Vec::new();
        for answer in answers {
            let client = accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
            let mut line = [0; 4096];
            let (length, _) = recv(&client, &mut line[..], RecvFlags::empty()).unwrap();
            heard.send(String::from_utf8_lossy(&line[..length]).into_owned()).unwrap();
            send(&client, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
            clients.push(client);
        }
        // Until the test has ended.
        let _ = accept_with(&listener, SocketFlags::CLOEXEC);
    });
    hears
}

fn backing() -> Backing {
    let device = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
    Backing {
        init: String::new(),
        passthrough: Passthrough::new(Arc::clone(&device), Registered::default()),
        keeper: Mutex::new(None),
        device,
    }
}

#[test]
fn a_keeper_that_took_nothing_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let backing = backing();
    let grace = Duration::from_millis(1500);
    backing.look_for_keeper(&path, grace);
    let hears = keeper_at(&path, &["error no room", "ok"]);
    for _ in 0..2 {
        backing.look_for_keeper(&path, grace);
        assert_eq!(hears.try_recv().as_deref(), Ok("put fuse volumes 2"));
    }
    // It has everything now, and is left in peace.
    backing.look_for_keeper(&path, grace);
    assert!(hears.try_recv().is_err());
    assert!(backing.keeper.lock().unwrap().as_ref().is_some_and(|keeper| !keeper.is_gone()));
}
