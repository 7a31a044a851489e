//! Readers that are refused when nobody comes. A pair of sockets plays the device and the kernel.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{read, retry_on_intr, write},
    net::{
        AddressFamily, SocketFlags, SocketType, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::{Keeper, PATIENCE, ask, client, receive, send, until};

fn device() -> (OwnedFd, OwnedFd) {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_timeout(&pair.1, Timeout::Recv, Some(PATIENCE)).unwrap();
    pair
}

/// Whether whoever reads from a descriptor waits.
fn waits(device: &OwnedFd) -> bool {
    !fcntl_getfl(device).unwrap().contains(OFlags::NONBLOCK)
}

fn put_fuse(client: &OwnedFd, device: &OwnedFd, grace: u64) {
    send(client, format!("put fuse volumes {grace}").as_bytes(), &[device.as_fd()]);
    assert_eq!(receive(client).0, "ok");
}

#[test]
fn readers_are_refused_when_nobody_comes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let (device, kernel) = device();
    put_fuse(&client(&socket), &device, 0);
    let mut found = [0; 64];
    assert_eq!(
        retry_on_intr(|| read(&kernel, &mut found)).unwrap(),
        16,
        "what the agent had taken is asked again"
    );
    let mut request = [0; 40];
    request[4..8].copy_from_slice(&15_u32.to_ne_bytes());
    request[8..16].copy_from_slice(&77_u64.to_ne_bytes());
    write(&kernel, &request).unwrap();
    assert_eq!(retry_on_intr(|| read(&kernel, &mut found)).unwrap(), 16);
    assert_eq!((&found[4..8], found[8]), (&(-5_i32).to_ne_bytes()[..], 77));
}

#[test]
fn whoever_comes_to_a_name_that_refuses_gets_reads_that_wait() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let (device, _kernel) = device();
    let comes: [fn(&OwnedFd, &OwnedFd); 3] = [
        |client, device| put_fuse(client, device, 300),
        |client, _| assert_eq!(ask(client, "attend volumes").0, "ok"),
        |client, _| assert_eq!(ask(client, "drop volumes").0, "ok"),
    ];
    for comes in comes {
        put_fuse(&client(&socket), &device, 0);
        until("it refuses", || !waits(&device));
        let next = client(&socket);
        comes(&next, &device);
        assert!(waits(&device));
        // One that lives goes on as it is: whatever was to be refused has been.
        assert!(ask(&next, "list").0.starts_with("ok"));
        assert!(waits(&device));
    }
}

/// The agent outlives a keeper that refuses, and brings what it has to the next one.
#[test]
fn what_an_earlier_keeper_refused_waits_when_it_is_put() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let (device, _kernel) = device();
    fcntl_setfl(&device, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    let agent = client(&socket);
    put_fuse(&agent, &device, 300);
    assert!(waits(&device));
}

#[test]
fn a_grace_longer_than_clocks_reach_is_no_end_of_the_keeper() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("keeper.sock");
    let _keeper = Keeper::start(&socket, &[]);
    let (device, _kernel) = device();
    // The longest that an agent's configuration can say, and the longest that can be said at all.
    let longest = i64::MAX.cast_unsigned();
    for grace in [longest - (1 << 40), longest, u64::MAX] {
        put_fuse(&client(&socket), &device, grace);
        let next = client(&socket);
        // The first answer may come before it has seen that nobody attends to the name any more.
        for _ in 0..2 {
            assert_eq!(ask(&next, "list").0, "ok volumes");
        }
        assert!(waits(&device));
    }
}
