//! How many descriptors there is room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{keeper::CLIENTS, protocol::DESCRIPTORS};

/// Descriptors that are not for keeping: those of clients, of messages under way, and the process's own.
const SPARE: usize = CLIENTS + 2 * DESCRIPTORS;

/// Makes as much as this process may have, and says how many descriptors it can keep. What a process is given at first,
/// often 1024, is meant for programs of another kind.
pub(crate) fn make() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX).saturating_sub(SPARE)
}
