//! What commands show: the protocol's answers with names and units for people and programs.
//!
//! These shapes are what `-o json` promises to scripts, so they are written out here and do not follow the
//! protocol by themselves.

mod garbage;
mod image;
mod object;
mod snapshot;
mod status;
mod table;
mod verify;
mod volume;

pub(crate) use garbage::{GarbageView, RemovedView};
pub(crate) use image::{BuiltView, ExportedView, ImageView, VerifiedImageView};
pub(crate) use object::{ObjectsView, ResolveView};
pub(crate) use snapshot::{DetachedView, PrefetchView, SnapshotView, SnapshotsView, State};
pub(crate) use status::StatusView;
pub(crate) use table::{duration, percent, rate};
pub(crate) use verify::{BadChunkView, VerifyView};
pub(crate) use volume::{VolumeView, VolumesView};
