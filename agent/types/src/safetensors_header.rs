//! The header of a safetensors file: checked before a single tensor is fetched, and rewritten for mapping.
//!
//! A file is eight bytes of little-endian header length, a JSON header, and the tensors without gaps. Everything
//! here comes from outside, so nothing is allocated before its length was checked, and every sum can overflow.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{ByteRange, Placement, Run, display_bytes};

/// Bytes before the JSON that hold its length.
pub const HEADER_LENGTH_BYTES: u64 = 8;
/// Longest JSON header the safetensors format allows.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Where tensor data begins in the aligned layout: a page on every kernel weightd meets, arm64 with 64 KiB
/// pages included.
pub const DATA_ALIGNMENT: u64 = 64 << 10;
/// Where each tensor begins in the aligned layout, relative to its data: a cache line, which is what JAX and
/// vector instructions need to use memory in place.
pub const TENSOR_ALIGNMENT: u64 = 64;

/// A checked header.
#[derive(Debug, Clone)]
pub struct SafetensorsHeader {
    raw: Bytes,
    tensors: Vec<(String, TensorInfo)>,
    /// Indices into `tensors`, in order of their names.
    by_name: Vec<u32>,
    metadata: BTreeMap<String, String>,
    object_len: u64,
}

/// Why an object is no valid safetensors file. The caller names the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than the length field.
    #[error("has {0} bytes, too few for a safetensors header")]
    TooShort(u64),
    /// A length no reader accepts.
    #[error("claims a safetensors header of {0} bytes; the format allows at most {MAX_HEADER_BYTES}")]
    TooLong(u64),
    /// A header that does not fit its object.
    #[error(
        "claims a safetensors header of {claimed} bytes but has only {object_len} bytes: it is truncated or not safetensors"
    )]
    BeyondObject {
        /// Length the first eight bytes claim.
        claimed: u64,
        /// Length of the object.
        object_len: u64,
    },
    /// Anything the safetensors crate refuses: no JSON, overlapping offsets, gaps, sizes that do not fit shapes.
    #[error("has an invalid safetensors header: {0}")]
    Invalid(String),
    /// Tensors that end before or after the object does.
    #[error("has {found} of tensor data where its header describes {described}: it is {}", if found < described { "truncated" } else { "longer than its header says" }, found = display_bytes(*.found), described = display_bytes(*.described))]
    DataLength {
        /// Bytes after the header.
        found: u64,
        /// Bytes the header describes.
        described: u64,
    },
    /// A header so long that padding it for alignment would pass the format's limit.
    #[error("has a header too long to be padded for the aligned layout: use --layout original")]
    TooLongToAlign,
}

impl SafetensorsHeader {
    /// Bytes that length field and JSON take together, from the first eight bytes of an object.
    ///
    /// # Errors
    /// [`HeaderError`] when the claimed length cannot be right for an object of `object_len` bytes.
    pub fn length(prefix: &[u8], object_len: u64) -> Result<u64, HeaderError> {
        let Some(field) = prefix.first_chunk::<8>() else {
            return Err(HeaderError::TooShort(object_len));
        };
        let claimed = u64::from_le_bytes(*field);
        if claimed > MAX_HEADER_BYTES {
            return Err(HeaderError::TooLong(claimed));
        }
        let length = HEADER_LENGTH_BYTES + claimed;
        if length > object_len {
            return Err(HeaderError::BeyondObject { claimed, object_len });
        }
        Ok(length)
    }

    /// Checks a header: `raw` is length field and JSON, of an object of `object_len` bytes.
    ///
    /// # Errors
    /// [`HeaderError`] says what is wrong.
    pub fn parse(raw: Bytes, object_len: u64) -> Result<Self, HeaderError> {
        let length = Self::length(&raw, object_len)?;
        if raw.len() as u64 != length {
            return Err(HeaderError::Invalid(format!("{} bytes given, {length} needed", raw.len())));
        }
        let parsed: Metadata =
            serde_json::from_slice(&raw[8..]).map_err(|error| HeaderError::Invalid(error.to_string()))?;
        let (found, described) = (object_len - length, parsed.data_len() as u64);
        if found != described {
            return Err(HeaderError::DataLength { found, described });
        }
        let infos = parsed.tensors();
        let mut tensors: Vec<_> = infos.into_iter().map(|(name, info)| (name, info.clone())).collect();
        // Empty tensors share an offset with their neighbour; the name makes the order the same every time.
        tensors.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
        let metadata = parsed.metadata().clone().unwrap_or_default().into_iter().collect();
        let by_name = by_name(&tensors);
        Ok(Self { raw, tensors, by_name, metadata, object_len })
    }

