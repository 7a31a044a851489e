//! What only the hub does: revisions, tokens, gates, redirects to another host.

use std::sync::Arc;

use futures::TryStreamExt;
use weightd_harness::{HubServer, Repository};
use weightd_source::{Opener, Origins, SourceError, resolve};
use weightd_types::{ByteRange, Object, Selection, Snapshot, Version};

use crate::fixtures::{hub_origins, uri};

async fn snapshot(origins: &Origins, text: &str) -> Result<Snapshot, SourceError> {
    let uri = uri(text);
    let source = origins.open(&uri).await?;
    match resolve(source.as_ref(), &uri, &Selection::default()).await {
        Ok(resolution) => Ok(resolution.snapshot),
        Err(weightd_source::ResolveError::Source(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

async fn read(origins: &Arc<Origins>, text: &str, object: &Object) -> Result<Vec<u8>, SourceError> {
    let source = origins.open(&uri(text)).await?;
    let pieces: Vec<_> = source.read(object, ByteRange::new(0, object.size)).await?.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn a_revision_is_resolved_to_its_commit_and_stays_there() {
    let hub = HubServer::start().await.unwrap();
    let first =
        hub.push("o/n", Repository::new().file("config.json", "one").large_file("m.safetensors", "1"));
    hub.tag("o/n", "v1").unwrap();
    let origins = hub_origins(&hub.endpoint(), None);
    let before = snapshot(&origins, "hf://o/n").await.unwrap();
    hub.push("o/n", Repository::new().file("config.json", "two"));
    let config = &before.objects()[0];
    assert!(matches!(&config.version, Version::Git { commit, .. } if *commit == first));
    assert!(config.checksums.git_sha1.is_some() && config.checksums.sha256.is_none());
    assert!(before.objects()[1].checksums.sha256.is_some());
    assert_eq!(read(&origins, "hf://o/n", config).await.unwrap(), b"one");
    assert_eq!(snapshot(&origins, "hf://o/n@v1").await.unwrap().id(), before.id());
    assert_eq!(snapshot(&origins, &format!("hf://o/n@{first}")).await.unwrap().id(), before.id());
    assert_ne!(snapshot(&origins, "hf://o/n").await.unwrap().id(), before.id());
    let error = snapshot(&origins, "hf://o/n@v2").await.unwrap_err();
    assert!(error.kind() == "not_found" && error.to_string().contains("revision"), "{error}");
}

#[tokio::test]
async fn long_listings_come_in_pages() {
    let hub = HubServer::start().await.unwrap();
    let repository = (0..25).fold(Repository::new(), |repository, n| repository.file(&format!("d/{n}"), "x"));
    hub.push("o/n", repository);
    hub.set_page(4);
    let snapshot = snapshot(&hub_origins(&hub.endpoint(), None), "hf://o/n").await.unwrap();
    assert_eq!(snapshot.objects().len(), 25);
}

#[tokio::test]
async fn the_token_is_for_the_hub_alone() {
    let hub = HubServer::start().await.unwrap();
    hub.push("o/n", Repository::new().large_file("m.safetensors", "weights").private());
    hub.grant("secret", &["o/n"]);
    let origins = hub_origins(&hub.endpoint(), Some("secret"));
    let snapshot = snapshot(&origins, "hf://o/n").await.unwrap();
    assert_eq!(read(&origins, "hf://o/n", &snapshot.objects()[0]).await.unwrap(), b"weights");
    let (own, other) = (hub.requests().all(), hub.cdn_requests().all());
    assert!(own.iter().all(|request| request.header("authorization") == Some("Bearer secret")));
    assert!(!other.is_empty());
    assert!(other.iter().all(|request| request.header("authorization").is_none()));
    hub.expire_redirects();
    let again = read(&origins, "hf://o/n", &snapshot.objects()[0]).await;
    assert_eq!(again.unwrap(), b"weights", "no redirect is kept");
}

#[tokio::test]
async fn what_may_not_be_read_says_what_to_do() {
    let hub = HubServer::start().await.unwrap();
    hub.push("o/gated", Repository::new().file("config.json", "{}").gated());
    hub.push("o/private", Repository::new().file("config.json", "{}").private());
    hub.grant("stranger", &[]);
    for (token, repository, kind, remedy) in [
        (None, "o/private", "not_found", "HF_TOKEN must be set"),
        (Some("stranger"), "o/private", "not_found", "the token may not read it"),
        (None, "o/gated", "unauthenticated", "accept its licence at http"),
        (Some("stranger"), "o/gated", "denied", "accept its licence at http"),
        (Some("revoked"), "o/gated", "unauthenticated", "set HF_TOKEN to a new one"),
    ] {
        let origins = hub_origins(&hub.endpoint(), token);
        let text = format!("hf://{repository}");
        let error = match snapshot(&origins, &text).await {
            Err(error) => error,
            Ok(snapshot) => read(&origins, &text, &snapshot.objects()[0]).await.unwrap_err(),
        };
        let message = error.to_string();
        assert!(error.kind() == kind && message.contains(remedy), "{token:?} {repository}: {message}");
        assert!(!message.contains("stranger") && !message.contains("revoked"), "{message}");
    }
}
