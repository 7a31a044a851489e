//! Which tensors there are, and where: what the agent says of them, checked.

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use prost::Message;
use rustix::{fs::SealFlags, param::page_size};
use safetensors::Dtype;
use weightd_proto::v1::{HandoffTable, HandoffTensor};

use super::{Arena, arena};

/// Longest table that is read. One of 90,000 tensors has some 10 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Where every tensor begins, so that processors and frameworks can use it in place.
const ALIGNMENT: usize = 256;

/// The tensors of a lease.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    files: Vec<File>,
    tensors: Vec<Tensor>,
    /// Positions of the tensors that have bytes, as these lie in the arenas.
    order: Vec<u32>,
    /// Where in `order` each tensor is. Of no meaning for tensors without bytes.
    place: Vec<u32>,
}

/// A file of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path in the snapshot.
    pub path: String,
    /// What it says of itself.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor, of which all is known but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape, in elements.
    pub shape: Vec<usize>,
    /// Number of its file in the table.
    pub file: usize,
    /// Number of the arena that it lies in.
    pub arena: usize,
    /// Where in the arena its bytes begin: on a multiple of 256, unless there are none.
    pub offset: usize,
    /// How many bytes it has: what its type and shape say.
    pub bytes: usize,
}

impl Table {
    /// Reads a table; the error says what the agent did wrong.
    pub(super) fn read(file: OwnedFd, bytes: u64, arenas: &[Arena]) -> Result<Self, String> {
        if bytes > MAX_BYTES {
            return Err(format!("sent a table of {bytes} bytes, and {MAX_BYTES} are allowed"));
        }
        arena::check(file.as_fd(), bytes, SealFlags::SHRINK | SealFlags::WRITE)
            .map_err(|problem| format!("sent a table that {problem}"))?;
        let mut encoded = vec![0; usize::try_from(bytes).map_err(|error| error.to_string())?];
        std::fs::File::from(file)
            .read_exact_at(&mut encoded, 0)
            .map_err(|error| format!("sent a table that cannot be read ({error})"))?;
        let arenas: Vec<_> = arenas.iter().map(Arena::bytes).collect();
        Self::parse(&encoded, &arenas)
    }

    /// Of tensors in arenas of these lengths.
    fn parse(encoded: &[u8], arenas: &[usize]) -> Result<Self, String> {
        let table =
            HandoffTable::decode(encoded).map_err(|error| format!("sent a table that is none ({error})"))?;
        Self::checked(table, arenas)
    }

    /// The files that the tensors are in.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The tensors, file by file, and of each as they lie in it. Positions here are what stands for a tensor elsewhere.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors that lie on pages of this one, itself among them; none for a tensor without bytes.
    ///
    /// Who writes to a page of a private mapping has a copy of it from then on, which nobody fills any more. So no
    /// tensor may be used before everything on its pages has arrived.
    pub(super) fn on_pages_of(&self, position: usize) -> &[u32] {
        let tensor = &self.tensors[position];
        if tensor.bytes == 0 {
            return &[];
        }
        let page = page_size();
        let start = tensor.offset / page * page;
        let end = (tensor.offset + tensor.bytes).saturating_add(page - 1) / page * page;
        let is_on = |&&other: &&u32| {
            let other = &self.tensors[other as usize];
            other.arena == tensor.arena && other.offset < end && start < other.offset + other.bytes
        };
        let at = self.place[position] as usize;
        let before = self.order[..at].iter().rev().take_while(is_on).count();
        let behind = self.order[at + 1..].iter().take_while(is_on).count();
        &self.order[at - before..=at + behind]
    }

    fn checked(table: HandoffTable, arenas: &[usize]) -> Result<Self, String> {
        let file_count = table.files.len();
        let tensors = table.tensors.into_iter().map(|tensor| checked_tensor(tensor, file_count, arenas));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let files = table.files.into_iter();
        let files = files.map(|file| File { path: file.path, metadata: file.metadata.into_iter().collect() });
        let count = u32::try_from(tensors.len()).map_err(|_| "sent too many tensors")?;
        let mut order: Vec<u32> = (0..count).filter(|&at| tensors[at as usize].bytes > 0).collect();
        order.sort_unstable_by_key(|&at| (tensors[at as usize].arena, tensors[at as usize].offset));
        check_overlap(&tensors, &order)?;
        let mut place = vec![0; tensors.len()];
        for (&position, at) in order.iter().zip(0..) {
            place[position as usize] = at;
        }
        Ok(Self { files: files.collect(), tensors, order, place })
    }
}

