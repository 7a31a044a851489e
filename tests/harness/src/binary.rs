//! The programs under test.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The built program `name`, such as `weightctl`, of the profile in which the caller runs.
///
/// Cargo tells a test only about programs of its own package, so this looks where Cargo puts them all: beside the
/// test's directory `deps`. `cargo test` builds those
/// whose packages have integration tests, which is why each package with a program has some.
///
/// # Panics
/// When it is not built.
pub fn binary(name: &str) -> PathBuf {
    let here = env::current_exe().expect("Linux knows a program's path");
    let found =
        here.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        let profile =
            if here.components().any(|part| part.as_os_str() == "release") { " --release" } else { "" };
        panic!(
            "{name} is not built beside {}: run `cargo build{profile} --workspace --bins`",
            here.parent().unwrap_or(Path::new("/")).display()
        )
    })
}
