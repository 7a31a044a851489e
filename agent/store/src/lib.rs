//! Blobs on local disk.

pub mod io;
