//! Licences and banned packages, as `deny.toml` says.
//!
//! cargo-deny reads the same file and checks more; building it takes minutes, so it runs only where it is installed.
//! What must never slip through is checked here from `cargo metadata` alone.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::{self, find};

/// Checks all packages that are built on Linux.
pub(super) fn check(root: &Path) -> Result<()> {
    if find("cargo-deny").is_some() {
        return command::run(
            Command::new("cargo-deny").args(["check", "bans", "licenses", "sources"]).current_dir(root),
        );
    }
    let rules: toml::Table =
        fs::read_to_string(root.join("deny.toml"))?.parse().context("reading deny.toml")?;
    let allowed = strings(&rules["licenses"]["allow"]);
    let banned: BTreeSet<String> = rules["bans"]["deny"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ban| ban.get("crate")?.as_str().map(str::to_owned))
        .collect();
    let complaints: Vec<String> =
        packages(root)?.iter().filter_map(|package| complaint(package, &allowed, &banned)).collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    Ok(())
}

/// The packages that are really built: metadata also lists what only other systems need.
fn packages(root: &Path) -> Result<Vec<Value>> {
    let arguments = ["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let metadata = command::output(command::cargo(root).args(arguments))?;
    let mut metadata: Value = serde_json::from_str(&metadata)?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("metadata without a resolution")?;
    let built: BTreeSet<String> =
        nodes.iter().filter_map(|node| node["id"].as_str().map(str::to_owned)).collect();
    let packages = metadata["packages"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let is_built = |package: &Value| package["id"].as_str().is_some_and(|id| built.contains(id));
    Ok(packages.into_iter().filter(is_built).collect())
}

fn complaint(package: &Value, allowed: &BTreeSet<String>, banned: &BTreeSet<String>) -> Option<String> {
    let name = package["name"].as_str().unwrap_or_default();
    if banned.contains(name) {
        return Some(format!("{name} is banned (deny.toml says why)"));
    }
    let source = package["source"].as_str();
    if source.is_some_and(|source| !source.starts_with("registry+") && !source.starts_with("sparse+")) {
        return Some(format!("{name} does not come from a registry"));
    }
    let license = package["license"].as_str().unwrap_or("none");
    (!permits(license, allowed))
        .then(|| format!("{name} has the licence {license}, which deny.toml does not allow"))
}

/// Whether an SPDX expression can be met with allowed licences. Parentheses occur around `OR` only, so a conjunction
/// of disjunctions is enough; anything deeper is refused, which a person then looks at.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let one = |license: &str| allowed.contains(license.trim().trim_matches(['(', ')']));
    if expression.contains('(') {
        return expression.split(" AND ").all(|part| part.split(" OR ").any(one));
    }
    // Without parentheses AND binds tighter. A slash is how OR was once written.
    expression.replace('/', " OR ").split(" OR ").any(|part| part.split(" AND ").all(one))
}

fn strings(list: &toml::Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_as_spdx_says() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "MIT AND Apache-2.0",
            "GPL-3.0 OR MIT AND Apache-2.0",
        ] {
            assert!(permits(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "none"] {
            assert!(!permits(bad, &allowed), "{bad}");
        }
    }
}
