//! The floor: how fast bytes can come from a bucket to the disk at all.
//!
//! Ranges are streamed with google-cloud-storage, written with O_DIRECT through io_uring into preallocated files, and
//! synced at the end. There is no checksum, no index, no resume, and none of weightd's own code: what this program
//! reaches is the limit that a prefetch is compared with. With `--keep` nothing is written, and all of it is in memory at the end;
//! with `--first-tensor` only that is, as soon as may be; with `--discard` nothing is even kept.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser};
use google_cloud_auth::credentials::anonymous;
use google_cloud_storage::{client::Storage, model_ext::ReadRange};
use io_uring::{IoUring, opcode, types::Fd};
use memmap2::MmapMut;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use weightd_benches::fresh_memory;

/// Bytes of one write.
const WRITE_BYTES: usize = 8 << 20;
/// Writes in flight, each with a ring of its own, so that none waits for another.
const WRITERS: usize = 8;
/// More than headers of most files have.
const HEADER_BYTES: u64 = 128 << 10;
/// O_DIRECT wants whole blocks; the files are cut to length at the end.
const BLOCK: u64 = 4096;

/// Streams every object below a prefix of an emulated bucket into files, and nothing else.
#[derive(Parser)]
struct Options {
    /// Address of the emulator.
    #[arg(long, env = "STORAGE_EMULATOR_HOST")]
    endpoint: String,
    #[arg(long)]
    bucket: String,
    #[arg(long)]
    prefix: String,
    #[command(flatten)]
    then: Then,
    /// Requests in flight.
    #[arg(long, default_value_t = 8)]
    requests: usize,
    /// Bytes of one request.
    #[arg(long, default_value_t = 64 << 20)]
    range: u64,
}

/// What becomes of what arrives: one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Then {
    /// Directory to write to; made when missing.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes nothing: what arrives is thrown away.
    #[arg(long)]
    discard: bool,
    /// Writes nothing: what arrives is kept in memory that this process never had before.
    #[arg(long)]
    keep: bool,
    /// The same, of nothing but the first tensor of the first file, shared out among all requests.
    #[arg(long)]
    first_tensor: bool,
}

#[derive(Deserialize)]
struct Listing {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    size: String,
}

/// One range of one object.
struct Range {
    object: Arc<str>,
    file: Arc<File>,
    start: u64,
    end: u64,
}

/// A buffer on its way to the disk.
struct Write {
    file: Arc<File>,
    offset: u64,
    len: u64,
    buffer: MmapMut,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let client = Storage::builder()
        .with_endpoint(&options.endpoint)
        .with_credentials(anonymous::Builder::new().build())
        .build()
        .await?;
    let items = list(&options).await?;
    let bucket: Arc<str> = format!("projects/_/buckets/{}", options.bucket).into();
    let Some(out) = &options.then.out else {
        let pieces = if options.then.first_tensor {
            first_tensor(&client, &bucket, &items, options.requests).await?
        } else {
            pieces(&items, options.range)?
        };
        return into_memory(&client, &bucket, pieces, &options).await;
    };
    std::fs::create_dir_all(out)?;
    let (ranges, files) = plan(items, out, options.range)?;
    let (writes, received) = mpsc::sync_channel::<Write>(16);
    let (spare, spares) = mpsc::channel();
    for _ in 0..32 {
        spare.send(fresh_memory(WRITE_BYTES)?)?;
    }
    let buffers = Arc::new(Buffers { spares: Mutex::new(spares), count: Semaphore::new(32) });
    let received = Arc::new(std::sync::Mutex::new(received));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (received, spare, returns) = (Arc::clone(&received), spare.clone(), Arc::clone(&buffers));
            std::thread::spawn(move || {
                // Nobody waits for buffers that do not come back.
                drive(&received, &spare, &returns).inspect_err(|_| returns.count.close())
            })
        })
        .collect();
    drop(received);
    let queue = Arc::new(Mutex::new(ranges.into_iter()));
    let mut workers = JoinSet::new();
    for _ in 0..options.requests {
        let (client, bucket, queue) = (client.clone(), Arc::clone(&bucket), Arc::clone(&queue));
        let (buffers, writes) = (Arc::clone(&buffers), writes.clone());
        workers.spawn(async move {
            loop {
                let Some(range) = queue.lock().await.next() else { return Ok(()) };
                stream(&client, &bucket, range, &buffers, &writes).await?;
            }
        });
    }
    drop(writes);
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked").and_then(|outcome: Result<()>| outcome)?;
    }
    for writer in writers {
        writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    for (file, size) in files {
        file.set_len(size)?;
        file.sync_all()?;
    }
    Ok(())
}

