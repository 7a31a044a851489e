//! What only a plain web server does: it cannot be listed, and may lack ranges and versions.

use futures::StreamExt;
use weightd_harness::{StaticFile, StaticServer};
use weightd_source::{Config, Listed, Opener, SourceError};

use crate::fixtures::{origins, uri};

const INDEX: &str = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;

async fn list(server: &StaticServer, path: &str) -> Result<Vec<Listed>, SourceError> {
    let uri = uri(&format!("{}{path}", server.url()));
    let origins = origins(&Config::default(), &[]);
    origins.open(&uri).await.unwrap().list().await
}

fn names(listing: &[Listed]) -> Vec<&str> {
    let mut names: Vec<&str> = listing.iter().map(Listed::name).collect();
    names.sort_unstable();
    names
}

fn put(server: &StaticServer, files: &[(&str, &str)]) {
    for (path, text) in files {
        server.put(path, StaticFile::new((*text).to_owned()));
    }
}

#[tokio::test]
async fn a_sharded_model_is_found_by_its_index() {
    let server = StaticServer::start().await.unwrap();
    put(
        &server,
        &[
            ("/m/model.safetensors.index.json", INDEX),
            ("/m/model-1.safetensors", "1"),
            ("/m/model-2.safetensors", "22"),
            ("/m/config.json", "{}"),
            ("/m/merges.txt", ""),
            ("/m/readme.md", "nobody asks for it"),
        ],
    );
    let listing = list(&server, "/m").await.unwrap();
    let expected = [
        "config.json",
        "merges.txt",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&listing), expected);
    let sizes: u64 = listing.iter().filter_map(Listed::object).map(|object| object.size).sum();
    assert_eq!(sizes, 1 + 2 + 2 + INDEX.len() as u64);
}

#[tokio::test]
async fn a_model_in_one_file_and_one_file_alone_are_found() {
    let server = StaticServer::start().await.unwrap();
    put(&server, &[("/m/model.safetensors", "weights"), ("/other/lora v2.safetensors", "x")]);
    assert_eq!(names(&list(&server, "/m").await.unwrap()), ["model.safetensors"]);

    let uri = uri(&format!("{}/other/lora%20v2.safetensors", server.url()));
    let source = origins(&Config::default(), &[]).open(&uri).await.unwrap();
    let listing = source.list().await.unwrap();
    assert_eq!(names(&listing), ["lora v2.safetensors"]);
    let object = listing[0].object().unwrap();
    let mut stream = source.read(object, weightd_types::ByteRange::new(0, 1)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "x");

    let error = list(&server, "/nowhere").await.unwrap_err();
    assert!(error.kind() == "not_found" && error.to_string().contains("does not list"), "{error}");
}

#[tokio::test]
async fn servers_without_ranges_or_versions_are_refused_with_a_remedy() {
    let server = StaticServer::start().await.unwrap();
    server.put("/m/model.safetensors", StaticFile { ranges: false, ..StaticFile::new("weights") });
    server.put("/m/config.json", StaticFile { etag: None, ..StaticFile::new("{}") });
    let listing = list(&server, "/m").await.unwrap();
    for (name, why) in [("model.safetensors", "ranges"), ("config.json", "neither ETag nor")] {
        let Some(Listed::Unfit { why: error, .. }) = listing.iter().find(|listed| listed.name() == name)
        else {
            panic!("{name} was taken")
        };
        assert!(error.kind() == "refused" && error.to_string().contains(why), "{error}");
    }
}
