//! Disk images and exports in the store format.
//!
//! An image is an ext4 file system that holds a store which nobody changes: blobs, directories of snapshots, manifests
//! (`docs/STORE.md`). It is built without a mount, a loop device or any privilege, in one pass over its sources and in the order of
//! the disk. Reading order of the modules: `contents` (what goes in), `tree` and `disk` (where it lies), `steps` (in which order it
//! is written), `arrival` and `writer` (how), `output` (where to); then `inspect`, which reads an image without mounting it, and
//! `export`, which fills a mounted file system instead.

mod archive;
mod arrival;
mod boot_note;
mod build;
mod contents;
mod disk;
mod error;
mod export;
mod ext4;
mod finished;
mod inspect;
mod instructions;
mod output;
mod provenance;
mod steps;
mod tree;
mod writer;

pub use build::{Build, Built, BuiltSnapshot, Draft, Progress, build};
pub use contents::Model;
pub use error::ImageError;
pub use export::{Exported, export};
pub use inspect::{Fault, ListedSnapshot, Listing, Verified, list, verify};
pub use instructions::instructions;
pub use output::Output;