struct Buffers {
    spares: Mutex<mpsc::Receiver<MmapMut>>,
    count: Semaphore,
}

impl Buffers {
    async fn take(&self) -> Result<MmapMut> {
        self.count.acquire().await?.forget();
        Ok(self.spares.lock().await.recv()?)
    }
}

/// Lists the objects.
async fn list(options: &Options) -> Result<Vec<Item>> {
    let url = format!("{}/storage/v1/b/{}/o?prefix={}/", options.endpoint, options.bucket, options.prefix);
    let mut builder = reqwest::Client::builder();
    if let Some(ca) = std::env::var_os("SSL_CERT_FILE") {
        builder = builder.add_root_certificate(reqwest::Certificate::from_pem(&std::fs::read(ca)?)?);
    }
    let body = builder.build()?.get(url).send().await?.error_for_status()?.bytes().await?;
    Ok(serde_json::from_slice::<Listing>(&body)?.items)
}

/// Start and end of the ranges that an object is cut into.
fn cut(size: u64, range: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = size.div_ceil(range);
    (0..count).map(move |number| (number * range, ((number + 1) * range).min(size)))
}

/// Open files, and their lengths.
type Files = Vec<(Arc<File>, u64)>;

/// Allocates the objects' files, and cuts them into ranges.
fn plan(items: Vec<Item>, out: &Path, range: u64) -> Result<(Vec<Range>, Files)> {
    let (mut ranges, mut files) = (Vec::new(), Vec::new());
    for item in items {
        let size: u64 = item.size.parse()?;
        let path = out.join(item.name.rsplit('/').next().unwrap_or(&item.name));
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file =
            Arc::new(File::options().write(true).create(true).truncate(true).custom_flags(flags).open(path)?);
        if size > 0 {
            let len = size.next_multiple_of(BLOCK);
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        }
        let object: Arc<str> = item.name.into();
        ranges.extend(cut(size, range).map(|(start, end)| Range {
            object: Arc::clone(&object),
            file: Arc::clone(&file),
            start,
            end,
        }));
        files.push((file, size));
    }
    Ok((ranges, files))
}

/// A part of an object that one request is for: its name, start and end.
type Piece = (Arc<str>, (u64, u64));

/// All objects, cut into ranges.
fn pieces(items: &[Item], range: u64) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for item in items {
        let object: Arc<str> = item.name.as_str().into();
        pieces.extend(cut(item.size.parse()?, range).map(|range| (Arc::clone(&object), range)));
    }
    Ok(pieces)
}

/// The first tensor of the first file, cut into as many parts as there are requests. It is found by a request of its own.
async fn first_tensor(
    client: &Storage,
    bucket: &Arc<str>,
    items: &[Item],
    requests: usize,
) -> Result<Vec<Piece>> {
    let files = items.iter().filter(|item| item.name.ends_with(".safetensors"));
    let file = files.min_by_key(|item| &item.name).context("there are no files of tensors")?;
    let wanted = ReadRange::head(HEADER_BYTES);
    let mut response = client.read_object(&**bucket, &file.name).set_read_range(wanted).send().await?;
    let mut head = Vec::new();
    while let Some(bytes) = response.next().await {
        head.extend_from_slice(&bytes?);
    }
    let (length, rest) = head.split_first_chunk().context("the file has no header")?;
    let header = u64::from_le_bytes(*length);
    let text =
        rest.get(..usize::try_from(header)?).context("the header is longer than what was asked for")?;
    let metadata: Metadata = serde_json::from_slice(text)?;
    let ends = metadata.tensors().into_values().map(|info| info.data_offsets.1 as u64);
    let end = ends.min().context("the file has no tensors")?;
    let start = 8 + header;
    let object: Arc<str> = file.name.as_str().into();
    let parts = cut(end, end.div_ceil(requests as u64));
    Ok(parts.map(|(from, to)| (Arc::clone(&object), (start + from, start + to))).collect())
}

