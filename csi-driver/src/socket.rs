//! A socket that stays: when someone takes its file away, or the whole directory, it is made anew. kubelet's directories are
//! wiped now and then by people who mend nodes, and a driver that nobody can reach any more would look well.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use weightd_daemon::Socket;

use crate::StartError;

/// How often it is looked whether the file is there.
const LOOK: Duration = Duration::from_millis(250);
/// After a connection that could not be taken, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened on, and its place. Its file goes with it.
#[derive(Debug)]
pub(crate) struct KeptSocket {
    path: PathBuf,
    socket: Socket,
}

impl KeptSocket {
    /// Listens on `path`.
    pub(crate) async fn bind(path: &Path) -> Result<Self, StartError> {
        let bound = Socket::bind(path).await;
        let socket = bound.map_err(|error| StartError::of_socket(path, error))?;
        Ok(Self { path: path.to_owned(), socket })
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
                taken = self.socket.listener.accept() => match taken {
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
        // A look at a file in memory.
        if self.socket.file.is_there() {
            return Ok(false);
        }
        *self = Self::bind(&self.path).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    #[tokio::test]
    async fn a_socket_whose_file_or_directory_is_wiped_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/csi.sock");
        let socket = KeptSocket::bind(&path).await.unwrap();
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
