//! For whom a volume is, as kubelet says it beside the attributes: names, service-account tokens, secrets.
//!
//! Pod authors write attributes too, so who a pod is counts only as kubelet says it. kubelet writes its keys over
//! theirs, and the pod's uid, which is not known before the pod is made, is in the target's path: what does not agree
//! with that did not come from kubelet. Tokens and secrets are never part of a message.

use std::{collections::HashMap, path::Path};

use serde::Deserialize;
use weightd_proto::v1;

/// Where kubelet puts tokens: into the secrets if the CSIDriver says so, else into the attributes.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
const NAME: &str = "csi.storage.k8s.io/pod.name";
const NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const UID: &str = "csi.storage.k8s.io/pod.uid";
const SERVICE_ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";

/// Longest name of Kubernetes.
const MAX_NAME_BYTES: usize = 253;
/// More than a Kubernetes secret holds.
const MAX_SECRET_BYTES: usize = 1 << 20;

/// Why what is said of a pod is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPod {
    #[error(
        "the attribute {key} is no name of Kubernetes; it is kubelet's to write, leave it out of the volume"
    )]
    Name { key: &'static str },
    #[error(
        "the volume's attributes speak of another pod than its target: they are kubelet's to write; the CSIDriver needs \
         podInfoOnMount: true"
    )]
    NotKubelets,
    #[error(
        "the service-account tokens are not what kubelet writes: {why}; the CSIDriver says which it writes (tokenRequests)"
    )]
    Tokens { why: &'static str },
    #[error("the volume's secret has more than 1 MiB")]
    Secrets,
}

/// One token, as kubelet writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    token: String,
    expiration_timestamp: String,
}

/// Reads what is said of the pod; nothing when nothing is said.
pub(crate) fn parse(
    attributes: &HashMap<String, String>,
    secrets: &HashMap<String, String>,
    target: &Path,
) -> Result<Option<v1::Pod>, InvalidPod> {
    let name = |key: &'static str| match attributes.get(key) {
        Some(text) if !is_name(text) => Err(InvalidPod::Name { key }),
        text => Ok(text.cloned().unwrap_or_default()),
    };
    let pod = v1::Pod {
        name: name(NAME)?,
        namespace: name(NAMESPACE)?,
        uid: name(UID)?,
        service_account: name(SERVICE_ACCOUNT)?,
        tokens: secrets
            .get(TOKENS)
            .or_else(|| attributes.get(TOKENS))
            .map_or(Ok(HashMap::new()), |text| tokens(text))?,
        secrets: own(secrets)?,
    };
    let is_named =
        [&pod.name, &pod.namespace, &pod.uid, &pod.service_account].iter().any(|text| !text.is_empty());
    if is_named && uid_in(target).is_some_and(|uid| uid != pod.uid) {
        return Err(InvalidPod::NotKubelets);
    }
    let is_something = is_named || !pod.tokens.is_empty() || !pod.secrets.is_empty();
    Ok(is_something.then_some(pod))
}

/// `…/pods/<uid>/volumes/…`
fn uid_in(target: &Path) -> Option<&str> {
    let parts: Vec<&str> = target.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    parts.windows(3).find(|three| three[0] == "pods" && three[2] == "volumes").map(|three| three[1])
}

fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':' | b'_');
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_plain)
}

fn tokens(text: &str) -> Result<HashMap<String, v1::ServiceAccountToken>, InvalidPod> {
    let failed = |why| InvalidPod::Tokens { why };
    if text.len() > MAX_SECRET_BYTES {
        return Err(failed("they have more than 1 MiB"));
    }
    // What serde says of a text may repeat some of it.
    let tokens: HashMap<String, Token> =
        serde_json::from_str(text).map_err(|_| failed("they are no JSON of that form"))?;
    let read = |(audience, Token { token, expiration_timestamp })| {
        let expires_at =
            expiration_timestamp.parse().map_err(|_| failed("an expirationTimestamp is no time"))?;
        Ok((audience, v1::ServiceAccountToken { token, expires_at: Some(expires_at) }))
    };
    tokens.into_iter().map(read).collect()
}

