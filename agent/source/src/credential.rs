//! As whom an origin is asked. The node's own identity is one among others, and nothing falls back to it.

use std::{fmt, path::PathBuf, sync::Arc};

use url::Url;

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps a text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Keys of S3.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Keys {
    /// `AWS_ACCESS_KEY_ID`
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_access_key: Secret,
    /// `AWS_SESSION_TOKEN`, of keys that end.
    pub session_token: Option<Secret>,
    /// `AWS_REGION`; else the node's, else asked of Amazon.
    pub region: Option<String>,
}

/// As whom an origin is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Credential {
    /// As this process: what its configuration and environment say.
    Node,
    /// As nobody in particular.
    Anonymous,
    /// With an access token of Google's.
    Google(Secret),
    /// With keys of S3.
    S3(S3Keys),
    /// With a token of the Hugging Face hub.
    Hub(Secret),
    /// As this process, and confined to a directory of this machine: no link leads out of it. Its path has no links.
    Directory(PathBuf),
    /// As nobody in particular, and confined to these addresses: no redirect leads out of them, or to another server.
    Web(Arc<[Url]>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let keys = S3Keys {
            access_key_id: "AKIA".to_owned(),
            secret_access_key: Secret::new("hunter2"),
            session_token: Some(Secret::new("hunter2")),
            region: None,
        };
        for credential in [
            Credential::Google(Secret::new("hunter2")),
            Credential::Hub(Secret::new("hunter2")),
            Credential::S3(keys),
        ] {
            assert!(!format!("{credential:?}").contains("hunter2"));
        }
    }
}
