//! Completion scripts and manual pages, made from the definition of the command line.

use std::path::Path;

use crate::{
    cli,
    error::CommandError,
    output::{Output, written},
};

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell, output: &Output) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::definition(), "weightctl", &mut script);
    output.raw(&script)
}

/// Prints the manual page, or writes one per command into a directory.
pub(crate) fn man(directory: Option<&Path>, output: &Output) -> Result<(), CommandError> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(cli::definition())
            .render(&mut page)
            .map_err(|error| written("the page", error))?;
        return output.raw(&page);
    };
    clap_mangen::generate_to(cli::definition(), directory)
        .map_err(|error| written(&directory.display().to_string(), error))
}
