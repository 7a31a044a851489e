//! Where volumes may be: below kubelet's directory, and nowhere else.

use std::path::{Component, Path, PathBuf};

/// Longest path of the kernel.
const MAX_BYTES: usize = 4096;

/// A path that cannot be a volume's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTarget {
    #[error("the target path is missing")]
    Missing,
    #[error("the target {target:?} is not below kubelet's directory {}: say where that is with --kubelet-directory", kubelet.display())]
    Elsewhere { target: String, kubelet: PathBuf },
}

/// Checks a target by its words alone: nothing is looked at, since what is mounted there may not answer.
pub(crate) fn check(target: &str, kubelet: &Path) -> Result<PathBuf, InvalidTarget> {
    if target.is_empty() {
        return Err(InvalidTarget::Missing);
    }
    let path = Path::new(target);
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let is_below = path.starts_with(kubelet) && path != kubelet;
    let is_path = target.len() <= MAX_BYTES && !target.chars().any(char::is_control) && path.is_absolute();
    if !is_path || !is_below || !path.components().all(is_plain) {
        let target = target.chars().take(200).collect();
        return Err(InvalidTarget::Elsewhere { target, kubelet: kubelet.to_owned() });
    }
    // Without doubled slashes and the like.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lie_below_kubelets_directory() {
        let kubelet = Path::new("/var/lib/kubelet");
        let good = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/w/mount";
        assert_eq!(check(good, kubelet), Ok(PathBuf::from(good)));
        assert_eq!(check("/var/lib//kubelet/./x/", kubelet), Ok(PathBuf::from("/var/lib/kubelet/x")));
        assert_eq!(check("", kubelet), Err(InvalidTarget::Missing));
        let long = format!("/var/lib/kubelet/{}", "x/".repeat(4000));
        for bad in [
            "/etc",
            "/var/lib/kubelet",
            "/var/lib/kubelet/",
            "/var/lib/kubelet2/x",
            "/var/lib/kubelet/../../../etc",
            "/var/lib/kubelet/x/..",
            "var/lib/kubelet/x",
            "x",
            "/var/lib/kubelet/x\0y",
            long.as_str(),
        ] {
            assert!(matches!(check(bad, kubelet), Err(InvalidTarget::Elsewhere { .. })), "{bad}");
        }
    }
}
