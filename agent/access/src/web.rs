//! Which servers pods may name: the node reaches some that pods do not, such as the cloud's metadata server.

use url::Url;
use weightd_types::SourceUri;

/// Whether a source is one of these addresses, or below one. Both are compared as a client would write them: without `..`,
/// however that is spelt.
pub(crate) fn is_below_any(allowed: &[Url], source: &SourceUri) -> bool {
    let Ok(source) = Url::parse(&source.to_string()) else { return false };
    allowed.iter().any(|allowed| {
        let (above, path) = (allowed.path().trim_end_matches('/'), source.path());
        let rest = path.strip_prefix(above);
        allowed.origin() == source.origin()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
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
        ] {
            assert!(!may(bad), "{bad}");
        }
        assert!(!is_below_any(&[], &"https://models.example.com/llm".parse().unwrap()));
    }
}
