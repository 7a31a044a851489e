//! instanttensor: from files to GPU memory, past the page cache.

use anyhow::Result;
use weightd_benches::Client;

use crate::world::World;

/// How it is told to.
pub(crate) const SETTINGS: &str = "`safe_open` of all shards at once, as it chooses";

/// One that reads files. Where there is no GPU it says so.
pub(crate) fn of_files(world: &World, directory: &str) -> Result<Client> {
    world.client("by_instanttensor.py", directory, "", &[])
}
