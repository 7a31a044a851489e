//! What the driver is told, checked before anything is touched.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Longest node name that the interface allows.
const MAX_NODE_BYTES: usize = 256;
/// kubelet waits for two minutes; what the driver answers must arrive before.
const READY_WITHIN_SECONDS: std::ops::RangeInclusive<u64> = 1..=110;

/// Options of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The socket that kubelet's calls come by.
    pub endpoint: PathBuf,
    /// The agent's socket.
    pub agent: PathBuf,
    /// As the cluster calls the node.
    pub node_id: String,
    /// Where kubelet looks for plugins; without it kubelet is not told.
    pub registration_directory: Option<PathBuf>,
    /// The endpoint as kubelet sees it.
    pub kubelet_endpoint: PathBuf,
    /// Where targets lie.
    pub kubelet_directory: PathBuf,
    /// Where health and metrics are served, if anywhere.
    pub http_address: Option<SocketAddr>,
    /// How long a volume that must be ready is waited for in one call.
    pub ready_within: Duration,
}

/// An option that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option} {why}")]
pub struct InvalidOption {
    option: &'static str,
    why: String,
}

impl Options {
    /// Reads an endpoint, `unix:///path` or `unix:/path`.
    ///
    /// # Errors
    /// It names no absolute path.
    pub fn endpoint(text: &str) -> Result<PathBuf, InvalidOption> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
        let path = path.map(PathBuf::from).filter(|path| path.is_absolute() && path.file_name().is_some());
        let why = || format!("{text:?} names no socket: write unix:///csi/csi.sock");
        path.ok_or_else(|| InvalidOption { option: "--endpoint", why: why() })
    }

    /// Reads where health and metrics are served, or `off`.
    ///
    /// # Errors
    /// It is no address.
    pub fn http_address(text: &str) -> Result<Option<SocketAddr>, InvalidOption> {
        if text == "off" {
            return Ok(None);
        }
        let why = || format!("{text:?} is no address: write 127.0.0.1:9465, or off");
        text.parse().map(Some).map_err(|_| InvalidOption { option: "--http-address", why: why() })
    }

    /// Checks what no single option shows.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> Result<(), InvalidOption> {
        let wrong = |option, why: String| Err(InvalidOption { option, why });
        if self.node_id.is_empty() || self.node_id.len() > MAX_NODE_BYTES {
            return wrong(
                "--node-id",
                "must be a name of 1 to 256 bytes; NODE_NAME is used when it is not given".to_owned(),
            );
        }
        if !self.kubelet_directory.is_absolute() || self.kubelet_directory.parent().is_none() {
            let why = format!("{} is not an absolute path below /", self.kubelet_directory.display());
            return wrong("--kubelet-directory", why);
        }
        if !self.kubelet_endpoint.is_absolute() {
            let why = format!("{} is not an absolute path", self.kubelet_endpoint.display());
            return wrong("--kubelet-endpoint-path", why);
        }
        if !READY_WITHIN_SECONDS.contains(&self.ready_within.as_secs()) {
            let (least, most) = (READY_WITHIN_SECONDS.start(), READY_WITHIN_SECONDS.end());
            return wrong(
                "--ready-within",
                format!("must be {least} to {most} seconds: kubelet waits for 120"),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            endpoint: "/csi/csi.sock".into(),
            agent: "/run/weightd/weightd.sock".into(),
            node_id: "node-1".to_owned(),
            registration_directory: None,
            kubelet_endpoint: "/csi/csi.sock".into(),
            kubelet_directory: "/var/lib/kubelet".into(),
            http_address: None,
            ready_within: Duration::from_secs(110),
        }
    }

    #[test]
    fn endpoints_are_unix_sockets() {
        for good in ["unix:///csi/csi.sock", "unix:/csi/csi.sock"] {
            assert_eq!(Options::endpoint(good), Ok("/csi/csi.sock".into()));
        }
        for bad in ["", "/csi/csi.sock", "unix://csi.sock", "unix:///", "tcp://127.0.0.1:1"] {
            let error = Options::endpoint(bad).unwrap_err().to_string();
            assert!(error.contains("unix:///csi/csi.sock"), "{error}");
        }
    }

    #[test]
    fn addresses_may_be_off() {
        assert_eq!(Options::http_address("off"), Ok(None));
        assert_eq!(Options::http_address("[::]:9465").unwrap().unwrap().port(), 9465);
        assert!(Options::http_address("9465").unwrap_err().to_string().contains("127.0.0.1:9465"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(options().check(), Ok(()));
        let wrong = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(wrong(|options| options.node_id.clear()).contains("NODE_NAME"));
        assert!(wrong(|options| options.kubelet_directory = "/".into()).contains("--kubelet-directory"));
        assert!(
            wrong(|options| options.kubelet_endpoint = "csi.sock".into()).contains("--kubelet-endpoint-path")
        );
        assert!(
            wrong(|options| options.ready_within = Duration::from_secs(115))
                .contains("kubelet waits for 120")
        );
    }
}
