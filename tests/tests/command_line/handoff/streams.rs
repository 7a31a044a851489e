//! Tensors through a ring, and parts of tensors: as clients get them from a real agent and a real keeper.

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use rand::{rng, seq::SliceRandom};
use safetensors::{Dtype, SafeTensors};
use tokio::task::spawn_blocking;
use weightd_client::handoff::{self, Error, FailureKind, Request, Ring, Slice, Stream, Taken};
use weightd_harness::{FakeGcs, Fault, FaultProxy, ModelShape, require};

use super::{FEW, LONG, all, bytes, listening, node, node_socket, of_source, open, volume_socket, wait};
use crate::{
    program::until,
    volumes::{Node, SLOW, fuse, metric},
};

/// Room for the longest tensor of the model, and for far less than all of it.
const RING: Ring = Ring { bytes: 24 << 20, verified: false };

async fn stream(socket: &Path, request: Request, ring: Ring) -> Result<Arc<Stream>, Error> {
    let socket = socket.to_owned();
    let opened = spawn_blocking(move || handoff::stream(&socket, &request, ring, LONG));
    opened.await.unwrap().map(Arc::new)
}

async fn take(stream: &Arc<Stream>, position: usize) -> Result<Taken, Error> {
    let stream = Arc::clone(stream);
    let taken = spawn_blocking(move || stream.take(position, LONG));
    taken.await.unwrap().map(|taken| taken.expect("it does not take that long"))
}

/// The bytes of a tensor that was taken.
fn content(taken: &Taken) -> &[u8] {
    #[expect(unsafe_code, reason = "memory of the agent's")]
    // SAFETY: nobody writes to what was delivered as long as it is taken.
    unsafe {
        std::slice::from_raw_parts(taken.as_mut_ptr(), taken.bytes())
    }
}

/// All tensors of the model as its files have them: type, shape and bytes by name.
fn originals(model: &Path) -> HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = HashMap::new();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let file = fs::read(path).unwrap();
            for (name, view) in SafeTensors::deserialize(&file).unwrap().tensors() {
                all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
    }
    all
}

/// What the second of two halves along a dimension has, copied row by row.
fn second_half(shape: &[usize], element: usize, dimension: usize, bytes: &[u8]) -> Vec<u8> {
    let row = shape[dimension..].iter().product::<usize>() * element;
    bytes.chunks(row).flat_map(|row| &row[row.len() / 2..]).copied().collect()
}

