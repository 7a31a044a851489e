//! What an operator decides about fetching.

use std::time::Duration;

/// What an operator decides about fetching. Checked by the agent's configuration; see the fields for bounds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Longest range of one request, at least a chunk. Long ranges cost fewer requests, and a bucket gives each
    /// connection only so much.
    pub range_bytes: u64,
    /// Fewest requests in flight, at least 1.
    pub min_requests: usize,
    /// Most requests in flight. Each holds one chunk buffer, so more than there are buffers does not help.
    pub max_requests: usize,
    /// A request that delivered nothing for so long gets a second one beside it.
    pub stall: Duration,
    /// A request and its second that delivered nothing for so long are given up, and retried.
    pub give_up: Duration,
    /// Attempts without a single byte of progress before a range fails.
    pub attempts: u32,
    /// Wait before the first retry; doubles with each.
    pub backoff: Duration,
    /// Longest wait between retries, unless the origin asks for more.
    pub backoff_limit: Duration,
    /// Times an object is fetched anew when it does not match its checksum.
    pub refetches: u32,
    /// Most bytes a second from all origins together.
    pub bandwidth_bytes: Option<u64>,
    /// Bytes a second at which what is stored is read again, to find rot. `None` reads nothing.
    pub scrub_bytes: Option<u64>,
    /// Blobs in flight at once; each holds a file open.
    pub open_blobs: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            range_bytes: 64 << 20,
            min_requests: 4,
            max_requests: 32,
            stall: Duration::from_secs(3),
            give_up: Duration::from_secs(30),
            attempts: 8,
            backoff: Duration::from_millis(200),
            backoff_limit: Duration::from_secs(10),
            refetches: 2,
            bandwidth_bytes: None,
            scrub_bytes: Some(8 << 20),
            open_blobs: 128,
        }
    }
}
