//! Directories as objects.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use anyhow::{Context, Result};

use super::{
    content::Content,
    object::Described,
    refusal::Refusal,
    request::{Conditions, Named},
    store::Store,
};
use crate::gcs::files_below;

/// Reads every file below `directory` into an object named `prefix/path`, as many at once as there are cores.
pub(super) fn place(store: &Store, bucket: &str, prefix: &str, directory: &Path) -> Result<()> {
    match store.create(bucket) {
        Ok(()) | Err(Refusal::BucketExists) => {}
        Err(refusal) => return Err(refusal).with_context(|| format!("making gs://{bucket}")),
    }
    let files = files_below(directory)?;
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
            let name = object_name(prefix, file.strip_prefix(directory).unwrap_or(file));
            put(store, bucket, name, file).with_context(|| format!("placing {}", file.display()))?;
        }
        Ok(())
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores.min(files.len())).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn object_name(prefix: &str, path: &Path) -> String {
    match prefix {
        "" => path.to_string_lossy().into_owned(),
        prefix => format!("{prefix}/{}", path.to_string_lossy()),
    }
}

fn put(store: &Store, bucket: &str, name: String, file: &Path) -> Result<()> {
    let named = Named { bucket: bucket.to_owned(), name };
    store.put(&named, Content::read(file)?, Described::default(), &Conditions::default())?;
    Ok(())
}
