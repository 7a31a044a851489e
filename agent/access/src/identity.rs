//! Who a pod is to an origin: the credential it brings, and what it is called in messages.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use tokio::time::Instant;
use weightd_source::{Credential, S3Keys, Secret};
use weightd_types::{Scheme, SourceUri};

use crate::{AccessError, Config, Pod, config::Exchange};

/// Who asks an origin, for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Principal {
    /// A service account of Kubernetes, which the identity pool knows.
    ServiceAccount { subject: String, provider: String },
    /// Whoever has the keys in a pod's secret; of S3 with the public half of the key.
    Keys { what: String },
    /// Nobody in particular, because nothing else was brought.
    Nobody { why: &'static str, audience: Option<String> },
    /// The node, because the operator lets pods read as the node.
    Node,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount { subject, provider } => match pool(provider) {
                Some(pool) => write!(f, "principal://{pool}/subject/{subject}"),
                None => f.write_str(subject),
            },
            Self::Keys { what } => f.write_str(what),
            Self::Nobody { why, .. } => write!(f, "anonymous, because {why}"),
            Self::Node => f.write_str("the node's own identity"),
        }
    }
}

/// The pool of a provider, without the scheme.
fn pool(provider: &str) -> Option<&str> {
    let path = provider.strip_prefix("//")?;
    path.split_once("/providers/").map(|(pool, _)| pool)
}

impl Principal {
    /// Whoever asks an origin that takes no credentials of pods.
    pub(crate) fn without_credentials() -> Self {
        Self::Nobody { why: "such a source takes no credentials of pods", audience: None }
    }

    /// What to do for someone who was refused, where that is not what the origin's own words say.
    pub(crate) fn remedy(&self, uri: &SourceUri, verdict: &str) -> Option<String> {
        let keys = match uri.scheme() {
            Scheme::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            _ => "HF_TOKEN",
        };
        match (self, uri.scheme()) {
            (Self::ServiceAccount { .. }, _) => {
                Some(format!("grant roles/storage.objectViewer on gs://{} to it", uri.authority()))
            }
            (Self::Nobody { audience: Some(audience), .. }, Scheme::Gs) => Some(format!(
                "ask for tokens of the audience {audience} with tokenRequests in the CSIDriver csi.weightd.io"
            )),
            (Self::Nobody { .. }, Scheme::Gs) => {
                Some("set access.audience and access.provider in the agent's configuration".to_owned())
            }
            (Self::Nobody { .. }, Scheme::S3 | Scheme::Hf) => {
                Some(format!("put {keys} into the secret that the volume's nodePublishSecretRef names"))
            }
            (Self::Keys { .. }, _) if verdict == "401" => {
                Some(format!("renew {keys} in the secret that the volume's nodePublishSecretRef names"))
            }
            _ => None,
        }
    }
}

/// Who asks, before anyone was asked whether it is true.
#[derive(Debug, Clone)]
pub(crate) enum Claim {
    /// A credential that the origin itself knows.
    Ready(Principal, Credential),
    /// A token that is to be exchanged first.
    Token(PodToken),
}

/// A token of a pod's service account.
#[derive(Debug, Clone)]
pub(crate) struct PodToken {
    pub(crate) principal: Principal,
    /// For whom it is exchanged.
    pub(crate) provider: String,
    pub(crate) token: Secret,
    pub(crate) ends: Option<Instant>,
}

impl Claim {
    pub(crate) fn principal(&self) -> &Principal {
        match self {
            Self::Ready(principal, _) | Self::Token(PodToken { principal, .. }) => principal,
        }
    }

    /// Who a pod says it is to the origin of a source.
    pub(crate) fn of(config: &Config, pod: &Pod, uri: &SourceUri) -> Result<Self, AccessError> {
        if config.identity == crate::WhoReads::Node {
            return Ok(Self::Ready(Principal::Node, Credential::Node));
        }
        match uri.scheme() {
            Scheme::Gs => match &config.exchange {
                Some(exchange) => with_token(exchange, pod, uri),
                None => Ok(nobody("no tokens of pods are exchanged", None)),
            },
            Scheme::S3 => with_keys(pod, uri),
            Scheme::Hf => Ok(match pod.secret("HF_TOKEN") {
                Some(token) => {
                    let what = format!("the HF_TOKEN that pod {} brought", pod.full_name());
                    Self::Ready(Principal::Keys { what }, Credential::Hub(token))
                }
                None => nobody("the pod brought no HF_TOKEN", None),
            }),
            Scheme::Az | Scheme::Http | Scheme::Https | Scheme::File | Scheme::Memory => {
                Ok(Self::Ready(Principal::without_credentials(), Credential::Anonymous))
            }
        }
    }
}

fn nobody(why: &'static str, audience: Option<&str>) -> Claim {
    let audience = audience.map(str::to_owned);
    Claim::Ready(Principal::Nobody { why, audience }, Credential::Anonymous)
}

