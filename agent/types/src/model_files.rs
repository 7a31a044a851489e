//! Which files of a directory are a model's weights: the rule that everything here and every loader follows.

/// What every file of tensors is called.
const EXTENSION: &str = ".safetensors";
/// What an index of shards is called.
const INDEX_EXTENSION: &str = ".safetensors.index.json";
/// Which index is taken where there are several: the one that everybody else reads.
const INDEX: &str = "model.safetensors.index.json";

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles<'n> {
    /// In the shards that an index names, and in no other file.
    Index(&'n str),
    /// In all of these, sorted.
    All(Vec<&'n str>),
    /// In the files of one of these indices, and nothing says of which.
    Ambiguous(Vec<&'n str>),
    /// Nowhere.
    None,
}

impl ModelFiles<'_> {
    /// Chooses among the names of one directory.
    pub fn among<'n>(names: impl IntoIterator<Item = &'n str>) -> ModelFiles<'n> {
        let (mut weights, mut indices) = (Vec::new(), Vec::new());
        for name in names {
            if name.ends_with(INDEX_EXTENSION) {
                indices.push(name);
            } else if name.ends_with(EXTENSION) {
                weights.push(name);
            }
        }
        indices.sort_unstable();
        weights.sort_unstable();
        match indices.as_slice() {
            [] if weights.is_empty() => ModelFiles::None,
            [] => ModelFiles::All(weights),
            [only] => ModelFiles::Index(only),
            several if several.contains(&INDEX) => ModelFiles::Index(INDEX),
            _ => ModelFiles::Ambiguous(indices),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_goes_before_files_and_the_usual_one_before_others() {
        let among = |names: &[&'static str]| ModelFiles::among(names.iter().copied());
        assert_eq!(among(&["config.json", "a.bin"]), ModelFiles::None);
        let both = ["b.safetensors", "x.json", "a.safetensors"];
        assert_eq!(among(&both), ModelFiles::All(vec!["a.safetensors", "b.safetensors"]));
        assert_eq!(
            among(&["a.safetensors", "z.safetensors.index.json"]),
            ModelFiles::Index("z.safetensors.index.json")
        );
        let two = ["a.safetensors.index.json", "b.safetensors.index.json"];
        assert_eq!(among(&two), ModelFiles::Ambiguous(two.to_vec()));
        assert_eq!(among(&[two[0], INDEX]), ModelFiles::Index(INDEX));
    }
}
