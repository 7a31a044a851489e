//! The keeper's place: the socket's name, taken anew or from the keeper that has it.
//!
//! What an older keeper hands over is, from its `ok` on, with this process alone. So all that can fail is done before
//! it is told to end, and nothing that comes after may end this process.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::{
    kept::Kept,
    protocol::{handed, receive, send},
    say,
};

/// Listens, in the place of a keeper that is gone. One that is there keeps its place.
pub(crate) fn settle(path: &Path) -> io::Result<OwnedFd> {
    if connect(unix_socket()?, &SocketAddrUnix::new(path)?).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "a keeper listens there; --replace takes over from it",
        ));
    }
    let (listener, beside) = listen_beside(path)?;
    fs::rename(&beside, path).inspect_err(|_| remove(&beside))?;
    Ok(listener)
}

/// Takes the place of the keeper that listens at a path, and all that it keeps.
pub(crate) fn take_over(path: &Path, room: usize) -> io::Result<(OwnedFd, BTreeMap<String, Kept>)> {
    let (listener, beside) = listen_beside(path)?;
    let kept = inherit(path, room).inspect_err(|_| remove(&beside))?;
    // The old one may still listen, and no longer serves anyone. Who connects from here on waits for this one.
    if let Err(error) = fs::rename(&beside, path) {
        let beside = beside.display();
        say(&format!("listening at {beside}, because it could not be moved: {error}; move it by hand"));
    }
    Ok((listener, kept))
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens beside a path, to be moved there: nobody finds a socket that others than root may connect to.
fn listen_beside(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    // Two that start at once must not take each other's. Short, because socket paths are.
    let beside = path.with_file_name(format!(".{}", std::process::id()));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    remove(&beside);
    let listener = unix_socket()?;
    bind(&listener, &SocketAddrUnix::new(&beside)?)?;
    let ready = fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))
        .and_then(|()| Ok(listen(&listener, 16)?));
    ready.inspect_err(|_| remove(&beside))?;
    Ok((listener, beside))
}

fn remove(beside: &Path) {
    let _ = fs::remove_file(beside);
}

/// Gets everything from the keeper that listens at a path, and then has it end.
fn inherit(path: &Path, room: usize) -> io::Result<BTreeMap<String, Kept>> {
    let old = unix_socket()?;
    connect(&old, &SocketAddrUnix::new(path)?)?;
    send(&old, "hand-over", &[])?;
    let mut kept = BTreeMap::new();
    loop {
        let Some((line, descriptors)) = receive(&old)? else {
            return Err(io::Error::other("the old keeper ended before it had handed everything over"));
        };
        match handed(&line) {
            Some((kind, name, grace)) => {
                kept.insert(name, Kept::new(kind, grace, descriptors, None));
            }
            None if line == "all" => {
                let held: usize = kept.values().map(|kept: &Kept| kept.descriptors.len()).sum();
                if held > room {
                    return Err(io::Error::other(format!("{held} descriptors are too many for this one")));
                }
                send(&old, "end", &[])?;
            }
            // A keeper of an earlier build says only this, and ends without being told.
            None if line == "ok" => return Ok(kept),
            None => return Err(io::Error::other(format!("the old keeper said: {line}"))),
        }
    }
}
