//! Snapshots as directories that processes read and map.
//!
//! A complete snapshot is a read-only bind of its directory in the store. One that still loads is a directory of the
//! node's one FUSE file system, and its volume a bind of that: present chunks are answered at once, missing ones raise
//! a demand. Files that complete are from then on opened straight from their blobs. What keeps a volume alive when the
//! agent dies is the keeper, which holds the connection. Reading order: `mount_table`, `bind`, `shown`, `reading`,
//! `fuse`, `keeper`, `volumes`, `warm_up`, `handoff`.

mod bind;
mod config;
mod error;
mod events;
mod free_memory;
mod fuse;
mod handoff;
mod keeper;
mod metrics;
mod mount_table;
mod reading;
mod session;
mod shown;
mod sys;
mod volumes;
mod warm_up;

pub use config::Config;
pub use error::ExposeError;
pub use events::Event;
pub use handoff::{HandoffConfig, Refusal};
pub use metrics::Metrics;
pub use reading::{Brought, Demands};
pub use shown::Condition;
pub use volumes::{Serving, Volume, Volumes, WeakVolumes};
