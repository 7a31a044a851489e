//! What there is to do.

mod again;
mod cold;
mod durable;
mod eight;
mod first;
mod growth;
mod parallel;
mod pods;
mod volume;

use anyhow::Result;

use crate::{contest::Outcome, world::World};

/// A job, in one or more ways.
type Job = fn(&World) -> Result<Vec<Outcome>>;

/// All of them, by the names that users call them by.
pub(crate) const ALL: [(&str, Job); 9] = [
    ("durable", durable::measure),
    ("cold", cold::measure),
    ("again", again::measure),
    ("parallel", parallel::measure),
    ("volume", volume::measure),
    ("eight", eight::measure),
    ("first", first::measure),
    ("growth", growth::measure),
    ("pods", pods::measure),
];
