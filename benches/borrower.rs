//! Holds every tensor of a model by hand-off, as many clients at the same moment as are wanted, and reads a byte of every page: what
//! that cost is for whoever started it.

use std::{hint::black_box, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use weightd_client::handoff::{self, Request};

const PAGE_BYTES: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds tensors.
#[derive(Parser)]
struct Options {
    /// The agent's socket for hand-off.
    socket: PathBuf,
    /// The model.
    source: String,
    /// How many clients there are.
    clients: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..options.clients).map(|_| scope.spawn(|| hold(&options))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow!("a client has panicked"))?)
    })
}

fn hold(options: &Options) -> Result<()> {
    let request = Request { source: options.source.clone(), ..Request::default() };
    let session = handoff::open(&options.socket, &request, PATIENCE).context("opening the model")?;
    let tensors = session.table().tensors();
    let all = 0..tensors.len();
    session.wait(std::slice::from_ref(&all), false).context("waiting for all tensors")?;
    for tensor in tensors.iter().filter(|tensor| tensor.bytes > 0) {
        let memory = session.arena(tensor.arena).map_shared()?;
        #[expect(unsafe_code, reason = "memory of the agent's")]
        // SAFETY: a checked table has no tensor beyond its arena, and one that is ready is not written to.
        let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr().add(tensor.offset), tensor.bytes) };
        bytes.iter().step_by(PAGE_BYTES).for_each(|byte| {
            black_box(*byte);
        });
    }
    Ok(())
}
