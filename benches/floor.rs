//! The floor: how fast bytes can come from a bucket to the disk at all.
//!
//! Ranges are streamed with google-cloud-storage, written with O_DIRECT through io_uring into preallocated files, and
//! synced at the end. There is no checksum, no index, no resume, and none of weightd's own code: what this program
//! reaches is the limit that a prefetch is compared with.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use google_cloud_auth::credentials::anonymous;
use google_cloud_storage::{client::Storage, model_ext::ReadRange};
use io_uring::{IoUring, opcode, types::Fd};
use memmap2::MmapMut;
use serde::Deserialize;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
};

/// Bytes of one write.
const WRITE_BYTES: u64 = 8 << 20;
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
    /// Directory to write to; made when missing.
    #[arg(long)]
    out: PathBuf,
    /// Requests in flight.
    #[arg(long, default_value_t = 8)]
    requests: usize,
    /// Bytes of one request.
    #[arg(long, default_value_t = 64 << 20)]
    range: u64,
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
    std::fs::create_dir_all(&options.out)?;
    let client = Storage::builder()
        .with_endpoint(&options.endpoint)
        .with_credentials(anonymous::Builder::new().build())
        .build()
        .await?;
    let (ranges, files) = plan(&options).await?;
    let (writes, received) = mpsc::sync_channel::<Write>(16);
    let (spare, spares) = mpsc::channel();
    for _ in 0..32 {
        let buffer = MmapMut::map_anon(WRITE_BYTES as usize)?;
        // The disk reads memory in 2 MiB pages about twice as fast as in 4 KiB ones.
        buffer.advise(memmap2::Advice::HugePage)?;
        spare.send(buffer)?;
    }
    let buffers = Arc::new(Buffers { spares: Mutex::new(spares), count: Semaphore::new(32) });
    let returns = Arc::clone(&buffers);
    let ring = std::thread::spawn(move || drive(&received, &spare, &returns));
    let bucket: Arc<str> = format!("projects/_/buckets/{}", options.bucket).into();
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
    ring.join().map_err(|_| anyhow::anyhow!("the ring's thread panicked"))??;
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

/// Lists the objects, allocates their files, and cuts them into ranges.
async fn plan(options: &Options) -> Result<(Vec<Range>, Vec<(Arc<File>, u64)>)> {
    let url = format!("{}/storage/v1/b/{}/o?prefix={}/", options.endpoint, options.bucket, options.prefix);
    let mut builder = reqwest::Client::builder();
    if let Some(ca) = std::env::var_os("SSL_CERT_FILE") {
        builder = builder.add_root_certificate(reqwest::Certificate::from_pem(&std::fs::read(ca)?)?);
    }
    let body = builder.build()?.get(url).send().await?.error_for_status()?.bytes().await?;
    let listing: Listing = serde_json::from_slice(&body)?;
    let (mut ranges, mut files) = (Vec::new(), Vec::new());
    for item in listing.items {
        let size: u64 = item.size.parse()?;
        let path = options.out.join(item.name.rsplit('/').next().unwrap_or(&item.name));
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = Arc::new(File::options().write(true).create(true).truncate(true).custom_flags(flags).open(path)?);
        if size > 0 {
            let len = size.next_multiple_of(BLOCK);
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        }
        let object: Arc<str> = item.name.into();
        let mut start = 0;
        while start < size {
            let end = (start + options.range).min(size);
            ranges.push(Range { object: Arc::clone(&object), file: Arc::clone(&file), start, end });
            start = end;
        }
        files.push((file, size));
    }
    Ok((ranges, files))
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
                writes.send(Write { file: Arc::clone(&range.file), offset, len: filled as u64, buffer: full })?;
                offset += filled as u64;
                filled = 0;
            }
        }
    }
    ensure!(offset + filled as u64 == range.end, "{}: the body was short", range.object);
    if filled > 0 {
        writes.send(Write { file: range.file, offset, len: (filled as u64).next_multiple_of(BLOCK), buffer })?;
    } else {
        buffers.count.add_permits(0);
        writes.send(Write { file: range.file, offset, len: 0, buffer })?;
    }
    Ok(())
}

/// Keeps the ring full until the senders are gone.
#[allow(unsafe_code)]
fn drive(writes: &mpsc::Receiver<Write>, spare: &mpsc::Sender<MmapMut>, buffers: &Buffers) -> Result<()> {
    let give_back = |buffer: MmapMut| {
        if spare.send(buffer).is_ok() {
            buffers.count.add_permits(1);
        }
    };
    let mut ring = IoUring::new(32)?;
    let mut flying: Vec<Option<Write>> = (0..32).map(|_| None).collect();
    let mut in_flight = 0;
    let mut open = true;
    while open || in_flight > 0 {
        let next = if in_flight == 0 && open { writes.recv().ok() } else { writes.try_recv().ok() };
        if next.is_none() && in_flight == 0 {
            open = false;
            continue;
        }
        if let Some(write) = next {
            if write.len == 0 {
                give_back(write.buffer);
                continue;
            }
            let slot = flying.iter().position(Option::is_none).context("as many slots as buffers")?;
            let entry = opcode::Write::new(Fd(write.file.as_raw_fd()), write.buffer.as_ptr(), u32::try_from(write.len)?)
                .offset(write.offset)
                .build()
                .user_data(slot as u64);
            flying[slot] = Some(write);
            // SAFETY: the buffer and the file live in `flying` until the completion with this slot is seen below.
            unsafe { ring.submission().push(&entry) }.context("the ring is as long as there are slots")?;
            in_flight += 1;
            ring.submit()?;
            if in_flight < 16 {
                continue;
            }
        }
        ring.submit_and_wait(1)?;
        let done: Vec<_> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (slot, result) in done {
            let write = flying[usize::try_from(slot)?].take().context("each write completes once")?;
            ensure!(result == i32::try_from(write.len)?, "a write of {} ended with {result}", write.len);
            in_flight -= 1;
            give_back(write.buffer);
        }
    }
    Ok(())
}
