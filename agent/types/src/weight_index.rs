//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::display_bytes;

/// The index of a sharded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightIndex {
    /// The tensors of each shard: each is asked for its own.
    shards: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Json {
    weight_map: BTreeMap<String, String>,
}

/// An index that its shards do not keep. The caller names the index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightIndexError {
    /// No JSON, or no `weight_map`.
    #[error("is not an index of safetensors shards: {0}")]
    Invalid(String),
    /// Longer than any real index, and too long to be read into memory.
    #[error("has {found}, and an index of safetensors shards may have {allowed}: it is not one", found = display_bytes(*.0), allowed = display_bytes(WeightIndex::MAX_BYTES))]
    TooLong(u64),
    /// A shard nobody listed.
    #[error("names the shard {shard:?}, which is missing: the upload of this model is not complete")]
    MissingShard {
        /// File name as the index has it.
        shard: String,
    },
    /// A tensor that its shard lacks.
    #[error("says that {shard:?} holds the tensor {tensor:?}, which that shard's header does not list")]
    MissingTensor {
        /// File name as the index has it.
        shard: String,
        /// The tensor.
        tensor: String,
    },
}

impl WeightIndex {
    /// Longest index that is read. Those of the largest models have some 10 MB.
    pub const MAX_BYTES: u64 = 64 << 20;

    /// Reads an index.
    ///
    /// # Errors
    /// [`WeightIndexError::TooLong`] and [`WeightIndexError::Invalid`].
    pub fn parse(json: &[u8]) -> Result<Self, WeightIndexError> {
        Self::check_length(json.len() as u64)?;
        let Json { weight_map } =
            serde_json::from_slice(json).map_err(|error| WeightIndexError::Invalid(error.to_string()))?;
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        Ok(Self { shards })
    }

    /// Whether an index of that many bytes may be read into memory.
    ///
    /// # Errors
    /// [`WeightIndexError::TooLong`].
    pub fn check_length(bytes: u64) -> Result<(), WeightIndexError> {
        if bytes > Self::MAX_BYTES { Err(WeightIndexError::TooLong(bytes)) } else { Ok(()) }
    }

    /// File names of the shards, relative to the index.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.shards.keys().map(String::as_str).collect()
    }

    /// Checks that every shard is there.
    ///
    /// # Errors
    /// [`WeightIndexError::MissingShard`] names the first that `is_there` denies.
    pub fn check_shards(&self, is_there: impl Fn(&str) -> bool) -> Result<(), WeightIndexError> {
        match self.shards().into_iter().find(|shard| !is_there(shard)) {
            None => Ok(()),
            Some(shard) => Err(WeightIndexError::MissingShard { shard: shard.to_owned() }),
        }
    }

    /// Checks that one shard holds every tensor the index expects of it; `has_tensor` answers for its header.
    ///
    /// # Errors
    /// [`WeightIndexError::MissingTensor`] names the first that is not there.
    pub fn check_tensors(
        &self,
        shard: &str,
        has_tensor: impl Fn(&str) -> bool,
    ) -> Result<(), WeightIndexError> {
        let mut tensors = self.shards.get(shard).into_iter().flatten();
        match tensors.find(|tensor| !has_tensor(tensor)) {
            None => Ok(()),
            Some(tensor) => {
                Err(WeightIndexError::MissingTensor { shard: shard.to_owned(), tensor: tensor.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &[u8] =
        br#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;

    #[test]
    fn missing_shards_and_tensors_are_named() {
        let index = WeightIndex::parse(INDEX).unwrap();
        assert_eq!(index.check_shards(|_| true), Ok(()));
        let error = index.check_shards(|shard| shard == "1.safetensors").unwrap_err();
        assert!(error.to_string().contains("\"2.safetensors\""), "{error}");
        assert_eq!(index.check_tensors("1.safetensors", |tensor| tensor == "a"), Ok(()));
        let error = index.check_tensors("2.safetensors", |_| false).unwrap_err();
        assert!(error.to_string().contains("\"b\""), "{error}");
    }

    #[test]
    fn an_index_too_long_for_memory_is_refused() {
        let over = WeightIndex::MAX_BYTES + 1;
        assert_eq!(WeightIndex::check_length(WeightIndex::MAX_BYTES), Ok(()));
        let text = vec![b' '; usize::try_from(over).unwrap()];
        assert_eq!(WeightIndex::parse(&text), Err(WeightIndexError::TooLong(over)));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused_without_a_panic() {
        assert!(WeightIndex::parse(b"[]").is_err());
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = WeightIndex::parse(bytes);
        });
    }
}
