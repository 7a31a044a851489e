//! From a listing to a snapshot: which objects the selection takes, and whether they can be taken.

use weightd_types::{InvalidGlob, Object, Selection, Snapshot, SnapshotError, SourceUri};

use crate::{Listed, Source, SourceError};

/// A source at one moment, divided by a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// What the selection takes.
    pub snapshot: Snapshot,
    /// What it leaves out, as far as it could have been taken.
    pub left_out: Vec<Object>,
}

/// Why a source cannot become a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The origin failed, or refuses an object that the selection takes.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The selection has a pattern that cannot be read.
    #[error(transparent)]
    Selection(#[from] InvalidGlob),
    /// The objects cannot be one snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl ResolveError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(error) => error.is_retryable(),
            Self::Selection(_) | Self::Snapshot(_) => false,
        }
    }

    /// A stable word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source(error) => error.kind(),
            Self::Selection(_) => "invalid_glob",
            Self::Snapshot(_) => "snapshot",
        }
    }
}

/// Lists a source once and makes a snapshot of what the selection takes. An object that cannot be taken (its
/// name cannot become a file, or the origin would not give its stored bytes) is an error only if the selection
/// takes it, so `--exclude` is always a way out.
///
/// # Errors
/// [`ResolveError`].
pub async fn resolve(
    source: &dyn Source,
    uri: &SourceUri,
    selection: &Selection,
) -> Result<Resolution, ResolveError> {
    selection.check()?;
    let listing = source.list().await?;
    let nothing_listed = listing.is_empty();
    let (taken, left_out) = selection.divide_by_name(listing, Listed::name)?;
    let taken: Vec<Object> = taken.into_iter().map(fit).collect::<Result<_, _>>()?;
    if taken.is_empty() && !nothing_listed {
        return Err(SnapshotError::Empty { source_uri: uri.to_string(), selected: true }.into());
    }
    let snapshot = Snapshot::new(uri.clone(), taken)?;
    let left_out = left_out.into_iter().filter_map(|listed| fit(listed).ok()).collect();
    Ok(Resolution { snapshot, left_out })
}

fn fit(listed: Listed) -> Result<Object, SourceError> {
    match listed {
        Listed::Object(object) => Ok(object),
        Listed::Unfit { why, .. } => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryOrigin, Opener};

    async fn resolve_names(names: &[&str], selection: &Selection) -> Result<Resolution, ResolveError> {
        let origin = MemoryOrigin::new("m");
        for name in names {
            origin.put(name, "x");
        }
        let uri: SourceUri = "memory://m/model".parse().unwrap();
        let source = origin.open(&uri).await.unwrap();
        resolve(source.as_ref(), &uri, selection).await
    }

    fn excluding(glob: &str) -> Selection {
        Selection { include: vec![], exclude: vec![glob.to_owned()] }
    }

    #[tokio::test]
    async fn what_is_left_out_is_reported() {
        let resolution =
            resolve_names(&["model/a.safetensors", "model/a.bin"], &Selection::default()).await.unwrap();
        assert_eq!(resolution.snapshot.objects().len(), 1);
        assert_eq!(resolution.left_out[0].path.as_str(), "a.bin");
    }

    #[tokio::test]
    async fn a_bad_name_matters_only_when_it_is_taken() {
        for bad in ["model/../up", "model/a\0b", "model/a\nb", "model//x"] {
            let names = ["model/config.json", bad];
            let error = resolve_names(&names, &Selection::default()).await.unwrap_err();
            assert_eq!(error.kind(), "invalid_name", "{error}");
            assert!(error.to_string().contains("--exclude"), "{error}");
            let name = bad.strip_prefix("model/").unwrap();
            let resolution = resolve_names(&names, &excluding(name)).await.unwrap();
            assert_eq!(resolution.snapshot.objects().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_refused_object_matters_only_when_it_is_taken() {
        let origin = MemoryOrigin::new("m");
        origin.put("a.json", "{}");
        origin.put("b.json", "{}");
        origin.refuse("b.json", "is stored compressed");
        let uri: SourceUri = "memory://m".parse().unwrap();
        let source = origin.open(&uri).await.unwrap();
        let error = resolve(source.as_ref(), &uri, &Selection::default()).await.unwrap_err();
        assert!(error.to_string().contains("memory://m/b.json: is stored compressed"), "{error}");
        assert!(resolve(source.as_ref(), &uri, &excluding("b.json")).await.is_ok());
    }

    #[tokio::test]
    async fn a_selection_that_takes_nothing_says_so() {
        let error = resolve_names(&["model/config.json"], &excluding("*")).await.unwrap_err();
        assert!(error.to_string().contains("loosen --include"), "{error}");
        let error = resolve_names(&["model/config.json"], &excluding("[")).await.unwrap_err();
        assert_eq!(error.kind(), "invalid_glob");
    }
}
