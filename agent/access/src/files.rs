//! Which directories of the node pods may name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use globset::{GlobBuilder, GlobMatcher};
use weightd_source::Credential;
use weightd_types::{Scheme, SourceUri};

/// Where patterns begin to be patterns.
const MEANS_SOMETHING: [char; 5] = ['*', '?', '[', '{', '\\'];

/// What a pod reads a directory of the node with, if it may name it: nothing outside of it is read.
pub(crate) async fn confined(patterns: &Arc<[String]>, source: &SourceUri) -> Option<Credential> {
    if source.scheme() != Scheme::File {
        return None;
    }
    let (patterns, path) = (Arc::clone(patterns), format!("/{}", source.prefix()));
    let found = tokio::task::spawn_blocking(move || allowed(&patterns, Path::new(&path))).await;
    found.ok().flatten().map(Credential::Directory)
}

/// The directory a pod names, by its path without links, if it may. What it may not, and what is not there, look alike. Blocks.
fn allowed(patterns: &[String], named: &Path) -> Option<PathBuf> {
    let found = named.canonicalize().ok()?;
    let matchers: Vec<GlobMatcher> = patterns.iter().filter_map(|pattern| matcher(pattern)).collect();
    let is_allowed = found.ancestors().any(|above| matchers.iter().any(|matcher| matcher.is_match(above)));
    is_allowed.then_some(found)
}

/// Whether it can be read as a pattern of paths.
pub fn is_pattern(text: &str) -> bool {
    GlobBuilder::new(text).literal_separator(true).build().is_ok()
}

/// A pattern, with links followed in the directories before its first `*`.
fn matcher(pattern: &str) -> Option<GlobMatcher> {
    let literal =
        pattern.find(MEANS_SOMETHING).map_or(pattern.len(), |at| pattern[..at].rfind('/').unwrap_or(0));
    let (before, rest) = pattern.split_at(literal);
    let before = Path::new(if before.is_empty() { "/" } else { before }).canonicalize().ok()?;
    let before = globset::escape(before.to_str()?.trim_end_matches('/'));
    let glob = GlobBuilder::new(&format!("{before}{rest}")).literal_separator(true).build().ok()?;
    Some(glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_what_a_pattern_allows_may_be_named_whatever_links_say() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for name in ["real/llama/sub", "real-too", "secret"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        symlink(at("real"), at("models")).unwrap();
        symlink(at("secret"), at("real/evil")).unwrap();
        let patterns = [format!("{}/models/*", place.path().display())];
        let may = |name: &str| allowed(&patterns, &at(name)).is_some();
        assert!(may("models/llama") && may("real/llama") && may("real/llama/sub"));
        assert!(may("models/llama/../llama"));
        for name in ["models", "real", "real-too", "secret", "models/evil", "models/../secret", "models/none"]
        {
            assert!(!may(name), "{name}");
        }
        assert!(allowed(&[], &at("real/llama")).is_none());
        assert_eq!(allowed(&patterns, &at("models/llama")), at("real/llama").canonicalize().ok());
        let whole = [at("real/llama").display().to_string()];
        assert!(allowed(&whole, &at("real/llama/sub")).is_some() && allowed(&whole, &at("real")).is_none());
    }
}
