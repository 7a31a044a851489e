//! Where weights come from.
//!
//! A [`Source`] lists objects and streams ranges of them, each read pinned to the version that was listed. It
//! does not retry, hedge or sum: that is the fetch room's work, so that all origins get it alike. An [`Opener`]
//! makes the source for a URI, as the node or as someone else
//! ([`Credential`]); [`Origins`] is the one that reaches real origins. [`resolve`] turns a listing and a
//! selection into a snapshot.
//!
//! Every client checks certificates against the system's authorities, or, where they are set, those in
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` alone.

mod answer;
mod cloud;
mod config;
#[cfg(feature = "testing")]
pub mod conformance;
mod credential;
mod error;
#[cfg(feature = "testing")]
mod faulty;
mod file;
mod gcs;
mod hub;
mod memory;
mod origins;
mod pages;
mod redirect;
mod resolve;
mod source;
mod web;
mod web_server;

pub use answer::chain;
pub use cloud::ObjectStoreSource;
pub use config::{AzureConfig, Config, Environment, GcsConfig, HubConfig, S3Config, Settings};
pub use credential::{Credential, S3Keys, Secret};
pub use error::SourceError;
#[cfg(feature = "testing")]
pub use faulty::{Fault, Faults, FaultyOpener, FaultySource, Rule};
pub use file::FileSource;
pub use gcs::{GcsSource, Upload};
pub use hub::HubSource;
pub use memory::{MemoryOrigin, MemorySource};
pub use origins::Origins;
pub use redirect::is_below;
pub use resolve::{Resolution, ResolveError, resolve};
pub use source::{ByteStream, Listed, Opener, Source};
pub use web::client as http_client;
pub use web_server::HttpSource;
