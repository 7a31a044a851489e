//! Which of a source's objects are wanted.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::Object;

/// Endings of files that repeat a repository's safetensors weights in another format.
const TWIN_ENDINGS: [&str; 5] = [".bin", ".pth", ".gguf", ".bin.index.json", ".pth.index.json"];

/// Which objects of a source to take. Globs are matched against the whole path and `*` crosses `/`, as on the
/// Hugging Face hub: `*.json` takes `a/b.json` too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Take only what matches one of these. Empty takes everything except twins: where there are safetensors,
    /// the same weights as `.bin`, `.pth` or `.gguf` are left out.
    #[serde(default)]
    pub include: Vec<String>,
    /// Leave out what matches one of these.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// A listing, divided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// What the selection takes.
    pub taken: Vec<Object>,
    /// What it leaves out.
    pub left_out: Vec<Object>,
}

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a glob: {why}")]
pub struct InvalidGlob {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub why: String,
}

impl Selection {
    /// Divides a listing.
    ///
    /// # Errors
    /// [`InvalidGlob`] for a pattern that cannot be read.
    pub fn divide(&self, listing: Vec<Object>) -> Result<Selected, InvalidGlob> {
        let (taken, left_out) = self.divide_by_name(listing, |object| object.path.as_str())?;
        Ok(Selected { taken, left_out })
    }

    /// Divides anything that has a name: what is taken, and what is left out. Names need not be valid paths, so
    /// that a listing can hold objects that only matter if they are taken.
    ///
    /// # Errors
    /// [`InvalidGlob`] for a pattern that cannot be read.
    pub fn divide_by_name<T>(
        &self,
        listing: Vec<T>,
        name: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, Vec<T>), InvalidGlob> {
        let (include, exclude) = (compile(&self.include)?, compile(&self.exclude)?);
        let by_default = self.include.is_empty();
        let wanted = |name: &str| (by_default || include.is_match(name)) && !exclude.is_match(name);
        let has_safetensors =
            listing.iter().map(&name).any(|name| name.ends_with(".safetensors") && wanted(name));
        let is_twin = |name: &str| TWIN_ENDINGS.iter().any(|ending| name.ends_with(ending));
        Ok(listing.into_iter().partition(|item| {
            let name = name(item);
            wanted(name) && !(by_default && has_safetensors && is_twin(name))
        }))
    }

    /// Reads every pattern.
    ///
    /// # Errors
    /// [`InvalidGlob`] for the first that cannot be read.
    pub fn check(&self) -> Result<(), InvalidGlob> {
        compile(&self.include).and(compile(&self.exclude)).map(drop)
    }
}

fn compile(patterns: &[String]) -> Result<GlobSet, InvalidGlob> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let invalid =
            |error: globset::Error| InvalidGlob { pattern: pattern.clone(), why: error.kind().to_string() };
        set.add(GlobBuilder::new(pattern).literal_separator(false).build().map_err(invalid)?);
    }
    set.build().map_err(|error| InvalidGlob { pattern: patterns.join(" "), why: error.kind().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ObjectPath, Version};

    fn listing(paths: &[&str]) -> Vec<Object> {
        let object = |path: &&str| Object {
            path: ObjectPath::new(*path).unwrap(),
            size: 1,
            version: Version::Generation(1),
            checksums: crate::Checksums::default(),
        };
        paths.iter().map(object).collect()
    }

    fn taken(selection: &Selection, paths: &[&str]) -> Vec<String> {
        let selected = selection.divide(listing(paths)).unwrap();
        assert_eq!(selected.taken.len() + selected.left_out.len(), paths.len());
        selected.taken.iter().map(|object| object.path.to_string()).collect()
    }

    #[test]
    fn twins_are_left_out_only_beside_safetensors() {
        let everything = Selection::default();
        assert_eq!(
            taken(&everything, &["m.safetensors", "pytorch_model.bin", "c.json"]),
            ["m.safetensors", "c.json"]
        );
        assert_eq!(taken(&everything, &["pytorch_model.bin", "c.json"]), ["pytorch_model.bin", "c.json"]);
    }

    #[test]
    fn globs_cross_directories_and_exclude_wins() {
        let selection =
            Selection { include: vec!["*.json".into(), "*.bin".into()], exclude: vec!["old/*".into()] };
        assert_eq!(
            taken(&selection, &["a/b.json", "old/c.json", "m.safetensors", "pytorch_model.bin"]),
            ["a/b.json", "pytorch_model.bin"]
        );
    }

    #[test]
    fn a_broken_glob_is_named() {
        let selection = Selection { include: vec!["[".into()], exclude: vec![] };
        assert!(selection.check().unwrap_err().to_string().contains("\"[\""));
    }
}
