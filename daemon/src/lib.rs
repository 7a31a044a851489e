//! What programs that run on and on have in common, so that the agent and the CSI driver behave alike: a socket that is its
//! owner's alone, an end at the second signal, logs on stderr, exit codes, and the page of metrics.

mod exit_codes;
pub mod logging;
pub mod metrics;
mod signals;
mod socket;

pub use exit_codes::Exit;
pub use logging::{LogConfig, LogFormat};
pub use signals::end_at_the_second;
pub use socket::{Socket, SocketError, SocketFile};
