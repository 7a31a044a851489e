//! Blobs on local disk.
//!
//! A [`Store`] is one directory: flat preallocated blob files, a small manifest beside each that is complete,
//! snapshot directories of hard links, and an index of what changes (`docs/STORE.md` has every byte). A blob that
//! is still arriving is a [`PartialBlob`]: its chunks are written, then recorded, and in the end the whole is
//! committed. Reading order of the modules: `paths` and `manifest` (the format), `index`, `open` (recovery),
//! `partial` and `commit` (a blob's way in), `snapshots` and `links`, `usage`, `evict` and `garbage` (room), `caching` (page cache), `landing` (shared memory), `verify` (rot), `wishes` (what is
//! wanted here), `tiers` (read-only homes).

mod caching;
mod catalog;
mod commit;
mod config;
mod error;
mod evict;
mod garbage;
mod gate;
mod index;
pub mod io;
mod landing;
mod links;
mod manifest;
mod metrics;
mod open;
mod partial;
mod paths;
mod snapshots;
mod store;
mod tiers;
mod usage;
mod verify;
mod wishes;

pub use catalog::{SnapshotRecord, SnapshotUse};
pub use config::Config;
pub use error::StoreError;
pub use evict::Removed;
pub use garbage::Collected;
pub use index::Job;
pub use landing::Landing;
pub use manifest::{
    BlobManifest, ManifestError, SnapshotEntry, SnapshotManifest, parse_blob_manifest,
    parse_snapshot_manifest,
};
pub use metrics::Metrics;
pub use partial::{PartialBlob, WantedBlob};
pub use paths::{FORMAT_VERSION, Paths, format_line};
pub use store::Store;
pub use tiers::{TierChange, TierInfo};
pub use usage::{DiskUsage, Reservation};
pub use verify::{ObjectPart, StoredBlob};
pub use wishes::Wish;
