//! Rust client of the agent.
//!
//! With the feature `control`, which is on unless it is turned off, of its control socket:
//!
//! ```no_run
//! # #[cfg(feature = "control")]
//! # async fn example() -> Result<(), weightd_client::Error> {
//! let client = weightd_client::Client::connect("/run/weightd/weightd.sock".as_ref()).await?;
//! for snapshot in client.list().await? {
//!     println!("{} {}", snapshot.id, snapshot.source);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! And always of the sockets where it lends tensors in shared memory: [`handoff`].

#[cfg(feature = "control")]
mod control;
pub mod handoff;

#[cfg(feature = "control")]
pub use control::{Client, ConnectError, DEFAULT_SOCKET, Error, Events};
