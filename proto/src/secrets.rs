//! Messages that hold secrets are shown without them.

use std::fmt;

use crate::v1::{Pod, ServiceAccountToken};

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("uid", &self.uid)
            .field("service_account", &self.service_account)
            .field("tokens", &self.tokens)
            .field("secrets", &self.secrets.keys())
            .finish()
    }
}

impl fmt::Debug for ServiceAccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::PublishRequest;

    #[test]
    fn a_request_shows_no_secret() {
        let token = ServiceAccountToken { token: "hunter2".to_owned(), expires_at: None };
        let pod = Pod {
            name: "reader".to_owned(),
            tokens: [("audience".to_owned(), token)].into(),
            secrets: [("HF_TOKEN".to_owned(), "hunter2".to_owned())].into(),
            ..Pod::default()
        };
        let shown = format!("{:?}", PublishRequest { pod: Some(pod), ..PublishRequest::default() });
        assert!(
            shown.contains("reader") && shown.contains("HF_TOKEN") && shown.contains("audience"),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
