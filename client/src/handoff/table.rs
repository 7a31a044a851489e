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

use super::{arena, strides};

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
    /// Its shape, in elements. Of a slice that was asked for, as everything here.
    pub shape: Vec<usize>,
    /// How far elements are apart that are neighbours along each dimension, in elements. None where they follow each
    /// other row by row.
    pub strides: Option<Vec<usize>>,
    /// Number of its file in the table.
    pub file: usize,
    /// Number of the arena that it lies in.
    pub arena: usize,
    /// Where in the arena its bytes begin: on a multiple of 256, unless there are none or slices were asked for, which
    /// begin on a multiple of their element.
    pub offset: usize,
    /// How many bytes it has: what its type and shape say.
    pub bytes: usize,
    /// From its first byte to behind its last: more than it has, where its elements do not follow each other.
    pub span: usize,
}

/// Where tensors may lie.
#[derive(Debug, Clone, Copy)]
pub(super) enum Room<'a> {
    /// In arenas of these lengths.
    Arenas {
        /// In bytes.
        lengths: &'a [usize],
        /// Whether slices of tensors were asked for.
        sliced: bool,
    },
    /// In a ring, where is said when they come.
    Ring,
}

impl Table {
    /// Reads a table; the error says what the agent did wrong.
    pub(super) fn read(file: OwnedFd, bytes: u64, room: Room<'_>) -> Result<Self, String> {
        if bytes > MAX_BYTES {
            return Err(format!("sent a table of {bytes} bytes, and {MAX_BYTES} are allowed"));
        }
        arena::check(file.as_fd(), bytes, SealFlags::SHRINK | SealFlags::WRITE)
            .map_err(|problem| format!("sent a table that {problem}"))?;
        let mut encoded = vec![0; usize::try_from(bytes).map_err(|error| error.to_string())?];
        std::fs::File::from(file)
            .read_exact_at(&mut encoded, 0)
            .map_err(|error| format!("sent a table that cannot be read ({error})"))?;
        Self::parse(&encoded, room)
    }

    pub(super) fn parse(encoded: &[u8], room: Room<'_>) -> Result<Self, String> {
        let table =
            HandoffTable::decode(encoded).map_err(|error| format!("sent a table that is none ({error})"))?;
        Self::checked(table, room)
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
        let end = (tensor.offset + tensor.span).saturating_add(page - 1) / page * page;
        let is_on = |&&other: &&u32| {
            let other = &self.tensors[other as usize];
            other.arena == tensor.arena && other.offset < end && start < other.offset + other.span
        };
        let at = self.place[position] as usize;
        let before = self.order[..at].iter().rev().take_while(is_on).count();
        let behind = self.order[at + 1..].iter().take_while(is_on).count();
        &self.order[at - before..=at + behind]
    }

    fn checked(table: HandoffTable, room: Room<'_>) -> Result<Self, String> {
        let file_count = table.files.len();
        let tensors = table.tensors.into_iter().map(|tensor| checked_tensor(tensor, file_count, room));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let files = table.files.into_iter();
        let files = files.map(|file| File { path: file.path, metadata: file.metadata.into_iter().collect() });
        let count = u32::try_from(tensors.len()).map_err(|_| "sent too many tensors")?;
        let mut order: Vec<u32> = (0..count).filter(|&at| tensors[at as usize].bytes > 0).collect();
        order.sort_unstable_by_key(|&at| (tensors[at as usize].arena, tensors[at as usize].offset));
        if matches!(room, Room::Arenas { .. }) {
            check_overlap(&tensors, &order)?;
        }
        let mut place = vec![0; tensors.len()];
        for (&position, at) in order.iter().zip(0..) {
            place[position as usize] = at;
        }
        Ok(Self { files: files.collect(), tensors, order, place })
    }
}

