//! Names that `object_store` does not take: they matter only when they are selected, and no other is harmed.

use std::{fs, sync::Arc};

use futures::TryStreamExt;
use weightd_harness::{Fault, FaultProxy, S3Server, WebDavServer, require};
use weightd_source::{Config, Opener, Origins, S3Config, SourceError, resolve};
use weightd_types::{ByteRange, Object, Selection, SourceUri};

use crate::fixtures::{origins, uri};

/// What the selection without `exclude` takes.
async fn taken(
    origins: &Arc<Origins>,
    uri: &SourceUri,
    exclude: &[&str],
) -> Result<Vec<Object>, weightd_source::ResolveError> {
    let exclude = exclude.iter().map(ToString::to_string).collect();
    let selection = Selection { include: vec![], exclude };
    let source = origins.open(uri).await?;
    Ok(resolve(source.as_ref(), uri, &selection).await?.snapshot.objects().to_vec())
}

async fn read(origins: &Arc<Origins>, uri: &SourceUri, object: &Object) -> Result<Vec<u8>, SourceError> {
    let source = origins.open(uri).await?;
    let pieces: Vec<_> = source.read(object, ByteRange::new(0, object.size)).await?.try_collect().await?;
    Ok(pieces.concat())
}

fn names(objects: &[Object]) -> Vec<&str> {
    objects.iter().map(|object| object.path.as_str()).collect()
}

#[tokio::test]
async fn keys_of_s3_that_are_no_paths_are_refused_only_when_they_are_taken() {
    let server = require!(S3Server::start().await);
    server.create_bucket("models").await.unwrap();
    let s3 = S3Config { endpoint: Some(server.endpoint()), ..S3Config::default() };
    let keys = [("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any")];
    let origins = origins(&Config { s3, ..Config::default() }, &keys);
    for (prefix, odd) in [("empty", "a//b"), ("lead", "/b"), ("trail", "b/"), ("tab", "\tb")] {
        for name in [odd, "config.json", "spaced "] {
            server.upload("models", &format!("{prefix}/{name}"), name.to_owned()).await.unwrap();
        }
        let uri = uri(&format!("s3://models/{prefix}"));
        let error = taken(&origins, &uri, &[]).await.unwrap_err();
        let message = error.to_string();
        assert!(error.kind() == "invalid_name" && message.contains(&format!("{odd:?}")), "{message}");
        assert!(message.contains(&uri.to_string()) && message.contains("--exclude"), "{message}");
        let objects = taken(&origins, &uri, &[odd]).await.unwrap();
        assert_eq!(names(&objects), ["config.json", "spaced "]);
        assert_eq!(read(&origins, &uri, &objects[1]).await.unwrap(), b"spaced ");
    }
}

#[tokio::test]
async fn a_marker_of_a_directory_without_objects_is_no_file() {
    let server = require!(S3Server::start().await);
    server.create_bucket("models").await.unwrap();
    let s3 = S3Config { endpoint: Some(server.endpoint()), ..S3Config::default() };
    let keys = [("AWS_ACCESS_KEY_ID", "any"), ("AWS_SECRET_ACCESS_KEY", "any")];
    let origins = origins(&Config { s3, ..Config::default() }, &keys);
    for (key, bytes) in [("m/", ""), ("m/sub/", ""), ("m/config.json", "{}")] {
        server.upload("models", key, bytes).await.unwrap();
    }
    assert_eq!(names(&taken(&origins, &uri("s3://models/m"), &[]).await.unwrap()), ["config.json"]);
}

#[tokio::test]
async fn names_of_webdav_that_are_no_paths_are_refused_only_when_they_are_taken() {
    let server = require!(WebDavServer::start().await);
    fs::create_dir_all(server.root().join("m/sub\nway")).unwrap();
    for name in ["config.json", "a\nb", "sub\nway/c"] {
        fs::write(server.root().join("m").join(name), name).unwrap();
    }
    let (origins, uri) = (origins(&Config::default(), &[]), uri(&format!("{}/m", server.url())));
    let error = taken(&origins, &uri, &["sub*/**"]).await.unwrap_err();
    assert!(error.kind() == "invalid_name" && error.to_string().contains(r#""a\nb""#), "{error}");
    let error = taken(&origins, &uri, &["a*b"]).await.unwrap_err();
    assert!(error.kind() == "invalid_name" && error.to_string().contains(r#""sub\nway/c""#), "{error}");
    let objects = taken(&origins, &uri, &["a*b", "sub*/**"]).await.unwrap();
    assert_eq!(names(&objects), ["config.json"]);
    assert_eq!(read(&origins, &uri, &objects[0]).await.unwrap(), b"config.json");
}

/// As Apache does.
#[tokio::test]
async fn a_webdav_server_that_lists_one_level_at_a_time_leaves_out_nothing_in_silence() {
    let server = require!(WebDavServer::start().await);
    fs::create_dir_all(server.root().join("m/sub\nway")).unwrap();
    fs::create_dir_all(server.root().join("m/plain")).unwrap();
    for name in ["plain/a", "sub\nway/c"] {
        fs::write(server.root().join("m").join(name), name).unwrap();
    }
    let proxy = FaultProxy::start(&server.url()).await.unwrap();
    let (origins, uri) = (origins(&Config::default(), &[]), uri(&format!("{}/m", proxy.url())));
    proxy.inject("PROPFIND", 1, Fault::Status { code: 403, retry_after: None });
    let error = taken(&origins, &uri, &[]).await.unwrap_err();
    assert!(error.kind() == "invalid_name" && error.to_string().contains(r#""sub\nway""#), "{error}");
    proxy.inject("PROPFIND", 1, Fault::Status { code: 403, retry_after: None });
    assert_eq!(names(&taken(&origins, &uri, &["sub*"]).await.unwrap()), ["plain/a"]);
}
