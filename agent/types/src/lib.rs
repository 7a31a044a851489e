//! The words of weightd, as types: sources, snapshots, objects, blobs, chunks, layouts.
//!
//! Nothing here touches a disk or a network, so every rule about names, ranges and placement can be tested
//! with values alone. All other rooms use this one; it uses none of them.

mod blob;
mod checksum;
mod digest;
mod model_files;
mod object;
mod path;
mod placement;
mod safetensors_header;
mod selection;
mod slices;
mod snapshot;
mod units;
mod uri;
mod weight_index;

pub use blob::{BlobId, BlobKey, Layout, UnknownLayout};
pub use checksum::{Checksums, Crc32c};
pub use digest::{Digest, InvalidDigest};
pub use model_files::ModelFiles;
pub use object::{Object, Version};
pub use path::{InvalidPath, ObjectPath};
pub use placement::{Piece, Placement, Run};
pub use safetensors_header::{
    DATA_ALIGNMENT, HEADER_LENGTH_BYTES, HeaderError, MAX_HEADER_BYTES, SafetensorsHeader, TENSOR_ALIGNMENT,
};
pub use selection::{InvalidGlob, Selected, Selection};
pub use slices::{Cut, SliceError, Slicing, TensorSlice};
pub use snapshot::{
    MAX_OBJECT_BYTES, MAX_SNAPSHOT_BYTES, RESERVED_NAME, Snapshot, SnapshotError, SnapshotId, SnapshotKey,
};
pub use units::{ByteRange, CHUNK_BYTES, InvalidByteSize, display_bytes, parse_bytes};
pub use uri::{InvalidUri, Scheme, SourceUri};
pub use weight_index::{WeightIndex, WeightIndexError};