fn checked_tensor(tensor: HandoffTensor, files: usize, room: Room<'_>) -> Result<Tensor, String> {
    let problem = |problem: &str| format!("sent the tensor {:?}, {problem}", tensor.name);
    let number = |number: u64| usize::try_from(number).map_err(|_| problem("whose numbers are too large"));
    let numbers = |list: &[u64]| list.iter().map(|&each| number(each)).collect::<Result<Vec<_>, _>>();
    let dtype = dtype(&tensor.dtype).ok_or_else(|| problem("whose type is unknown"))?;
    let (shape, strides) = (numbers(&tensor.shape)?, numbers(&tensor.strides)?);
    let (file, arena) = (number(tensor.file.into())?, number(tensor.arena.into())?);
    let (offset, bytes) = (number(tensor.offset)?, number(tensor.bytes)?);
    if bytes_of(dtype, &shape) != Some(bytes) {
        return Err(problem("whose bytes are not as many as its type and shape say"));
    }
    if file >= files {
        return Err(problem("of a file that is not there"));
    }
    let span = match strides.is_empty() {
        true => bytes,
        false => strides::span(dtype, &shape, &strides).map_err(problem)?,
    };
    let strides = (!strides.is_empty() && !strides::are_row_by_row(&shape, &strides)).then_some(strides);
    let (arena, offset) = match room {
        Room::Ring if strides.is_some() => {
            return Err(problem("whose elements do not follow each other, as they do in a ring"));
        }
        // What an agent says of it means nothing, and need not be what the next one says.
        Room::Ring => (0, 0),
        Room::Arenas { lengths, sliced } => {
            if bytes > 0 {
                check_place(dtype, arena, offset, span, lengths, sliced).map_err(|wrong| problem(&wrong))?;
            }
            (arena, offset)
        }
    };
    Ok(Tensor { name: tensor.name, dtype, shape, strides, file, arena, offset, bytes, span })
}

fn check_place(
    dtype: Dtype,
    arena: usize,
    offset: usize,
    span: usize,
    lengths: &[usize],
    sliced: bool,
) -> Result<(), String> {
    let (alignment, said) =
        if sliced { ((dtype.bitsize() / 8).max(1), "its element") } else { (ALIGNMENT, "256 bytes") };
    if !offset.is_multiple_of(alignment) {
        return Err(format!("which does not begin on a multiple of {said}"));
    }
    let length = *lengths.get(arena).ok_or("in an arena that is not there")?;
    if offset.checked_add(span).is_none_or(|end| end > length) {
        return Err("which lies outside of its arena".to_owned());
    }
    Ok(())
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
        .find(|(first, second)| first.arena == second.arena && first.offset + first.span > second.offset);
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
        let room = Room::Arenas { lengths: &[8 * page_size()], sliced: false };
        let table = Table::parse(&table.encode_to_vec(), room).unwrap();
        let on_pages_of = |position| table.on_pages_of(position);
        assert_eq!(on_pages_of(0), [0]);
        assert_eq!([on_pages_of(1), on_pages_of(3)], [[3, 1]; 2]);
        assert!(on_pages_of(2).is_empty());
    }

    #[test]
    fn a_slice_is_on_the_pages_from_its_first_byte_to_its_last() {
        let page = page_size() as u64;
        let slice = |name: &str, offset| HandoffTensor {
            shape: vec![4, 10],
            strides: vec![page, 1],
            ..tensor(name, offset, 40)
        };
        let table = HandoffTable {
            files: vec![HandoffFile::default()],
            tensors: vec![slice("a", 5), tensor("b", 4 * page, 3), slice("c", 5 * page)],
        };
        let parse = |sliced| {
            let room = Room::Arenas { lengths: &[9 * page_size()], sliced };
            Table::parse(&table.encode_to_vec(), room)
        };
        let sliced = parse(true).unwrap();
        assert_eq!(sliced.tensors()[0].strides.as_deref(), Some(&[page_size(), 1][..]));
        assert_eq!(sliced.tensors()[0].span, 3 * page_size() + 10);
        assert_eq!([0, 1, 2].map(|position| sliced.on_pages_of(position)), [[0], [1], [2]]);
        // Nobody asked for slices, so everything begins where whole tensors do.
        assert!(parse(false).unwrap_err().contains("256"));
    }

    #[test]
    fn any_bytes_are_a_table_inside_of_its_arenas_or_none() {
        bolero::check!().with_type::<(bool, Vec<u8>)>().for_each(|(sliced, bytes)| {
            let arenas = [4096, 300];
            let room = Room::Arenas { lengths: &arenas, sliced: *sliced };
            let Ok(table) = Table::parse(bytes, room) else { return };
            for (position, tensor) in table.tensors().iter().enumerate() {
                assert!(tensor.bytes <= tensor.span || tensor.bytes == 0);
                assert!(tensor.bytes == 0 || tensor.offset + tensor.span <= arenas[tensor.arena]);
                assert_eq!(tensor.bytes == 0, table.on_pages_of(position).is_empty());
            }
        });
    }
}
