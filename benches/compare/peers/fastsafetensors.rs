//! fastsafetensors: from files to tensors by many threads.

use anyhow::Result;
use weightd_benches::Client;

use crate::world::World;

/// How it is told to.
pub(crate) const SETTINGS: &str = "`SafeTensorsFileLoader` of all shards at once on the processor, its copier without GPUDirect (`nogds`), 16 threads, \
                                   blocks of 256 MiB";

/// One that reads files.
pub(crate) fn of_files(world: &World, directory: &str) -> Result<Client> {
    world.client("by_fastsafetensors.py", directory, "", &[])
}
