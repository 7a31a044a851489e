//! From the entries of a listing of the library to those of a source.

use std::collections::HashSet;

use object_store::ObjectMeta;
use weightd_types::SourceUri;

use super::names;
use crate::{Listed, SourceError, memory::is_marker};

/// What `listed` makes of an entry and its name relative to the URI; nothing for the prefix itself and for a marker
/// of a directory.
pub(crate) fn entry(
    uri: &SourceUri,
    meta: &ObjectMeta,
    listed: impl FnOnce(String) -> Result<Listed, SourceError>,
) -> Result<Option<Listed>, SourceError> {
    let (full, is_text) = match names::of(&meta.location) {
        Ok(full) => (full, true),
        Err(shown) => (shown.into(), false),
    };
    let below = match uri.prefix() {
        "" => Some(full.as_ref()),
        prefix => full.strip_prefix(prefix).and_then(|name| name.strip_prefix('/')),
    };
    match below {
        Some(name) if !is_text => Ok(Some(not_text(uri, name))),
        Some(name) if is_marker(name, meta.size) => Ok(None),
        Some(name) => listed(name.to_owned()).map(Some),
        None if full == uri.prefix() => Ok(None),
        None => Err(SourceError::Protocol {
            what: uri.to_string(),
            detail: format!("it lists {full:?}, which is not below it"),
        }),
    }
}

fn not_text(uri: &SourceUri, name: &str) -> Listed {
    let why = SourceError::Refused {
        what: format!("{}/{name}", uri.root()),
        why: "has a name that is not UTF-8".to_owned(),
        remedy: "rename it, or leave it out with --exclude".to_owned(),
    };
    Listed::Unfit { name: name.to_owned(), why }
}

/// Removes the markers of directories whose names do not end in `/`, as some tools write them: one is known by
/// being empty while others lie below it.
pub(super) fn drop_markers(metas: &mut Vec<ObjectMeta>) {
    if metas.iter().all(|meta| meta.size > 0) {
        return;
    }
    let mut directories: HashSet<String> = HashSet::new();
    for meta in metas.iter() {
        let mut name = meta.location.as_ref();
        while let Some((directory, _)) = name.rsplit_once('/') {
            if !directories.insert(directory.to_owned()) {
                break;
            }
            name = directory;
        }
    }
    metas.retain(|meta| meta.size > 0 || !directories.contains(meta.location.as_ref()));
}
