//! A second Ctrl-C or SIGTERM. The first asks for a clean end; whoever sends another has waited long enough.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::Exit;

/// Ends the process at the second signal, from within its handler: the runtime may be what hangs.
///
/// # Errors
/// The system gives no signals.
pub fn end_at_the_second() -> io::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
        // In this order: what is registered first is called first, and must not see its own signal.
        flag::register_conditional_shutdown(signal, exit as i32, Arc::clone(&asked))?;
        flag::register(signal, Arc::clone(&asked))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may panic and wait")]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// Set in the process that is to be ended.
    const SPINS: &str = "WEIGHTD_TEST_SPINS";

    fn spin() -> ! {
        end_at_the_second().unwrap();
        writeln!(io::stdout(), "\nspinning").unwrap();
        loop {
            std::hint::spin_loop();
        }
    }

    fn spinning() -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["signals::tests::a_process_that_never_yields_ends_at_the_second", "--nocapture"]);
        let mut child = command.env(SPINS, "1").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "spinning"));
        child
    }

    #[test]
    fn a_process_that_never_yields_ends_at_the_second() {
        if std::env::var_os(SPINS).is_some() {
            spin();
        }
        for (signals, code) in [
            ([Signal::INT, Signal::INT], 130),
            ([Signal::TERM, Signal::TERM], 143),
            ([Signal::INT, Signal::TERM], 143),
        ] {
            let mut child = spinning();
            kill_process(Pid::from_child(&child), signals[0]).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            assert!(child.try_wait().unwrap().is_none(), "the first is not for the handler");
            kill_process(Pid::from_child(&child), signals[1]).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }
}
