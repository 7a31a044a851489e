//! Who a volume is for, and what it brings to prove it.

use std::{collections::BTreeMap, time::SystemTime};

use weightd_source::Secret;

/// Who a volume is for, as kubelet says it.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its service account's tokens, by audience.
    pub tokens: BTreeMap<String, Token>,
    /// What its volume's secret holds.
    pub secrets: BTreeMap<String, Secret>,
}

/// A token of a service account.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token itself.
    pub token: Secret,
    /// When it ends, if that is known.
    pub expires_at: Option<SystemTime>,
}

impl Pod {
    /// What Kubernetes calls its service account.
    pub(crate) fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }

    /// Namespace and name.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Something that its secret holds, and that is not empty.
    pub(crate) fn secret(&self, name: &str) -> Option<Secret> {
        let text = self.secrets.get(name)?.reveal().trim();
        (!text.is_empty()).then(|| Secret::new(text))
    }
}
