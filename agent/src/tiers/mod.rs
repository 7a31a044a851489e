//! Read-only tiers: found where the operator says they may be, at the start and whenever they come or go.

mod config;
mod origins;

use std::{path::PathBuf, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use weightd_expose::Volumes;
use weightd_store::{Store, StoreError, TierChange};

pub use config::TierConfig;
pub(crate) use origins::TieredOrigins;

/// How often directories are looked at. Where nothing has changed, that is a look at two files of each.
const LOOK: Duration = Duration::from_secs(2);

/// Looks once, and takes in what is there.
///
/// # Errors
/// [`StoreError`] of the store's own directory.
pub(crate) async fn look(
    store: &Store,
    config: &TierConfig,
    refused: &mut Vec<PathBuf>,
) -> Result<Vec<TierChange>, StoreError> {
    let (store, config, mut known) = (store.clone(), config.clone(), std::mem::take(refused));
    let looked = tokio::task::spawn_blocking(move || {
        let mut directories = config.directories();
        directories.retain(|directory| *directory != store.config().directory);
        known.retain(|known| directories.contains(known));
        let mut changes = store.set_tiers(&directories)?;
        // What was refused once is said once.
        changes.retain(
            |change| !matches!(change, TierChange::Refused(directory, _) if known.contains(directory)),
        );
        changes.iter().for_each(|change| tell(&store, change));
        Ok((changes, known))
    });
    let (changes, known) = looked.await.unwrap_or(Err(StoreError::Closed))?;
    *refused = known;
    refused.extend(changes.iter().filter_map(|change| match change {
        TierChange::Refused(directory, _) => Some(directory.clone()),
        TierChange::Here(_) | TierChange::Gone(..) => None,
    }));
    Ok(changes)
}

/// Looks again and again, measures what is new, and lets volumes know what was lost.
pub(crate) async fn watch(store: Store, config: TierConfig, volumes: Volumes, stopping: CancellationToken) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_measured, mut refused) = (false, Vec::new());
    loop {
        if !is_measured {
            let measuring = store.clone();
            let measured = tokio::task::spawn_blocking(move || measuring.measure_tiers()).await;
            if let Ok(Err(error)) = measured {
                tracing::warn!(%error, "the speed of read-only tiers is not known");
            }
        }
        is_measured = true;
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match look(&store, &config, &mut refused).await {
            Ok(changes) => {
                is_measured = !changes.iter().any(|change| matches!(change, TierChange::Here(_)));
                changes.into_iter().for_each(|change| tell_volumes(&volumes, change));
            }
            Err(error) => tracing::warn!(%error, "could not look for read-only tiers"),
        }
    }
}

fn tell(store: &Store, change: &TierChange) {
    match change {
        TierChange::Here(directory) => {
            let tiers = store.tiers();
            let Some(tier) = tiers.iter().find(|tier| tier.directory == *directory) else { return };
            let directory = directory.display();
            tracing::info!(tier = %directory, snapshots = tier.snapshots, "using a read-only tier in place");
            if tier.is_writable {
                tracing::warn!(
                    tier = %directory,
                    "this tier is mounted for writing: mount it read-only, so that nobody changes what pods read"
                );
            }
        }
        TierChange::Gone(directory, lost) => {
            tracing::warn!(tier = %directory.display(), in_use = lost.len(), "a read-only tier is gone; the next one is used");
        }
        TierChange::Refused(directory, error) => {
            tracing::warn!(tier = %directory.display(), %error, "not used as a read-only tier");
        }
    }
}

fn tell_volumes(volumes: &Volumes, change: TierChange) {
    if let TierChange::Gone(directory, lost) = change {
        let what =
            format!("its files were on {}, which is gone; they are fetched again", directory.display());
        lost.iter().for_each(|key| volumes.lost(key, &what));
    }
}

/// Directories that match patterns, in the order of their names.
fn expand(patterns: &[String]) -> Vec<PathBuf> {
    let matches = patterns.iter().filter_map(|pattern| glob::glob(pattern).ok());
    let mut found: Vec<PathBuf> = matches.flatten().flatten().filter(|path| path.is_dir()).collect();
    found.dedup();
    found
}
