//! Tensors in shared memory, as clients get them from a real agent and a real keeper.

mod clients;
mod content;
mod memory;
mod streams;
mod takeover;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};
use safetensors::SafeTensors;
use tokio::{task::spawn_blocking, time::timeout};
use weightd_client::handoff::{self, Error, Request, Session};
use weightd_harness::{FakeGcs, ModelShape};

use crate::{
    program::{Running, until},
    volumes::{Node, SOURCE},
};

/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(60);

/// So few connections that their requests are long.
const FEW: &str = "[fetch]\nmin_requests = 4\nmax_requests = 4";

/// A node with a keeper that has memory for tensors.
async fn node(gcs: &FakeGcs, endpoint: &str, shape: &ModelShape, more: &str) -> (Node, Running) {
    let node = Node::new(gcs, endpoint, shape, "").await;
    let keeper = format!("[volumes]\nkeeper = {:?}\n{more}", node.place.at("keeper.sock"));
    node.place.configure(&node.place.at("store"), &keeper);
    let keeper = node.place.keeper(&["--resident-limit", "1Gi"]).await;
    (node, keeper)
}

/// The node's own socket.
fn node_socket(node: &Node) -> PathBuf {
    node.place.socket().with_file_name("handoff.sock")
}

/// An agent that already listens on the node's own socket.
async fn listening(node: &Node) -> Running {
    let agent = node.place.agent().await;
    until("the socket is there", async || node_socket(node).exists().then_some(())).await;
    agent
}

/// The socket of the node's volume.
pub(crate) fn volume_socket(node: &Node) -> PathBuf {
    node.target().join(handoff::VOLUME_SOCKET)
}

pub(crate) async fn open(socket: &Path, request: Request) -> Result<Arc<Session>, Error> {
    let socket = socket.to_owned();
    let opened = spawn_blocking(move || handoff::open(&socket, &request, LONG));
    timeout(2 * LONG, opened).await.expect("it does not hang").unwrap().map(Arc::new)
}

/// The model from the bucket, at the node's socket.
async fn open_source(node: &Node) -> Arc<Session> {
    open(&node_socket(node), of_source()).await.unwrap()
}

fn of_source() -> Request {
    Request { source: SOURCE.to_owned(), ..Request::default() }
}

pub(crate) fn all(session: &Session) -> Range<usize> {
    0..session.table().tensors().len()
}

pub(crate) async fn wait(session: &Arc<Session>, tensors: Range<usize>, verified: bool) -> Result<(), Error> {
    let session = Arc::clone(session);
    let waited = spawn_blocking(move || session.wait(&[tensors], verified));
    timeout(2 * LONG, waited).await.expect("it does not hang").unwrap()
}

/// The bytes of a tensor, by its position.
fn bytes(session: &Session, position: usize) -> Vec<u8> {
    let tensor = &session.table().tensors()[position];
    if tensor.bytes == 0 {
        return Vec::new();
    }
    let memory = session.arena(tensor.arena).map_shared().unwrap();
    #[expect(unsafe_code, reason = "memory of the agent's")]
    // SAFETY: a checked table has no tensor beyond its arena, and one that is ready is not written to.
    let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().add(tensor.offset), tensor.bytes) };
    bytes.to_vec()
}

/// Whether these tensors are what the model's files have.
pub(crate) fn assert_right(session: &Session, tensors: Range<usize>, model: &Path) {
    for (number, file) in session.table().files().iter().enumerate() {
        let content = fs::read(model.join(&file.path)).unwrap();
        let expected = SafeTensors::deserialize(&content).unwrap();
        for position in tensors.clone() {
            let tensor = &session.table().tensors()[position];
            if tensor.file == number {
                let view = expected.tensor(&tensor.name).unwrap();
                assert_eq!((view.shape(), view.dtype()), (tensor.shape.as_slice(), tensor.dtype));
                assert!(view.data() == bytes(session, position), "{} is right", tensor.name);
            }
        }
    }
}

/// A connection that says what it likes.
fn raw(socket: &Path) -> std::os::fd::OwnedFd {
    let raw = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&raw, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    raw
}

fn say(raw: &std::os::fd::OwnedFd, packet: &[u8]) -> rustix::io::Result<usize> {
    send(raw, packet, rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT)
}
