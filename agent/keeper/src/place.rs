//! The keeper's place: the socket's name, taken anew or from the keeper that has it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::{
    kept::Kept,
    protocol::{Request, receive, send},
};

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens, in the place of a keeper that is gone. One that is there keeps its place.
pub(crate) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    if connect(unix_socket()?, &address).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "a keeper listens there; --replace takes over from it",
        ));
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Bound beside its place and moved there when nobody but root can connect any more.
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let listener = unix_socket()?;
    bind(&listener, &SocketAddrUnix::new(&beside)?)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
    listen(&listener, 16)?;
    fs::rename(&beside, path)?;
    Ok(listener)
}

/// Gets everything from the keeper that listens at a path.
pub(crate) fn take_over(path: &Path) -> io::Result<BTreeMap<String, Kept>> {
    let old = unix_socket()?;
    connect(&old, &SocketAddrUnix::new(path)?)?;
    send(&old, "hand-over", &[])?;
    let mut kept = BTreeMap::new();
    loop {
        let Some((line, descriptors)) = receive(&old)? else {
            return Err(io::Error::other("the old keeper ended before it had handed everything over"));
        };
        match line.parse() {
            Ok(Request::Put { kind, name, grace }) => {
                kept.insert(name, Kept::new(kind, grace, descriptors, None));
            }
            _ if line == "ok" => return Ok(kept),
            _ => return Err(io::Error::other(format!("the old keeper said: {line}"))),
        }
    }
}
