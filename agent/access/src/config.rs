//! What an operator decides about who may read what.

use std::{path::PathBuf, time::Duration};

use url::Url;

/// As whom a pod's volumes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhoReads {
    /// As the pod.
    Pod,
    /// As the node: every pod may read what the node may.
    Node,
}

/// What an operator decides about who may read what. Checked by the agent's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// As whom a pod's volumes are read.
    pub identity: WhoReads,
    /// Where a pod's token is exchanged for an access token.
    pub sts_endpoint: Url,
    /// Which of a pod's tokens is exchanged, and for whom; without one, pods read `gs://` as nobody in particular.
    pub exchange: Option<Exchange>,
    /// Directories of the node that pods may name as `file://`: globs, whose `*` does not cross `/`. What lies below one
    /// that matches may be named too.
    pub files: Vec<String>,
    /// Addresses that pods may name as `http://` and `https://`, with all that is below them: the node reaches servers that
    /// pods do not.
    pub web: Vec<Url>,
    /// Whether a pod may have a snapshot kept for ever: what is pinned fills the disk, and only an operator unpins it.
    pub pods_may_pin: bool,
    /// Volumes below it are pods', and all others are the operator's.
    pub kubelet_directory: PathBuf,
    /// How long an origin's answer to a credential counts that has no end of its own.
    pub answers_keep: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
}

/// Which of a pod's tokens is exchanged, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Audience of the token, as CSIDriver's `tokenRequests` asks for it.
    pub audience: String,
    /// Audience of the exchange: the identity pool's provider that knows this cluster.
    pub provider: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity: WhoReads::Pod,
            sts_endpoint: Url::parse("https://sts.googleapis.com/v1/token").expect("it is a URL"),
            exchange: None,
            files: Vec::new(),
            web: Vec::new(),
            pods_may_pin: false,
            kubelet_directory: "/var/lib/kubelet".into(),
            answers_keep: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
        }
    }
}
