//! A Unix socket: nobody else may ever use it, what a dead process left is replaced, and a live one's is left alone.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;

/// A socket that is listened on.
#[derive(Debug)]
pub struct Socket {
    /// Where connections come.
    pub listener: UnixListener,
    /// Removes the file when dropped.
    pub file: SocketFile,
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves it.
    #[error("another process listens there")]
    InUse,
    /// Something else has its name.
    #[error("it is there and is not a socket")]
    NotASocket,
    /// It cannot be made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The socket's file, to be removed at the end.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file of this name that another process made meanwhile is not ours to remove.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Listens on `path`, and makes its directory. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        make_room(path).await?;
        let listener = listen(path)?;
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), identity: identity(path) } })
    }
}

impl SocketFile {
    /// Whether the file is there and still this socket's.
    pub fn is_there(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

/// Makes the directory, and takes away what a dead process left.
async fn make_room(path: &Path) -> Result<(), SocketError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(SocketError::NotASocket);
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError::InUse),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing the socket of a process that is gone");
            Ok(fs::remove_file(path)?)
        }
        Err(error) => Err(error.into()),
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
        if self.is_there() {
            // If it stays, the next process takes it away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_the_file_goes_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/weightd.sock");
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_process_keeps_its_socket_and_a_dead_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weightd.sock");
        let live = Socket::bind(&path).await.unwrap();
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, SocketError::InUse), "{error:?}");
        drop(live);

        // A standard listener leaves its file behind, as a killed process does.
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
        assert!(matches!(error, SocketError::NotASocket), "{error:?}");
    }
}