async fn nothing_left(node: &Node) {
    until("no memory is taken any more", async || {
        (metric(&node.place, "weightd_expose_resident_bytes") == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_through_a_ring_that_is_shorter_in_any_order_and_layout() {
    require!(fuse());
    let shape = ModelShape { fp8: true, ..ModelShape::demo() };
    for layout in ["original", "aligned"] {
        let gcs = require!(FakeGcs::start().await);
        let (node, _keeper) = node(&gcs, &gcs.endpoint(), &shape, "").await;
        let _agent = node.place.agent().await;
        node.place
            .ask(&format!("mount gs://models/demo {} --layout {layout}", node.target().display()))
            .done();
        let originals = originals(&node.model.directory);
        let stream = stream(&volume_socket(&node), Request::default(), RING).await.unwrap();
        let count = stream.table().tensors().len();
        assert!(stream.bytes() as u64 <= RING.bytes && node.model.file_bytes().unwrap() > 2 * RING.bytes);
        let mut order: Vec<usize> = (0..count).collect();
        for _ in 0..2 {
            for &position in &order {
                let taken = take(&stream, position).await.unwrap();
                let tensor = &stream.table().tensors()[position];
                let (dtype, shape, bytes) = &originals[&tensor.name];
                assert_eq!((*dtype, shape), (tensor.dtype, &tensor.shape));
                assert!(content(&taken) == bytes, "{} is right, {layout}", tensor.name);
                // What a client writes is its own, and nobody sees it in what comes to this place next.
                #[expect(unsafe_code, reason = "memory of the agent's")]
                // SAFETY: it is this client's as long as it is taken.
                unsafe {
                    std::ptr::write_bytes(taken.as_mut_ptr(), 0xff, taken.bytes());
                }
            }
            order.shuffle(&mut rng());
        }
        drop(stream);
        nothing_left(&node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn halves_of_tensors_are_gathered_in_a_ring_and_views_in_shared_memory() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let half = |tensors: &str, dimension| Slice { tensors: tensors.to_owned(), dimension, part: 1, parts: 2 };
    let whole = |tensors: &str| Slice { tensors: tensors.to_owned(), ..Slice::default() };
    let slices = vec![whole("*norm*"), half("*down_proj*", 1), half("*o_proj*", 1), half("*", 0)];
    let request = Request { slices, ..of_source() };
    let originals = originals(&node.model.directory);
    let expected = |name: &str| {
        let (dtype, shape, bytes) = &originals[name];
        let is_columns = name.contains("down_proj") || name.contains("o_proj");
        match name.contains("norm") {
            true => bytes.clone(),
            false => second_half(shape, dtype.bitsize() / 8, usize::from(is_columns), bytes),
        }
    };
    let socket = node_socket(&node);
    let stream = stream(&socket, request.clone(), RING).await.unwrap();
    for (position, tensor) in stream.table().tensors().iter().enumerate() {
        let taken = take(&stream, position).await.unwrap();
        assert!(tensor.strides.is_none() && content(&taken) == expected(&tensor.name), "{}", tensor.name);
    }
    drop(stream);
    let session = open(&socket, request).await.unwrap();
    wait(&session, all(&session), true).await.unwrap();
    let mut strided = 0;
    for (position, tensor) in session.table().tensors().iter().enumerate() {
        let found = match &tensor.strides {
            None => bytes(&session, position),
            Some(strides) => {
                strided += 1;
                rows(&session, position, strides[0])
            }
        };
        assert!(found == expected(&tensor.name), "{}", tensor.name);
    }
    assert!(strided > 0);
}

/// The rows of a tensor that lie so many elements apart, one behind the other.
fn rows(session: &handoff::Session, position: usize, stride: usize) -> Vec<u8> {
    let tensor = &session.table().tensors()[position];
    let element = tensor.dtype.bitsize() / 8;
    let memory = session.arena(tensor.arena).map_shared().unwrap();
    let row = |row: usize| {
        let start = memory.as_ptr().wrapping_add(tensor.offset + row * stride * element);
        #[expect(unsafe_code, reason = "memory of the agent's")]
        // SAFETY: a checked table has no tensor beyond its arena, and one that is ready is not written to.
        unsafe { std::slice::from_raw_parts(start, tensor.shape[1] * element) }.to_vec()
    };
    (0..tensor.shape[0]).flat_map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_slices_no_more_is_brought_than_lies_near_them() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let before = metric(&node.place, "weightd_expose_served_chunks_total");
    let slices = vec![Slice { tensors: "*".to_owned(), dimension: 0, part: 0, parts: 8 }];
    let request = Request { slices, wanted_only: true, ..of_source() };
    let session = open(&node_socket(&node), request).await.unwrap();
    let largest = (0..all(&session).end).max_by_key(|&at| session.table().tensors()[at].bytes).unwrap();
    wait(&session, largest..largest + 1, true).await.unwrap();
    let read = metric(&node.place, "weightd_expose_served_chunks_total") - before;
    let eighth = session.table().tensors()[largest].bytes as u64;
    // The index that says which files there are is one of them.
    assert!(read <= 3 + eighth.div_ceil(8 << 20), "{read} chunks for {eighth} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_by_name() {
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    let socket = node_socket(&node);
    let slice = |tensors: &str, dimension, part, parts| {
        let slice = Slice { tensors: tensors.to_owned(), dimension, part, parts };
        Request { slices: vec![slice], ..of_source() }
    };
    for (request, words) in [
        (slice("no.such.tensor", 0, 0, 2), "no tensor \"no.such.tensor\""),
        (slice("*", 7, 0, 2), "has no dimension 7"),
        (slice("*", 0, 2, 2), "part 2 of 2"),
        (slice("*", 0, 0, 1_000_003), "do not divide"),
        (slice("[", 0, 0, 2), "the pattern \"[\""),
    ] {
        let refused = stream(&socket, request.clone(), RING).await.unwrap_err();
        let also = open(&socket, request).await.unwrap_err();
        assert_eq!((refused.kind(), also.kind()), (FailureKind::Usage, FailureKind::Usage));
        assert!(refused.to_string().contains(words) && also.to_string().contains(words), "{refused}");
    }
    let tiny = Ring { bytes: 2 << 20, verified: false };
    let refused = stream(&socket, of_source(), tiny).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Memory);
    for word in ["gs://models/demo", "the tensor \"", "2.00 MiB", "a ring of at least"] {
        assert!(refused.to_string().contains(word), "{word}: {refused}");
    }
    nothing_left(&node).await;
}

/// What comes out of its turn has no room in a short ring, and is read back from the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_a_ring_is_asked_for_in_short_ranges() {
    // Up to a chunk and then to the end of a tensor, which is no longer than one.
    const SHORT: u64 = 16 << 20;
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let shape = ModelShape { layers: 24, shards: 2, ..ModelShape::demo() };
    let (node, _keeper) = node(&gcs, &proxy.url(), &shape, FEW).await;
    let _agent = listening(&node).await;
    let stream = stream(&node_socket(&node), of_source(), RING).await.unwrap();
    proxy.requests().clear();
    for position in 0..stream.table().tensors().len() {
        take(&stream, position).await.unwrap();
    }
    let length = |range: &str| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(last.parse::<u64>().ok()? + 1 - first.parse::<u64>().ok()?)
    };
    let requests = proxy.requests().all();
    let lengths: Vec<_> = requests.iter().filter_map(|request| length(request.header("range")?)).collect();
    assert!(lengths.len() > 8 && lengths.iter().all(|length| *length <= SHORT), "{lengths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_end_a_stream_that_did_not_wait_and_never_reach_one_that_did() {
    let gcs = require!(FakeGcs::start().await);
    let proxy = FaultProxy::start(&gcs.endpoint()).await.unwrap();
    let (node, _keeper) = node(&gcs, &proxy.url(), &ModelShape::demo(), "[fetch]\nrefetches = 0").await;
    let _agent = listening(&node).await;
    let name = node.last_shard();
    proxy.inject(&name, u32::MAX, Fault::Flip(1 << 20));
    for verified in [true, false] {
        let stream = stream(&node_socket(&node), of_source(), Ring { verified, ..RING }).await.unwrap();
        let originals = originals(&node.model.directory);
        let mut failed = None;
        for (position, tensor) in stream.table().tensors().iter().enumerate() {
            match take(&stream, position).await {
                Ok(taken) => {
                    let is_right = content(&taken) == originals[&tensor.name].2;
                    assert!(is_right || !verified, "{} is not what the origin has", tensor.name);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let failed = match failed {
            Some(failed) => failed,
            // All came before anyone knew, and the next question hears of it.
            None => {
                until("the lease has ended", async || stream.want(std::slice::from_ref(&(0..1))).err()).await
            }
        };
        assert_eq!(failed.kind(), FailureKind::Corrupt, "{failed}");
        assert!(failed.to_string().contains(&name), "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_outlives_its_agent_and_the_next_one_goes_on() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let mut agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    node.mount("");
    let originals = originals(&node.model.directory);
    let stream = stream(&volume_socket(&node), Request::default(), RING).await.unwrap();
    let held = take(&stream, 0).await.unwrap();
    agent.kill();
    let gone = until("the stream has ended", async || stream.want(std::slice::from_ref(&(1..2))).err()).await;
    assert!(matches!(gone, Error::AgentGone { .. }), "{gone}");
    let _agent = node.place.agent().await;
    let mut again = stream.reopen();
    let next = spawn_blocking(move || again.wait(LONG)).await.unwrap().unwrap().expect("it answers");
    let next = Arc::new(next);
    for (position, tensor) in next.table().tensors().iter().enumerate() {
        assert!(content(&take(&next, position).await.unwrap()) == originals[&tensor.name].2);
    }
    assert!(content(&held) == originals[&next.table().tensors()[0].name].2);
    drop((held, stream, next));
    nothing_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_wanted_resident_is_in_memory_before_anyone_asks() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let linger = "[handoff]\nlinger = \"3s\"";
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), linger).await;
    let more = format!("{SLOW}\nkeeper = {:?}\n{linger}", node.place.at("keeper.sock"));
    node.place.configure(&node.place.at("store"), &more);
    let _agent = node.place.agent().await;
    node.mount("--resident");
    assert_eq!(node.volume().1, "loading", "otherwise this shows nothing");
    node.until_complete().await;
    let log = node.place.at("log");
    until("all of it is in memory", async || {
        fs::read_to_string(&log).unwrap().contains("a model is in memory").then_some(())
    })
    .await;
    let session = open(&volume_socket(&node), Request::default()).await.unwrap();
    assert!(session.is_complete());
    super::assert_right(&session, all(&session), &node.model.directory);
    drop(session);
    nothing_left(&node).await;
}

/// Who goes leaves reads under way, straight into memory that nobody has any more.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_at_once_leave_disk_and_memory_as_they_were() {
    require!(fuse());
    let gcs = require!(FakeGcs::start().await);
    let (node, _keeper) = node(&gcs, &gcs.endpoint(), &ModelShape::demo(), "").await;
    let _agent = node.place.agent().await;
    node.place.ask("prefetch gs://models/demo").done();
    node.mount("");
    for wait in 0..40 {
        drop(stream(&volume_socket(&node), Request::default(), RING).await.unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(wait % 5)).await;
    }
    nothing_left(&node).await;
    node.place.ask("verify gs://models/demo").done();
    let stream = stream(&volume_socket(&node), Request::default(), RING).await.unwrap();
    let originals = originals(&node.model.directory);
    for (position, tensor) in stream.table().tensors().iter().enumerate() {
        assert!(content(&take(&stream, position).await.unwrap()) == originals[&tensor.name].2);
    }
}
