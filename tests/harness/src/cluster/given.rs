//! A cluster that someone else made, such as one of kind's. These variables say how to use it:
//!
//! | variable | what it says | with kind |
//! | --- | --- | --- |
//! | `WEIGHTD_TEST_KUBECONFIG` | its kubeconfig | `kind get kubeconfig >FILE` |
//! | `WEIGHTD_TEST_LOAD` | loads the image archive `{}` into all nodes | `kind load image-archive {}` |
//! | `WEIGHTD_TEST_NODE` | what to put before a command to run it in the node `{}` | `docker exec {}` |
//! | `WEIGHTD_TEST_HOST` | the address at which pods reach this machine | the gateway of Docker's network `kind` |

use std::{env, ffi::OsStr, net::IpAddr, path::Path, process::Command};

use anyhow::{Context, Result};

use super::children::output;

/// How to use it.
#[derive(Debug)]
pub(super) struct Given {
    load: String,
    node: String,
    pub(super) host: IpAddr,
}

impl Given {
    /// What the environment says; nothing when it names no cluster.
    pub(super) fn from_environment() -> Result<Option<(String, Self)>> {
        let Ok(kubeconfig) = env::var("WEIGHTD_TEST_KUBECONFIG") else { return Ok(None) };
        let get = |name: &str| {
            env::var(name).with_context(|| format!("{name} must be set beside WEIGHTD_TEST_KUBECONFIG"))
        };
        let host = get("WEIGHTD_TEST_HOST")?.parse().context("WEIGHTD_TEST_HOST is no address")?;
        Ok(Some((
            kubeconfig,
            Self { load: get("WEIGHTD_TEST_LOAD")?, node: get("WEIGHTD_TEST_NODE")?, host },
        )))
    }

    /// A command in a node.
    pub(super) fn command(&self, node: &str, program: &OsStr) -> Command {
        let mut command = filled(&self.node, node);
        command.arg(program);
        command
    }

    /// Loads an image into all nodes.
    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        output(&mut filled(&self.load, &archive.display().to_string())).map(drop)
    }
}

fn filled(template: &str, with: &str) -> Command {
    let mut words = template.split_whitespace().map(|word| word.replace("{}", with));
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_word_by_word() {
        let command = filled("docker exec {}", "a node");
        assert_eq!(command.get_program(), "docker");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["exec", "a node"]);
    }
}
