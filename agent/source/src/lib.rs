//! Where weights come from.
//!
//! A [`Source`] lists objects and streams ranges of them, each read pinned to the version that was listed. It
//! does not retry, hedge or sum: that is the fetch room's work, so that all origins get it alike. An [`Opener`]
//! makes the source for a URI; [`Origins`] is the one that reaches real origins. [`resolve`] turns a listing and a
//! selection into a snapshot.

mod answer;
mod config;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
mod gcs;
mod memory;
mod origins;
mod resolve;
mod source;
mod web;

pub use config::{AzureConfig, Config, Environment, GcsConfig, HubConfig, S3Config, Settings};
pub use error::SourceError;
pub use gcs::GcsSource;
pub use memory::{MemoryOrigin, MemorySource};
pub use origins::Origins;
pub use resolve::{Resolution, ResolveError, resolve};
pub use source::{ByteStream, Listed, Opener, Source};