fn checked_tensor(tensor: HandoffTensor, files: usize, arenas: &[usize]) -> Result<Tensor, String> {
    let problem = |problem: &str| format!("sent the tensor {:?}, {problem}", tensor.name);
    let number = |number: u64| usize::try_from(number).map_err(|_| problem("whose numbers are too large"));
    let dtype = dtype(&tensor.dtype).ok_or_else(|| problem("whose type is unknown"))?;
    let shape = tensor.shape.iter().map(|&length| number(length)).collect::<Result<Vec<_>, _>>()?;
    let (file, arena) = (number(tensor.file.into())?, number(tensor.arena.into())?);
    let (offset, bytes) = (number(tensor.offset)?, number(tensor.bytes)?);
    if bytes_of(dtype, &shape) != Some(bytes) {
        return Err(problem("whose bytes are not as many as its type and shape say"));
    }
    if file >= files {
        return Err(problem("of a file that is not there"));
    }
    if bytes > 0 {
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(problem("which does not begin on a multiple of 256 bytes"));
        }
        let length = *arenas.get(arena).ok_or_else(|| problem("in an arena that is not there"))?;
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(problem("which lies outside of its arena"));
        }
    }
    Ok(Tensor { name: tensor.name, dtype, shape, file, arena, offset, bytes })
}

/// None for sizes beyond all memory, and for elements that fill no whole byte.
fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |product, &length| product.checked_mul(length))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn check_overlap(tensors: &[Tensor], order: &[u32]) -> Result<(), String> {
    let tensor = |at: &u32| &tensors[*at as usize];
    let overlap = order
        .windows(2)
        .map(|pair| (tensor(&pair[0]), tensor(&pair[1])))
        .find(|(first, second)| first.arena == second.arena && first.offset + first.bytes > second.offset);
    match overlap {
        None => Ok(()),
        Some((first, second)) => {
            Err(format!("sent the tensors {:?} and {:?}, which overlap", first.name, second.name))
        }
    }
}

/// The type that safetensors writes so.
fn dtype(name: &str) -> Option<Dtype> {
    use serde::{
        Deserialize,
        de::{IntoDeserializer, value::Error},
    };
    Dtype::deserialize(IntoDeserializer::<Error>::into_deserializer(name)).ok()
}

#[cfg(test)]
mod tests {
    use weightd_proto::v1::HandoffFile;

    use super::*;

    fn tensor(name: &str, offset: u64, bytes: u64) -> HandoffTensor {
        let (name, dtype) = (name.to_owned(), "U8".to_owned());
        HandoffTensor { name, dtype, shape: vec![bytes], offset, bytes, ..HandoffTensor::default() }
    }

    #[test]
    fn tensors_know_who_is_on_their_pages() {
        let page = page_size() as u64;
        let places =
            [("a", 0, 2 * page), ("b", 3 * page + 512, page), ("none", 0, 0), ("c", 2 * page, page + 300)];
        let table = HandoffTable {
            files: vec![HandoffFile::default()],
            tensors: places.map(|(name, offset, bytes)| tensor(name, offset, bytes)).into(),
        };
        let table = Table::parse(&table.encode_to_vec(), &[8 * page_size()]).unwrap();
        let on_pages_of = |position| table.on_pages_of(position);
        assert_eq!(on_pages_of(0), [0]);
        assert_eq!([on_pages_of(1), on_pages_of(3)], [[3, 1]; 2]);
        assert!(on_pages_of(2).is_empty());
    }

    #[test]
    fn any_bytes_are_a_table_inside_of_its_arenas_or_none() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let arenas = [4096, 300];
            let Ok(table) = Table::parse(bytes, &arenas) else { return };
            for (position, tensor) in table.tensors().iter().enumerate() {
                assert!(tensor.bytes == 0 || tensor.offset + tensor.bytes <= arenas[tensor.arena]);
                assert_eq!(tensor.bytes == 0, table.on_pages_of(position).is_empty());
            }
        });
    }
}
