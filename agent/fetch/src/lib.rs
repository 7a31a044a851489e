//! From an origin into the store.
//!
//! [`Planner`] is pure: it says which range to ask for next. [`Fetcher`] does the rest: one flight per blob however
//! many prefetches want it, workers that stream ranges into chunk buffers, retries and hedges, and at the end the
//! comparison with what the origin says of the object. What is stored is read again on request (`verify`) and in the
//! background (`scrub`), and repaired. Reading order: `plan`, `line`, `range_reader`, `worker`, `flight`, `confirm`, `transfer`,
//! `fetcher`, `verify`, `scrub`.

mod concurrency;
mod config;
mod confirm;
mod error;
mod fetcher;
mod flight;
mod line;
mod local;
mod metrics;
mod object_sum;
mod plan;
mod prepare;
mod progress;
mod range_reader;
mod reread;
mod scrub;
mod shard_index;
mod throttle;
mod transfer;
mod urgency;
mod verify;
mod worker;

pub use concurrency::Concurrency;
pub use config::Config;
pub use error::FetchError;
pub use fetcher::Fetcher;
pub use line::{Line, Route};
pub use metrics::Metrics;
pub use object_sum::{Mismatch, ObjectSum};
pub use plan::{Planner, Request};
pub use prepare::Prepared;
pub use progress::{BlobProgress, FileProgress};
pub use range_reader::RangeReader;
pub use shard_index::ShardIndex;
pub use transfer::{Completed, Transfer};
pub use verify::{BadChunk, VerifyEvent, VerifySummary};