/// The secrets that the pod's volume names, without what kubelet adds.
fn own(secrets: &HashMap<String, String>) -> Result<HashMap<String, String>, InvalidPod> {
    let bytes: usize = secrets.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > 2 * MAX_SECRET_BYTES {
        return Err(InvalidPod::Secrets);
    }
    let mut own = secrets.clone();
    own.remove(TOKENS);
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/weights/mount";

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn named() -> HashMap<String, String> {
        map(&[
            (NAME, "p"),
            (NAMESPACE, "team-a"),
            (UID, "u-1"),
            (SERVICE_ACCOUNT, "reader"),
            ("source", "gs://x"),
        ])
    }

    fn read(
        attributes: &HashMap<String, String>,
        secrets: &HashMap<String, String>,
    ) -> Result<Option<v1::Pod>, InvalidPod> {
        parse(attributes, secrets, Path::new(TARGET))
    }

    fn token(value: &str) -> String {
        format!(
            r#"{{"pool.svc.id.goog":{{"token":"{value}","expirationTimestamp":"2026-11-26T09:00:00Z"}}}}"#
        )
    }

    #[test]
    fn kubelets_words_become_a_pod() {
        let mut attributes = named();
        attributes.insert(TOKENS.to_owned(), token("in attributes"));
        let secrets = map(&[("HF_TOKEN", "hf_x")]);
        let pod = read(&attributes, &secrets).unwrap().unwrap();
        assert_eq!((pod.name.as_str(), pod.namespace.as_str()), ("p", "team-a"));
        assert_eq!((pod.uid.as_str(), pod.service_account.as_str()), ("u-1", "reader"));
        assert_eq!(pod.secrets, secrets);
        let token = &pod.tokens["pool.svc.id.goog"];
        assert_eq!(
            (token.token.as_str(), token.expires_at.unwrap().seconds),
            ("in attributes", 1_795_683_600)
        );
    }

    #[test]
    fn tokens_among_the_secrets_come_first_and_are_no_secrets() {
        let mut attributes = named();
        attributes.insert(TOKENS.to_owned(), token("old"));
        let secrets = map(&[(TOKENS, &token("new"))]);
        let pod = read(&attributes, &secrets).unwrap().unwrap();
        assert_eq!(pod.tokens["pool.svc.id.goog"].token, "new");
        assert!(pod.secrets.is_empty());
    }

    #[test]
    fn nothing_said_is_no_pod() {
        assert_eq!(read(&map(&[("source", "gs://x")]), &map(&[])), Ok(None));
    }

    #[test]
    fn a_pod_that_is_not_the_targets_is_not_kubelets_word() {
        let mut attributes = named();
        attributes.insert(UID.to_owned(), "u-2".to_owned());
        assert_eq!(read(&attributes, &map(&[])), Err(InvalidPod::NotKubelets));
        // Without podInfoOnMount an author may claim to be anybody, but does not know the pod's uid.
        attributes.remove(UID);
        assert_eq!(read(&attributes, &map(&[])), Err(InvalidPod::NotKubelets));
        assert_eq!(read(&map(&[(SERVICE_ACCOUNT, "admin")]), &map(&[])), Err(InvalidPod::NotKubelets));
        // A target of another form says nothing.
        assert!(parse(&attributes, &map(&[]), Path::new("/var/lib/kubelet/x")).unwrap().is_some());
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", "a b", "a\n", "ns/other", &"x".repeat(300)] {
            let mut attributes = named();
            attributes.insert(NAMESPACE.to_owned(), bad.to_owned());
            assert_eq!(read(&attributes, &map(&[])), Err(InvalidPod::Name { key: NAMESPACE }), "{bad:?}");
        }
    }

    #[test]
    fn tokens_that_are_none_are_refused_without_repeating_them() {
        let untimely = token("s3cr3t").replace("2026-11-26T09:00:00Z", "soon");
        for bad in ["s3cr3t", r#"{"a":"s3cr3t"}"#, r#"{"a":{"token":"s3cr3t"}}"#, "[]", untimely.as_str()] {
            let mut attributes = named();
            attributes.insert(TOKENS.to_owned(), bad.to_owned());
            let error = read(&attributes, &map(&[])).unwrap_err();
            assert!(matches!(error, InvalidPod::Tokens { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
        }
    }

    #[test]
    fn no_text_panics() {
        bolero::check!().with_type::<(Vec<(String, String)>, String)>().for_each(
            |(pairs, tokens): &(Vec<(String, String)>, String)| {
                let mut attributes: HashMap<_, _> = pairs.iter().cloned().collect();
                attributes.insert(TOKENS.to_owned(), tokens.clone());
                let _ = read(&attributes, &HashMap::new());
            },
        );
    }
}