fn with_keys(pod: &Pod, uri: &SourceUri) -> Result<Claim, AccessError> {
    let (Some(id), Some(secret_access_key)) =
        (pod.secret("AWS_ACCESS_KEY_ID"), pod.secret("AWS_SECRET_ACCESS_KEY"))
    else {
        return Ok(nobody("the pod brought no AWS_ACCESS_KEY_ID with its AWS_SECRET_ACCESS_KEY", None));
    };
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        let is_plain = |secret: Secret| secret.reveal().bytes().all(|byte| byte.is_ascii_graphic());
        if !pod.secret(name).is_none_or(is_plain) {
            return Err(malformed(pod, uri, name));
        }
    }
    let region = pod.secret("AWS_REGION").map(|region| region.reveal().to_owned());
    if !region.as_deref().is_none_or(is_region) {
        return Err(malformed(pod, uri, "AWS_REGION"));
    }
    let access_key_id = id.reveal().to_owned();
    let what = format!("the key {access_key_id} that pod {} brought", pod.full_name());
    let keys =
        S3Keys { access_key_id, secret_access_key, session_token: pod.secret("AWS_SESSION_TOKEN"), region };
    Ok(Claim::Ready(Principal::Keys { what }, Credential::S3(keys)))
}

/// A region becomes part of a host's name, so it is one label. In Amazon's other partitions a bucket's name is another's
/// bucket: what is read there is not what others know by that name.
fn is_region(text: &str) -> bool {
    let is_label =
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let is_elsewhere =
        ["us-gov-", "us-iso", "cn-", "eu-isoe-", "eusc-"].iter().any(|other| text.starts_with(other));
    text.len() <= 32 && is_label && !is_elsewhere
}

fn malformed(pod: &Pod, uri: &SourceUri, name: &'static str) -> AccessError {
    AccessError::Refused {
        what: uri.to_string(),
        verdict: "refused",
        principal: format!("pod {}", pod.full_name()),
        detail: format!("its {name} cannot be one"),
        remedy: format!("write a right {name} into the secret that the volume's nodePublishSecretRef names"),
    }
}

fn with_token(exchange: &Exchange, pod: &Pod, uri: &SourceUri) -> Result<Claim, AccessError> {
    let Some(found) = pod.tokens.get(&exchange.audience) else {
        let why = "the pod brought no token of the audience that is exchanged";
        return Ok(nobody(why, Some(&exchange.audience)));
    };
    let subject = pod.subject();
    let principal =
        Principal::ServiceAccount { subject: subject.clone(), provider: exchange.provider.clone() };
    let refused = |detail: String| AccessError::Refused {
        what: uri.to_string(),
        verdict: "refused",
        principal: principal.to_string(),
        detail,
        remedy: "kubelet brings the pod's tokens; look at its log and at the CSIDriver csi.weightd.io"
            .to_owned(),
    };
    match subject_of(found.token.reveal()) {
        Some(found) if found == subject => {}
        Some(_) => return Err(refused("the token is another service account's".to_owned())),
        None => return Err(refused("the token cannot be read".to_owned())),
    }
    let left = found.expires_at.map(|end| end.duration_since(std::time::SystemTime::now()));
    let ends = match left {
        None => None,
        Some(Ok(left)) => Instant::now().checked_add(left),
        Some(Err(_)) => return Err(refused("the token has expired".to_owned())),
    };
    let provider = exchange.provider.clone();
    Ok(Claim::Token(PodToken { principal, provider, token: found.token.clone(), ends }))
}

/// Whose a token says it is. Whether that is so is for those to say who exchange it.
fn subject_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    Some(serde_json::from_slice::<Claims>(&payload).ok()?.sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn whose_a_token_is_is_read_or_not_without_a_panic() {
        assert_eq!(subject_of(&token(r#"{"sub":"me","exp":1}"#)).as_deref(), Some("me"));
        assert_eq!(subject_of(&token(r#"{"sub":1}"#)), None);
        bolero::check!().with_type::<(String, Vec<u8>)>().for_each(|(text, claims)| {
            let _ = subject_of(text);
            let _ = subject_of(&token(&String::from_utf8_lossy(claims)));
        });
    }

    #[test]
    fn a_principal_is_named_as_a_grant_names_it() {
        let named = |provider: &str| {
            let (subject, provider) = ("system:serviceaccount:ns:sa".to_owned(), provider.to_owned());
            Principal::ServiceAccount { subject, provider }.to_string()
        };
        assert_eq!(
            named("//iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/providers/c"),
            "principal://iam.googleapis.com/projects/7/locations/global/workloadIdentityPools/p/subject/\
             system:serviceaccount:ns:sa"
        );
        assert_eq!(named("identitynamespace:p.svc.id.goog:https://c"), "system:serviceaccount:ns:sa");
    }

    #[test]
    fn a_region_never_says_which_host_is_asked() {
        for good in ["us-east-1", "eu-central-1", "auto"] {
            assert!(is_region(good), "{good}");
        }
        for bad in [
            "evil.example/",
            "x@10.0.0.1/",
            "us-gov-west-1",
            "cn-north-1",
            "US-EAST-1",
            "a b",
            &"x".repeat(33),
        ] {
            assert!(!is_region(bad), "{bad}");
        }
    }

    #[test]
    fn keys_that_cannot_be_keys_are_refused_by_name_and_not_repeated() {
        let uri: SourceUri = "s3://b/m".parse().unwrap();
        let brought = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
            ("AWS_SESSION_TOKEN", "to\nken"),
        ];
        let secrets = brought.map(|(name, text)| (name.to_owned(), Secret::new(text))).into();
        let refused = with_keys(&Pod { secrets, ..Pod::default() }, &uri).unwrap_err().to_string();
        assert!(
            refused.contains("AWS_SESSION_TOKEN") && !refused.contains("ken\n") && !refused.contains("to\n"),
            "{refused}"
        );
    }
}
