//! Loopback ports, and who listens on them.

use std::{fs, io, net::TcpListener, os::unix::ffi::OsStrExt};

/// State `LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A loopback port that nobody listens on at this moment.
///
/// # Errors
/// When the kernel has none left.
pub fn unused_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Whether the process `pid` itself listens on `port`. That somebody answers there is not enough: between choosing
/// a port and binding it, a server of another test may have taken it.
pub(crate) fn listens(pid: u32, port: u16) -> bool {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| listening_inode(line, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| socket.as_bytes() == target.as_os_str().as_bytes()))
}

/// The socket's inode, when this line of `/proc/net/tcp` is a listener on `port`.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let is_it = fields.get(3) == Some(&LISTEN) && u16::from_str_radix(hex, 16) == Ok(port);
    is_it.then_some(fields.get(9).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_listener_is_seen_as_ours_and_only_while_it_lives() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listens(process::id(), port));
        assert!(!listens(1, port), "init does not hold it");
        drop(listener);
        assert!(!listens(process::id(), port));
    }
}
