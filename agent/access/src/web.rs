//! Which servers pods may name: the node reaches some that pods do not, such as the cloud's metadata server.

use std::sync::Arc;

use url::Url;
use weightd_source::{Credential, is_below};
use weightd_types::{Scheme, SourceUri};

/// What a pod asks a web server with, if it may name it: nobody's identity, confined to what pods may name, so that no
/// redirect leads the node elsewhere for it.
pub(crate) fn confined(allowed: &Arc<[Url]>, source: &SourceUri) -> Option<Credential> {
    // Asked for each request, most of which are of other kinds.
    if !matches!(source.scheme(), Scheme::Http | Scheme::Https) {
        return None;
    }
    is_below_any(allowed, source).then(|| Credential::Web(Arc::clone(allowed)))
}

/// Whether a source is one of these addresses, or below one.
fn is_below_any(allowed: &[Url], source: &SourceUri) -> bool {
    address(source).is_some_and(|source| allowed.iter().any(|allowed| is_below(allowed, &source)))
}

/// What is asked for, made as it is asked: each part of the path stands for itself, whatever is in it. A text that is read
/// as an address may mean another, where it has a backslash.
fn address(source: &SourceUri) -> Option<Url> {
    let server = format!("{}://{}", source.scheme().as_str(), source.authority());
    let mut address = Url::parse(&server).ok()?;
    address.path_segments_mut().ok()?.pop_if_empty().extend(source.prefix().split('/'));
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_an_address_is() {
        let allowed =
            ["https://models.example.com/llm/", "http://[fd00::1]:8080"].map(|url| Url::parse(url).unwrap());
        let may = |source: &str| source.parse().is_ok_and(|source| is_below_any(&allowed, &source));
        for good in [
            "https://models.example.com/llm",
            "https://models.example.com/llm/llama",
            "https://models.example.com:443/llm/x",
            "http://[fd00::1]:8080/x",
        ] {
            assert!(may(good), "{good}");
        }
        for bad in [
            "http://models.example.com/llm/llama",
            "https://models.example.com/llmore",
            "https://models.example.com/",
            "https://models.example.com:8443/llm",
            "https://models.example.com.evil.example/llm",
            "https://models.example.com/llm/../secret",
            "https://models.example.com/llm/%2e%2e/secret",
            "http://169.254.169.254/computeMetadata/v1",
            "https://models.example.com/secret/x\\..\\..\\llm",
            "https://models.example.com/secret/x%5c..%5c..%5cllm",
            "https://models.example.com/secret/%252e%252e/llm",
        ] {
            assert!(!may(bad), "{bad}");
        }
        assert!(!is_below_any(&[], &"https://models.example.com/llm".parse().unwrap()));
    }
}
