//! A store on a mounted file system that nobody changes afterwards: how a shared volume is hydrated.

use std::{path::Path, sync::Arc, time::Duration, time::Instant};

use futures::future::try_join_all;
use tokio::{sync::watch, time::sleep};
use weightd_fetch::{Fetcher, Transfer};
use weightd_source::Opener;
use weightd_store::{Store, StoreError};

use crate::{BuiltSnapshot, ImageError, Model, Progress};

/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);

/// What an export ended with.
#[derive(Debug, Clone)]
pub struct Exported {
    /// What was asked for, all of it there and verified.
    pub snapshots: Vec<BuiltSnapshot>,
    /// Bytes that came from the sources.
    pub fetched_bytes: u64,
    /// Bytes that were there already.
    pub reused_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Brings models into a directory, as a store without an index. Readers see a snapshot when all of it is there, and nothing
/// before. An export that ended early goes on where it was, when it is asked for again; what else is in the store stays.
///
/// # Errors
/// [`ImageError`]; what has arrived stays, for the next run.
pub async fn export(
    models: &[Model],
    directory: &Path,
    opener: Arc<dyn Opener>,
    config: weightd_fetch::Config,
    progress: &watch::Sender<Progress>,
) -> Result<Exported, ImageError> {
    let started = Instant::now();
    let store = open(directory).await?;
    let fetcher = Fetcher::start(store.clone(), opener, config);
    let outcome = bring(models, &fetcher, progress).await;
    fetcher.close().await;
    let mut exported = match outcome {
        Ok(exported) => exported,
        Err(error) => {
            store.close().await?;
            return Err(error);
        }
    };
    // What is left needs no index: its manifests say it all.
    store.close_for_good().await?;
    exported.elapsed = started.elapsed();
    Ok(exported)
}

async fn open(directory: &Path) -> Result<Store, ImageError> {
    // The volume is there for this alone, so all of it may be used.
    let config = weightd_store::Config { floor: 0.0, ..weightd_store::Config::new(directory) };
    let opened = tokio::task::spawn_blocking(move || Store::open(config)).await;
    Ok(opened.unwrap_or(Err(StoreError::Closed))?)
}

async fn bring(
    models: &[Model],
    fetcher: &Fetcher,
    progress: &watch::Sender<Progress>,
) -> Result<Exported, ImageError> {
    let mut transfers = Vec::new();
    for model in models {
        let resolution = fetcher.resolve(&model.source, &model.selection).await?;
        transfers.push(fetcher.prefetch(resolution, model.layout, 0));
    }
    let total_bytes = transfers.iter().map(|transfer| transfer.manifest().size()).sum();
    let tell = async {
        loop {
            let done_bytes = transfers.iter().map(|transfer| transfer.done_bytes()).sum();
            progress.send_replace(Progress { done_bytes, total_bytes });
            sleep(TICK).await;
        }
    };
    let waits = try_join_all(transfers.iter().map(|transfer: &Arc<Transfer>| transfer.wait()));
    let completed = tokio::select! {
        completed = waits => completed?,
        () = tell => unreachable!("it goes on for ever"),
    };
    Ok(Exported {
        snapshots: transfers.iter().map(|transfer| BuiltSnapshot::of(transfer.manifest())).collect(),
        fetched_bytes: completed.iter().map(|one| one.fetched_bytes).sum(),
        reused_bytes: completed.iter().map(|one| one.reused_bytes).sum(),
        elapsed: Duration::ZERO,
    })
}
