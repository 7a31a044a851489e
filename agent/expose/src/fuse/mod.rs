//! Snapshots that still load, as one FUSE file system with a directory for each.
//!
//! `nodes` numbers files so that any agent can go on where another stopped, `tree` makes a snapshot's directories from
//! its manifest, `filesystem` answers the kernel, `connection` mounts, and takes over what a keeper kept,
//! `passthrough` lets the kernel read complete files itself.

mod connection;
mod filesystem;
mod nodes;
mod passthrough;
mod pending;
mod tree;

pub(crate) use connection::{Connection, Saved, is_known};
pub(crate) use filesystem::{OpenThrough, Shared, VolumesFilesystem};
pub(crate) use nodes::{Family, Node};
pub(crate) use passthrough::{Passthrough, Registered};
pub(crate) use tree::Tree;
