//! The Unix socket: nobody else may ever use it, and a dead agent's is replaced.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::StartError;

/// Connections that wait for the agent to take them.
const BACKLOG: u32 = 1024;

/// A socket that is listened on.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    pub(crate) file: SocketFile,
}

/// The socket's file, to be removed at the end.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file of this name that another agent made meanwhile is not ours to remove.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Listens on `path`.
    pub(crate) async fn bind(path: &Path) -> Result<Self, StartError> {
        make_room(path).await?;
        let listener = listen(path).map_err(|cause| StartError::Socket { socket: path.to_owned(), cause })?;
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), identity: identity(path) } })
    }
}

/// Makes the directory, and takes away what a dead agent left.
async fn make_room(path: &Path) -> Result<(), StartError> {
    let failed = |cause| StartError::Socket { socket: path.to_owned(), cause };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(StartError::NotASocket { socket: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(StartError::SocketInUse { socket: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing the socket of an agent that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The mode is set before the file exists: Linux gives the file the socket's own mode, so that there is no moment
/// at which others could connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // If it stays, the next agent takes it away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_the_file_goes_with_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/weightd.sock");
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_agent_keeps_its_socket_and_a_dead_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weightd.sock");
        let live = Socket::bind(&path).await.unwrap();
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(&error, StartError::SocketInUse { socket } if *socket == path), "{error:?}");
        drop(live);

        // A standard listener leaves its file behind, as a killed agent does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let replaced = Socket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();

        // What is at the path now is another's: it stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(replaced);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, StartError::NotASocket { .. }), "{error:?}");
    }
}