    /// Length field and JSON as the object has them.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Name and place of each tensor, in file order. Offsets are relative to the end of the header.
    pub fn tensors(&self) -> &[(String, TensorInfo)] {
        &self.tensors
    }

    /// Where the bytes of one of its tensors are, in the object.
    pub fn range_of(&self, tensor: &TensorInfo) -> ByteRange {
        let (data, (start, end)) = (self.raw.len() as u64, tensor.data_offsets);
        ByteRange::new(data + start as u64, data + end as u64)
    }

    /// What the file says of itself, sorted. Empty where it says nothing.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Whether it has a tensor of that name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.by_name.binary_search_by(|&at| self.tensors[at as usize].0.as_str().cmp(name)).is_ok()
    }

    /// Where the object's bytes go in the aligned layout: tensors whose length is a multiple of 64 keep their
    /// order, the others follow in theirs, so that all of the former begin on 64 bytes.
    ///
    /// # Errors
    /// [`HeaderError::TooLongToAlign`].
    pub fn aligned(&self) -> Result<Placement, HeaderError> {
        let data_start = self.raw.len() as u64;
        let is_even = |info: &TensorInfo| {
            ((info.data_offsets.1 - info.data_offsets.0) as u64).is_multiple_of(TENSOR_ALIGNMENT)
        };
        let (even, odd): (Vec<_>, Vec<_>) = self.tensors.iter().partition(|(_, info)| is_even(info));
        let mut moved = Vec::with_capacity(self.tensors.len());
        let mut offset = 0;
        let mut sources = Vec::with_capacity(self.tensors.len());
        for (name, info) in even.into_iter().chain(odd) {
            let (start, end) = info.data_offsets;
            sources.push((self.range_of(info), offset as u64));
            let info = TensorInfo { data_offsets: (offset, offset + end - start), ..info.clone() };
            offset = info.data_offsets.1;
            moved.push((name.as_str(), info));
        }
        let header = self.padded_header(moved)?;
        let blob_start = header.len() as u64;
        let runs = sources.into_iter().map(|(object, at)| Run { object, blob: blob_start + at }).collect();
        Ok(Placement::checked(self.object_len, header, data_start, runs)
            .expect("a checked header has tensors without gaps, and both orders hold each once"))
    }

    fn padded_header(&self, tensors: Vec<(&str, TensorInfo)>) -> Result<Bytes, HeaderError> {
        let json = serde_json::to_vec(&HeaderJson { metadata: &self.metadata, tensors })
            .map_err(|error| HeaderError::Invalid(error.to_string()))?;
        let total = (HEADER_LENGTH_BYTES + json.len() as u64).next_multiple_of(DATA_ALIGNMENT);
        let length = total - HEADER_LENGTH_BYTES;
        if length > MAX_HEADER_BYTES {
            return Err(HeaderError::TooLongToAlign);
        }
        let mut header = length.to_le_bytes().to_vec();
        header.extend_from_slice(&json);
        #[expect(clippy::cast_possible_truncation, reason = "at most 100 MB, checked above")]
        header.resize(total as usize, b' ');
        Ok(header.into())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a header of 100 MB has fewer tensors than bytes")]
fn by_name(tensors: &[(String, TensorInfo)]) -> Vec<u32> {
    let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
    by_name.sort_unstable_by_key(|&at| tensors[at as usize].0.as_str());
    by_name
}

/// The JSON of a header, its tensors in the order given.
struct HeaderJson<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: Vec<(&'a str, TensorInfo)>,
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        for (name, info) in &self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
