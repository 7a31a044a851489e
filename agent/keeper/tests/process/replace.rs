//! One keeper in the place of another.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, symlink},
    },
    path::Path,
};

use rustix::{
    io::retry_on_intr,
    net::{
        SocketAddrUnix, SocketFlags, accept_with, bind, listen,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{Keeper, PATIENCE, ask, client, file_with, put, receive, send, text_of, unix_socket, until};

#[test]
fn a_new_keeper_gets_everything_and_the_old_one_ends() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut old = Keeper::start(&socket, &[]);
    let first = client(&socket);
    for number in 0..500 {
        put(&first, &format!("name-{number}"), &number.to_string());
    }
    let place = fs::metadata(&socket).unwrap().ino();
    let _new = Keeper::spawn(&socket, &["--replace"]);
    assert_eq!(old.code(), Some(0));
    until("the new one has its place", || fs::metadata(&socket).unwrap().ino() != place);
    let second = client(&socket);
    for number in [0, 250, 499] {
        assert_eq!(text_of(&second, &format!("name-{number}")), number.to_string());
    }
}

#[test]
fn the_longest_names_and_the_most_descriptors_are_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut old = Keeper::start(&socket, &[]);
    let first = client(&socket);
    // Many times more descriptors than fit into one message (253), or than the kernel lets wait in a socket.
    let (names, files) = (100..300, [0; 8].map(|_| tempfile::tempfile().unwrap()));
    let name = |number: u32| format!("{number}{}", "~".repeat(252));
    for number in names.clone() {
        let line = format!("put plain {} {}", name(number), u64::MAX);
        send(&first, line.as_bytes(), &files.each_ref().map(AsFd::as_fd));
        assert_eq!(receive(&first).0, "ok");
    }
    let _new = Keeper::spawn(&socket, &["--replace"]);
    assert_eq!(old.code(), Some(0));
    let second = client(&socket);
    for number in names {
        let (answer, descriptors) = ask(&second, &format!("attend {}", name(number)));
        assert_eq!((answer.as_str(), descriptors.len()), ("ok", 8), "{number}");
    }
}

/// The names in a directory.
fn names_in(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// An old keeper played by hand. Gives its listener, and the new one that asked it to hand over.
fn asked_to_hand_over(socket: &Path) -> (OwnedFd, Keeper, OwnedFd) {
    let listener = unix_socket();
    bind(&listener, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    listen(&listener, 16).unwrap();
    set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).unwrap();
    let new = Keeper::spawn(socket, &["--replace"]);
    let asks = retry_on_intr(|| accept_with(&listener, SocketFlags::CLOEXEC)).unwrap();
    assert_eq!(receive(&asks).0, "hand-over");
    send(&asks, b"keep plain a 300", &[file_with("kept").as_fd()]);
    (listener, new, asks)
}

#[test]
fn a_new_keeper_takes_the_place_of_one_that_still_listens() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let (_listener, _new, asks) = asked_to_hand_over(&socket);
    let place = fs::metadata(&socket).unwrap().ino();
    send(&asks, b"all", &[]);
    assert_eq!(receive(&asks).0, "end");
    send(&asks, b"ok", &[]);
    until("the new one has its place", || fs::metadata(&socket).unwrap().ino() != place);
    assert_eq!(text_of(&client(&socket), "a"), "kept");
    assert_eq!(names_in(directory.path()), ["keeper.sock"]);
}

#[test]
fn a_keeper_goes_on_when_the_one_that_takes_over_fails() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let mut old = Keeper::start(&socket, &[]);
    put(&client(&socket), "a", "kept");
    // They have been given everything, and end, say something else, or hang.
    for last_words in [None, Some("no")] {
        let new = client(&socket);
        assert_eq!(ask(&new, "hand-over").0, "keep plain a 300");
        assert_eq!(receive(&new).0, "all");
        if let Some(words) = last_words {
            assert_eq!(ask(&new, words).0, "", "it hangs up");
        }
    }
    let hangs = client(&socket);
    assert_eq!(ask(&hangs, "hand-over").0, "keep plain a 300");
    assert_eq!(text_of(&client(&socket), "a"), "kept");
    assert_eq!(old.0.try_wait().unwrap(), None);
}

#[test]
fn a_hand_over_that_breaks_off_leaves_the_old_keeper_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let (_listener, mut new, asks) = asked_to_hand_over(&socket);
    let place = fs::metadata(&socket).unwrap().ino();
    drop(asks);
    assert_eq!(new.code(), Some(69));
    assert_eq!(fs::metadata(&socket).unwrap().ino(), place);
    assert_eq!(names_in(directory.path()), ["keeper.sock"]);
}

#[test]
fn a_new_keeper_that_cannot_listen_asks_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _old = Keeper::start(&socket, &[]);
    put(&client(&socket), "a", "kept");
    // The old one can be reached by this path, the longest there is; a socket beside it would have a longer one.
    let deep = directory.path().join("x".repeat(105 - 1 - directory.path().as_os_str().len()));
    fs::create_dir(&deep).unwrap();
    symlink(&socket, deep.join("k")).unwrap();
    assert_eq!(Keeper::spawn(&deep.join("k"), &["--replace"]).code(), Some(69));
    assert_eq!(text_of(&client(&socket), "a"), "kept");
    assert_eq!(names_in(&deep), ["k"]);
}
