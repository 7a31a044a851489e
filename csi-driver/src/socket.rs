//! A Unix socket that stays: what a dead driver left is replaced, a live one's is left alone, and when someone takes the
//! file away, or the whole directory, it is made anew. kubelet's directories are wiped now and then by people who mend
//! nodes, and a driver that nobody can reach any more would look well.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Mode, fchmod};
use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::StartError;

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;
/// How often it is looked whether the file is there.
const LOOK: Duration = Duration::from_millis(250);
/// After a connection that could not be taken, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened on. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode: a file of this name that someone else made is not ours to remove.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Listens on `path`.
    pub(crate) async fn bind(path: &Path) -> Result<Self, StartError> {
        make_room(path).await?;
        let listener = listen(path).map_err(|cause| StartError::Socket { socket: path.to_owned(), cause })?;
        Ok(Self { path: path.to_owned(), listener, identity: identity(path) })
    }

    /// Passes connections on until `stopping` is cancelled. `renewed` is told each time the socket was made anew.
    pub(crate) async fn keep(
        mut self,
        connections: mpsc::Sender<io::Result<UnixStream>>,
        renewed: impl Fn() + Send,
        stopping: CancellationToken,
    ) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = String::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                taken = self.listener.accept() => match taken {
                    // Whoever serves has ended.
                    Ok((stream, _)) => if connections.send(Ok(stream)).await.is_err() { return },
                    Err(error) => {
                        tracing::warn!(socket = %self.path.display(), %error, "cannot take a connection");
                        sleep(PAUSE).await;
                    }
                },
                _ = look.tick() => match self.renew().await {
                    Ok(false) => trouble.clear(),
                    Ok(true) => {
                        tracing::warn!(socket = %self.path.display(), "someone took the socket away; it is made anew");
                        renewed();
                    }
                    Err(error) => {
                        // Once, not four times a second.
                        let words = error.to_string();
                        if trouble != words {
                            tracing::error!(%error, "the socket is gone and cannot be made anew; trying again");
                            trouble = words;
                        }
                    }
                },
            }
        }
    }

    /// Makes it anew if it is gone; says whether it was.
    async fn renew(&mut self) -> Result<bool, StartError> {
        let path = self.path.clone();
        // A look at a file in memory, but file work all the same.
        let there = tokio::task::spawn_blocking(move || identity(&path)).await.unwrap_or_default();
        if there.is_some() && there == self.identity {
            return Ok(false);
        }
        let new = Self::bind(&self.path).await?;
        *self = new;
        Ok(true)
    }
}

/// Makes the directory, and takes away what a dead driver left.
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
            tracing::info!(socket = %path.display(), "replacing the socket of a driver that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Linux gives the file the mode that the socket has, so there is no moment at which others could connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // If it stays, the next driver takes it away.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect_and_the_file_goes_with_the_driver() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/csi.sock");
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_dead_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let live = Socket::bind(&path).await.unwrap();
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, StartError::SocketInUse { .. }), "{error:?}");
        drop(live);
        // A standard listener leaves its file behind, as a killed driver does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let replaced = Socket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        // What is at the path now is another's.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(replaced);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, StartError::NotASocket { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_socket_whose_file_or_directory_is_wiped_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/csi.sock");
        let socket = Socket::bind(&path).await.unwrap();
        let (connections, mut taken) = mpsc::channel(1);
        let (renewed, stopping) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let counter = Arc::clone(&renewed);
        let count = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        let kept = tokio::spawn(socket.keep(connections, count, stopping.clone()));
        for wiped in 0..3 {
            let connected = loop {
                match UnixStream::connect(&path).await {
                    Ok(connected) => break connected,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            taken.recv().await.unwrap().unwrap();
            assert_eq!(renewed.load(Ordering::SeqCst), wiped);
            drop(connected);
            match wiped {
                0 => fs::remove_file(&path).unwrap(),
                _ => fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            }
        }
        stopping.cancel();
        kept.await.unwrap();
        assert!(!path.exists());
    }
}
