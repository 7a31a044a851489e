//! The token, from where the hub's own tools keep it.

use std::path::{Path, PathBuf};

use http::HeaderValue;

use crate::{
    SourceError,
    config::{Environment, HubSettings},
};

/// The `Authorization` header of the first token found: the configured file, `HF_TOKEN`, the file `HF_TOKEN_PATH`,
/// `$HF_HOME/token`, `~/.cache/huggingface/token`. None is no error: most repositories are public.
pub(super) async fn find(
    settings: &HubSettings,
    environment: &Environment,
) -> Result<Option<HeaderValue>, SourceError> {
    if let Some(path) = &settings.token_path {
        let failed = |error: std::io::Error| SourceError::Configuration {
            what: "source.hub.token_path".to_owned(),
            why: format!("{}: {error}", path.display()),
        };
        let token = read(path).await.map_err(failed)?;
        return header(&token, "source.hub.token_path").map(Some);
    }
    if let Some(token) = environment.get("HF_TOKEN") {
        return header(token, "HF_TOKEN").map(Some);
    }
    for path in places(environment) {
        // What cannot be read is no token, as for the hub's own tools.
        if let Ok(token) = read(&path).await {
            return header(&token, &path.display().to_string()).map(Some);
        }
    }
    Ok(None)
}

fn places(environment: &Environment) -> Vec<PathBuf> {
    let at = |name: &str, below: &str| Some(Path::new(environment.get(name)?).join(below));
    let home = at("HF_HOME", "token")
        .or_else(|| at("XDG_CACHE_HOME", "huggingface/token"))
        .or_else(|| at("HOME", ".cache/huggingface/token"));
    environment.get("HF_TOKEN_PATH").map(PathBuf::from).into_iter().chain(home).collect()
}

async fn read(path: &Path) -> std::io::Result<String> {
    tokio::fs::read_to_string(path).await
}

pub(super) fn header(token: &str, what: &str) -> Result<HeaderValue, SourceError> {
    // The value is not repeated: it is a secret even when it is malformed.
    let invalid = |_| SourceError::Configuration {
        what: what.to_owned(),
        why: "the token has characters that no token has".to_owned(),
    };
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(invalid)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(variables: &[(&str, &str)], token_path: Option<PathBuf>) -> Option<String> {
        let settings = HubSettings { endpoint: "https://hub".parse().unwrap(), token_path };
        let found = find(&settings, &variables.iter().copied().collect()).await.unwrap();
        found.map(|value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn the_token_is_found_where_the_hubs_tools_keep_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "from-file\n").unwrap();
        let home = directory.path().to_str().unwrap();
        assert_eq!(found(&[], None).await, None);
        assert_eq!(found(&[("HF_HOME", home)], None).await.as_deref(), Some("Bearer from-file"));
        let both = [("HF_HOME", home), ("HF_TOKEN", "from-variable")];
        assert_eq!(found(&both, None).await.as_deref(), Some("Bearer from-variable"));
        assert_eq!(found(&both, Some(path)).await.as_deref(), Some("Bearer from-file"));
    }

    #[tokio::test]
    async fn a_token_is_never_shown() {
        let settings =
            HubSettings { endpoint: "https://hub".parse().unwrap(), token_path: Some("/nowhere".into()) };
        let error = find(&settings, &Environment::default()).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
        assert!(!format!("{:?}", header("hunter2", "HF_TOKEN").unwrap()).contains("hunter2"));
        let error = header("hunt\ner2", "HF_TOKEN").unwrap_err();
        assert!(!error.to_string().contains("er2"), "{error}");
    }
}