/// Streams parts of objects, and keeps what arrives until all of it is there, or nothing.
async fn into_memory(
    client: &Storage,
    bucket: &Arc<str>,
    pieces: Vec<Piece>,
    options: &Options,
) -> Result<()> {
    let queue = Arc::new(Mutex::new(pieces.into_iter()));
    let mut workers = JoinSet::new();
    for _ in 0..options.requests {
        let (client, bucket, queue) = (client.clone(), Arc::clone(bucket), Arc::clone(&queue));
        let keep = !options.then.discard;
        workers.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let Some((object, (start, end))) = queue.lock().await.next() else { return Ok(kept) };
                let wanted = ReadRange::segment(start, end - start);
                let request = client.read_object(&*bucket, &*object).set_read_range(wanted);
                let (mut response, mut arrived) = (request.send().await?, 0);
                let mut memory = if keep { Some(fresh_memory(usize::try_from(end - start)?)?) } else { None };
                while let Some(bytes) = response.next().await {
                    let bytes = bytes?;
                    if let Some(memory) = &mut memory {
                        memory[arrived..arrived + bytes.len()].copy_from_slice(&bytes);
                    }
                    arrived += bytes.len();
                }
                ensure!(arrived as u64 == end - start, "{object}: the body was short");
                kept.extend(memory);
            }
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = workers.join_next().await {
        all.push(ended.context("a worker panicked").and_then(|outcome: Result<Vec<MmapMut>>| outcome)?);
    }
    Ok(())
}

async fn stream(
    client: &Storage,
    bucket: &str,
    range: Range,
    buffers: &Buffers,
    writes: &mpsc::SyncSender<Write>,
) -> Result<()> {
    let wanted = ReadRange::segment(range.start, range.end - range.start);
    let mut response = client.read_object(bucket, &*range.object).set_read_range(wanted).send().await?;
    let (mut offset, mut filled) = (range.start, 0_usize);
    let mut buffer = buffers.take().await?;
    while let Some(bytes) = response.next().await {
        let mut bytes = bytes?;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(buffer.len() - filled));
            buffer[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
            if filled == buffer.len() {
                let full = std::mem::replace(&mut buffer, buffers.take().await?);
                writes.send(Write {
                    file: Arc::clone(&range.file),
                    offset,
                    len: filled as u64,
                    buffer: full,
                })?;
                offset += filled as u64;
                filled = 0;
            }
        }
    }
    ensure!(offset + filled as u64 == range.end, "{}: the body was short", range.object);
    if filled > 0 {
        writes.send(Write {
            file: range.file,
            offset,
            len: (filled as u64).next_multiple_of(BLOCK),
            buffer,
        })?;
    } else {
        writes.send(Write { file: range.file, offset, len: 0, buffer })?;
    }
    Ok(())
}

/// Writes one buffer after another, each as soon as there is one, until the senders are gone.
#[allow(unsafe_code)]
fn drive(
    writes: &std::sync::Mutex<mpsc::Receiver<Write>>,
    spare: &mpsc::Sender<MmapMut>,
    buffers: &Buffers,
) -> Result<()> {
    let mut ring = IoUring::new(1)?;
    loop {
        let next = writes.lock().map_err(|_| anyhow::anyhow!("another writer panicked"))?.recv();
        let Ok(write) = next else { return Ok(()) };
        if write.len > 0 {
            let (file, memory) = (Fd(write.file.as_raw_fd()), write.buffer.as_ptr());
            let entry =
                opcode::Write::new(file, memory, u32::try_from(write.len)?).offset(write.offset).build();
            // SAFETY: file and buffer live in `write`, which is dropped only after the completion was seen below.
            unsafe { ring.submission().push(&entry) }.context("the ring is empty")?;
            ring.submit_and_wait(1)?;
            let result = ring.completion().next().context("one write was waited for")?.result();
            ensure!(result == i32::try_from(write.len)?, "a write of {} ended with {result}", write.len);
        }
        if spare.send(write.buffer).is_ok() {
            buffers.count.add_permits(1);
        }
    }
}
