//! How a volume may be asked for: as a file system, read-only, for any number of readers.

use weightd_proto::csi::{
    VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};

/// What a volume is anyway.
const HARMLESS_FLAGS: [&str; 4] = ["ro", "nosuid", "nodev", "noatime"];

/// Why a volume cannot be asked for like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidCapability {
    #[error("a volume capability is missing: say how the volume is to be accessed")]
    Missing,
    #[error("weights are files, not a block device: leave out volumeMode: Block")]
    Block,
    #[error("weights are read-only, so no node can write them: write accessModes: [ReadOnlyMany]")]
    Writers,
    #[error(
        "the mount option {flag:?} is not supported: volumes are always ro, nosuid and nodev; leave the others out"
    )]
    Flag { flag: String },
    #[error(
        "the file system type {kind:?} is not supported: weights are shown as they are; leave fsType out"
    )]
    Kind { kind: String },
}

/// Checks one. Whoever writes "one node writes" means to read: kubelet says it of every inline volume.
pub(crate) fn check(capability: Option<&VolumeCapability>) -> Result<(), InvalidCapability> {
    let capability = capability.ok_or(InvalidCapability::Missing)?;
    match &capability.access_type {
        None => return Err(InvalidCapability::Missing),
        Some(AccessType::Block(_)) => return Err(InvalidCapability::Block),
        Some(AccessType::Mount(mount)) => {
            if !mount.fs_type.is_empty() {
                return Err(InvalidCapability::Kind { kind: mount.fs_type.chars().take(50).collect() });
            }
            if let Some(flag) = mount.mount_flags.iter().find(|flag| !HARMLESS_FLAGS.contains(&flag.as_str()))
            {
                return Err(InvalidCapability::Flag { flag: flag.chars().take(50).collect() });
            }
        }
    }
    match capability.access_mode.as_ref().ok_or(InvalidCapability::Missing)?.mode() {
        Mode::SingleNodeWriter
        | Mode::SingleNodeReaderOnly
        | Mode::MultiNodeReaderOnly
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => Ok(()),
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => Err(InvalidCapability::Writers),
        Mode::Unknown => Err(InvalidCapability::Missing),
    }
}

#[cfg(test)]
mod tests {
    use weightd_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn capability(access_type: AccessType, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    fn mount(fs_type: &str, flags: &[&str]) -> AccessType {
        let mount_flags = flags.iter().map(ToString::to_string).collect();
        AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), mount_flags })
    }

    #[test]
    fn readers_are_served_however_they_ask() {
        for mode in [
            Mode::SingleNodeWriter,
            Mode::SingleNodeReaderOnly,
            Mode::MultiNodeReaderOnly,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
        ] {
            assert_eq!(check(Some(&capability(mount("", &["ro"]), mode))), Ok(()), "{mode:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let reader = Mode::MultiNodeReaderOnly;
        assert_eq!(check(None), Err(InvalidCapability::Missing));
        assert_eq!(check(Some(&VolumeCapability::default())), Err(InvalidCapability::Missing));
        let block = AccessType::Block(BlockVolume {});
        assert_eq!(check(Some(&capability(block, reader))), Err(InvalidCapability::Block));
        for mode in [Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            assert_eq!(check(Some(&capability(mount("", &[]), mode))), Err(InvalidCapability::Writers));
        }
        assert_eq!(check(Some(&capability(mount("", &[]), Mode::Unknown))), Err(InvalidCapability::Missing));
        let flag = InvalidCapability::Flag { flag: "rw".to_owned() };
        assert_eq!(check(Some(&capability(mount("", &["ro", "rw"]), reader))), Err(flag));
        let kind = InvalidCapability::Kind { kind: "ext4".to_owned() };
        assert_eq!(check(Some(&capability(mount("ext4", &[]), reader))), Err(kind));
    }
}
