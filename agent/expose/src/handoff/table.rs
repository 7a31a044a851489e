//! The tensors that a client is lent: which they are, which part of each, and the table that says so.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use weightd_proto::v1::{HandoffFile, HandoffTable, HandoffTensor};
use weightd_types::{ByteRange, SafetensorsHeader, TensorSlice};

use super::{model::Model, refusal::Refusal};

/// Most that files may say of themselves, all together. Who makes a model decides how much that is.
const MAX_METADATA_BYTES: usize = 64 << 20;

/// The tensors that a client is lent, by their positions in its table: file by file, and of each as they lie in it.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// Position of the first tensor of each file.
    firsts: Vec<u32>,
    all: Vec<Needed>,
    /// By position, where not all of a tensor is needed.
    slices: BTreeMap<u32, TensorSlice>,
}

/// What is needed of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needed {
    /// Number of its blob.
    pub(crate) blob: usize,
    /// From its first byte in there to behind its last. Empty of a tensor without bytes.
    pub(crate) span: ByteRange,
}

impl Tensors {
    /// Of a model whose blobs have these headers.
    pub(crate) fn new(model: &Model, headers: &[&SafetensorsHeader]) -> Result<Self, Refusal> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        let (mut firsts, mut all, mut slices) = (Vec::new(), Vec::new(), BTreeMap::new());
        let cannot = |error: &dyn std::fmt::Display| Refusal::usage(model.about(&error.to_string()));
        for (path, blob) in &model.files {
            firsts.push(number(all.len()));
            let header = headers[*blob];
            for (name, info) in header.tensors() {
                if let Some(first) = seen.insert(name, path) {
                    return Err(Refusal::usage(format!("{first} and {path} both hold the tensor {name:?}")));
                }
                let mut span = header.range_of(info);
                let slice = model.slicing.slice(name, info.dtype, &info.shape);
                if let Some(slice) = slice.map_err(|error| cannot(&error))? {
                    let part = slice.span();
                    span = ByteRange::new(span.start + part.start, span.start + part.end);
                    slices.insert(number(all.len()), slice);
                }
                all.push(Needed { blob: *blob, span });
            }
        }
        model.slicing.check_names(|name| seen.contains_key(name)).map_err(|error| cannot(&error))?;
        Ok(Self { firsts, all, slices })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        number(self.all.len())
    }

    /// Position of a file's first tensor.
    pub(crate) fn first(&self, file: usize) -> u32 {
        self.firsts[file]
    }

    /// What is needed of one.
    pub(crate) fn needed(&self, position: u32) -> Needed {
        self.all[position as usize]
    }

    /// Which part of one, where that is not all of it.
    pub(crate) fn slice(&self, position: u32) -> Option<&TensorSlice> {
        self.slices.get(&position)
    }

    /// Whether all of every tensor is needed.
    pub(crate) fn are_whole(&self) -> bool {
        self.slices.is_empty()
    }

    /// Bytes of one's elements.
    pub(crate) fn bytes(&self, position: u32) -> u64 {
        self.slice(position).map_or_else(|| self.needed(position).span.len(), |slice| slice.bytes() as u64)
    }

    /// File of one, by its position.
    pub(crate) fn file(&self, position: u32) -> usize {
        // Files without tensors begin where the next one does.
        self.firsts.partition_point(|first| *first <= position).saturating_sub(1)
    }

    /// The table that a client is given: a sealed file in memory, and its length. `place` says in which arena a byte of a blob
    /// is, and where; without it tensors are delivered one by one, as one range of bytes each.
    pub(crate) fn table(
        &self,
        model: &Model,
        headers: &[&SafetensorsHeader],
        place: Option<&dyn Fn(usize, u64) -> u64>,
    ) -> Result<(OwnedFd, u64), Refusal> {
        let said = |(_, blob): &(String, usize)| {
            let metadata = headers[*blob].metadata().iter();
            metadata.map(|(key, value)| key.len() + value.len()).sum::<usize>()
        };
        if model.files.iter().map(said).sum::<usize>() > MAX_METADATA_BYTES {
            return Err(Refusal::usage(
                model.about("its files say more of themselves than can be passed on"),
            ));
        }
        let mut table = HandoffTable::default();
        for (file, (path, blob)) in model.files.iter().enumerate() {
            let header = headers[*blob];
            let metadata =
                header.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            table.files.push(HandoffFile { path: path.clone(), metadata });
            for ((name, info), position) in header.tensors().iter().zip(self.first(file)..) {
                let slice = self.slice(position);
                let lengths = slice.map_or(&info.shape, |slice| &slice.shape);
                let strides = slice.filter(|slice| place.is_some() && !slice.is_contiguous());
                let (span, bytes) = (self.needed(position).span, self.bytes(position));
                let offset = place.filter(|_| bytes > 0).map_or(0, |place| place(*blob, span.start));
                table.tensors.push(HandoffTensor {
                    name: name.clone(),
                    dtype: info.dtype.to_string(),
                    shape: wide(lengths),
                    file: number(file),
                    arena: if place.is_some() { number(*blob) } else { 0 },
                    offset,
                    bytes,
                    strides: strides.map_or_else(Vec::new, |slice| wide(&slice.strides)),
                });
            }
        }
        let bytes = table.encode_to_vec();
        let failed =
            |error: io::Error| Refusal::memory(format!("the table of tensors cannot be made: {error}"));
        Ok((sealed(&bytes).map_err(failed)?, bytes.len() as u64))
    }
}

fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("weightd-table", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Files and tensors are counted in 32 bits.
pub(crate) fn number(number: usize) -> u32 {
    u32::try_from(number).expect("headers of 100 MB have fewer tensors than 32 bits count")
}

fn wide(numbers: &[usize]) -> Vec<u64> {
    numbers.iter().map(|&number| number as u64).collect()
}
