//! How long a reader waits for one byte of a tensor that is not here.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use weightd_benches::{Node, Table, median};

use crate::Bench;

/// What the agent fetches for one byte: a chunk, the least that it can verify.
const CHUNK_BYTES: u64 = 8 << 20;
/// When bulk prefetch has come to its full speed, and not to its end.
const UNDER_WAY: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Waits {
    /// Seconds of a request for one chunk, sent to the bucket by itself.
    requests: Vec<f64>,
    /// Seconds of a read of one byte.
    reads: Vec<f64>,
}

pub(crate) async fn measure(bench: &Bench) -> Result<String> {
    let (mut at_once, mut meanwhile) = (Waits::default(), Waits::default());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    // Short, and by luck near a range that is on its way or far from one: more rounds cost little.
    for round in 1..=3 * bench.rounds {
        eprintln!("first byte, round {round}");
        for (waits, delay) in [(&mut at_once, Duration::ZERO), (&mut meanwhile, UNDER_WAY)] {
            let node = Node::start(&bench.place("first-byte")?, &bench.bucket.gcs.endpoint(), "")?;
            let target = node.mount("target", &[])?;
            tokio::time::sleep(delay).await;
            waits.requests.push(request(bench, &mut random).await?);
            waits.reads.push(read(bench, &node, &target, &mut random).await?);
        }
    }
    let mut table =
        Table::new(&["when", "one range request ms", "first byte ms", "difference", "slowest first byte"]);
    for (name, waits) in [("just mounted", &at_once), ("bulk prefetch at full speed", &meanwhile)] {
        let millis = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let differences = waits.reads.iter().zip(&waits.requests).map(|(read, request)| read - request);
        table.push(vec![
            name.to_owned(),
            millis(median(waits.requests.iter().copied())),
            millis(median(waits.reads.iter().copied())),
            millis(median(differences)),
            millis(waits.reads.iter().copied().fold(0.0, f64::max)),
        ]);
    }
    Ok(format!(
        "## First byte of a random tensor\n\nOf a model of {:.2} GiB that is loading, beside a request of {} MiB (a chunk) \
         sent to the bucket at the same moment.\n\n{}\n",
        bench.gibibytes(),
        CHUNK_BYTES >> 20,
        table.markdown()
    ))
}

/// Seconds of a request for a chunk somewhere in the model, the connection included.
async fn request(bench: &Bench, random: &mut Random) -> Result<f64> {
    let shards = bench.shards(Path::new(""));
    let shard = random.one_of(&shards).context("a model without shards")?.display().to_string();
    let length = bench.bucket.model.directory.join(&shard).metadata()?.len();
    let start = random.below(length - CHUNK_BYTES);
    let url =
        format!("{}/download/storage/v1/b/bench/o/model%2F{shard}?alt=media", bench.bucket.gcs.endpoint());
    let begun = Instant::now();
    let range = format!("bytes={start}-{}", start + CHUNK_BYTES - 1);
    let mut answer =
        reqwest::Client::new().get(url).header("range", range).send().await?.error_for_status()?;
    let mut arrived = 0;
    while let Some(bytes) = answer.chunk().await? {
        arrived += bytes.len() as u64;
    }
    anyhow::ensure!(arrived == CHUNK_BYTES, "the bucket sent {arrived} bytes");
    Ok(begun.elapsed().as_secs_f64())
}

/// Seconds that a reader waits for one byte of a tensor that was not here.
async fn read(bench: &Bench, node: &Node, target: &Path, random: &mut Random) -> Result<f64> {
    let shards = bench.shards(target);
    loop {
        let path = random.one_of(&shards).context("a model without shards")?;
        let file = File::open(path)?;
        let at = random_tensor(&file, random)?;
        let before = node.demands()?;
        let begun = Instant::now();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        let waited = begun.elapsed().as_secs_f64();
        if node.demands()? > before {
            return Ok(waited);
        }
        // It had come already.
    }
}

/// Where a tensor of a safetensors file begins.
fn random_tensor(file: &File, random: &mut Random) -> Result<u64> {
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    let mut header = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut header, 8)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header)?;
    let offsets: Vec<u64> = header.values().filter_map(|tensor| tensor["data_offsets"][0].as_u64()).collect();
    let offset = random.one_of(&offsets).context("a file without tensors")?;
    Ok(8 + length + offset)
}

/// Marsaglia's xorshift: the same tensors in every run.
struct Random(u64);

impl Random {
    /// One of some.
    fn one_of<'a, T>(&mut self, some: &'a [T]) -> Option<&'a T> {
        let at = self.below(u64::try_from(some.len()).ok()?);
        some.get(usize::try_from(at).ok()?)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
