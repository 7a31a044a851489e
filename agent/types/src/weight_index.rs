//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The index of a sharded model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WeightIndex {
    weight_map: BTreeMap<String, String>,
}

/// An index that its shards do not keep. The caller names the index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightIndexError {
    /// No JSON, or no `weight_map`.
    #[error("is not an index of safetensors shards: {0}")]
    Invalid(String),
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
    /// Reads an index.
    ///
    /// # Errors
    /// [`WeightIndexError::Invalid`].
    pub fn parse(json: &[u8]) -> Result<Self, WeightIndexError> {
        serde_json::from_slice(json).map_err(|error| WeightIndexError::Invalid(error.to_string()))
    }

    /// File names of the shards, relative to the index.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
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
        let missing = self.weight_map.iter().find(|(tensor, file)| *file == shard && !has_tensor(tensor));
        match missing {
            None => Ok(()),
            Some((tensor, _)) => {
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
    fn any_bytes_are_parsed_or_refused_without_a_panic() {
        assert!(WeightIndex::parse(b"[]").is_err());
        bolero::check!().for_each(|bytes: &[u8]| {
            let _ = WeightIndex::parse(bytes);
        });
    }
}
