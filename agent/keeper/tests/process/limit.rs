//! Keepers that may open few files.

use std::os::fd::{AsFd, OwnedFd};

use super::{Keeper, ask, client, file_with, receive, send};

/// Puts eight descriptors.
fn put_eight(client: &OwnedFd, name: &str) -> String {
    let file = file_with("");
    send(client, format!("put plain {name} 300").as_bytes(), &[file.as_fd(); 8]);
    receive(client).0
}

#[test]
fn a_keeper_raises_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::spawn_with("-Sn 100", &socket, &[]);
    let client = client(&socket);
    for number in 0..100 {
        assert_eq!(put_eight(&client, &number.to_string()), "ok", "{number}");
    }
}

#[test]
fn a_keeper_that_is_full_says_so_and_serves_everyone_else() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    // 80 of them are not for keeping.
    let _keeper = Keeper::spawn_with("-n 200", &socket, &[]);
    let first = client(&socket);
    let answers: Vec<_> = (0..16).map(|number| put_eight(&first, &number.to_string())).collect();
    assert_eq!(answers[..15], ["ok"; 15]);
    assert_eq!(answers[15], "error 120 descriptors are kept already; raise the limit of open files");
    let crowd: Vec<_> = (0..63).map(|_| client(&socket)).collect();
    for client in crowd.iter().chain([&first]) {
        assert_eq!(put_eight(client, "3"), "ok", "a name that is kept can be renewed");
        assert_eq!(ask(client, "attend 14").1.len(), 8);
    }
}

#[test]
fn a_new_keeper_without_room_leaves_the_old_one_in_charge() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _old = Keeper::start(&socket, &[]);
    for number in 0..20 {
        assert_eq!(put_eight(&client(&socket), &number.to_string()), "ok");
    }
    // Too few to be handed all, and just enough, with none left for clients.
    for limit in ["-n 100", "-n 180"] {
        assert_eq!(Keeper::spawn_with(limit, &socket, &["--replace"]).code(), Some(69));
    }
    for number in 0..20 {
        assert_eq!(ask(&client(&socket), &format!("attend {number}")).1.len(), 8);
    }
}
