//! Servers that redirect, and what reaches those they redirect to.

use std::sync::Mutex;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weightd_types::{ByteRange, Checksums, Version};

use super::*;
use crate::{Config, Environment, GcsConfig, HubConfig, Listed, Opener, Origins, S3Config, S3Keys, Secret};

/// A server in this process, which notes every request, in lower case.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts one that answers with what is given for a path: a head and a body.
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let request = head(&mut connection).await;
                let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
                noted.lock().unwrap().push(request);
                // Who has gone needs no answer.
                let _ = connection.write_all(answer(&target).as_bytes()).await;
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn head(connection: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&request).to_lowercase()
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn missing() -> String {
    "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
}

fn file() -> String {
    "HTTP/1.1 206 Partial Content\r\nETag: \"e\"\r\nContent-Range: bytes 0-0/1\r\nContent-Length: 1\r\n\
     Connection: close\r\n\r\nx"
        .to_owned()
}

fn origins(config: &Config) -> Origins {
    Origins::new(config.check(&Environment::default()).unwrap())
}

fn web(above: &str) -> Credential {
    Credential::Web([Url::parse(above).unwrap()].into())
}

/// What is listed of a model at an address.
async fn list(url: &str, credential: &Credential) -> Result<Vec<Listed>, SourceError> {
    let source = origins(&Config::default()).open_as(&url.parse().unwrap(), credential).await.unwrap();
    source.list().await
}

#[tokio::test]
async fn for_a_pod_no_redirect_leads_to_another_server_and_for_the_operator_it_does() {
    let inside = Server::start(|_| file()).await;
    let to = format!("{}/latest/meta-data?token=hunter2", inside.url);
    let allowed = Server::start(move |path| match path {
        "/llm/model.safetensors" => redirect(&to),
        _ => missing(),
    });
    let allowed = allowed.await;
    let source = format!("{}/llm", allowed.url);
    for credential in [web(&source), web(&allowed.url), Credential::Anonymous] {
        let error = list(&source, &credential).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), "redirected", "{text}");
        assert!(text.contains(&format!("{source}/model.safetensors")), "{text}");
        assert!(text.contains(&format!("it redirects to {}/latest/meta-data,", inside.url)), "{text}");
        assert!(text.contains("access.web") && !text.contains("hunter2"), "{text}");
        assert!(!error.is_retryable());
    }
    assert!(inside.requests().is_empty(), "{:?}", inside.requests());
    let listing = list(&source, &Credential::Node).await.unwrap();
    assert_eq!(listing.iter().map(Listed::name).collect::<Vec<_>>(), ["model.safetensors"]);
    assert_eq!(inside.requests().len(), 1);
}

#[tokio::test]
async fn for_a_pod_a_redirect_is_followed_below_what_is_allowed_and_not_beside_it() {
    let server = Server::start(|path| match path {
        "/llm/a/model.safetensors" => redirect("/llm/b/w"),
        "/llm/c/model.safetensors" => redirect("/llm/../private/w"),
        "/llm/d/model.safetensors" => redirect("/llm/%2e%2e/private/w"),
        "/llm/e/model.safetensors" => redirect("/llm/e/model.safetensors"),
        "/llm/b/w" | "/private/w" | "/llm/%2e%2e/private/w" => file(),
        _ => missing(),
    });
    let server = server.await;
    let above = web(&format!("{}/llm", server.url));
    let at = |name: &str| format!("{}/llm/{name}", server.url);
    assert_eq!(list(&at("a"), &above).await.unwrap().len(), 1);
    for name in ["c", "d"] {
        let error = list(&at(name), &above).await.unwrap_err();
        assert!(error.to_string().contains(&format!("it redirects to {}/private/w,", server.url)), "{error}");
    }
    assert!(!server.requests().iter().any(|request| request.contains("private")), "it was asked for");
    let error = list(&at("e"), &above).await.unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn keys_and_tokens_of_a_pod_travel_to_no_other_host() {
    let other = Server::start(|_| missing()).await;
    let to = format!("{}/elsewhere?x=y", other.url);
    let origin = Server::start(move |_| redirect(&to)).await;
    let endpoint = Some(origin.url.clone());
    let s3 = S3Config { endpoint: endpoint.clone(), region: Some("us-east-1".to_owned()), anonymous: None };
    let gcs = GcsConfig { endpoint: endpoint.clone(), ..GcsConfig::default() };
    let hub = HubConfig { endpoint, token_path: None };
    let origins = origins(&Config { s3, gcs, hub, ..Config::default() });
    let secret = || Secret::new("hunter2");
    let keys = S3Keys {
        access_key_id: "AKIA".to_owned(),
        secret_access_key: secret(),
        session_token: Some(secret()),
        region: None,
    };
    let git = Version::Git { commit: "a".repeat(40), oid: "b".repeat(40) };
    for (uri, credential, version) in [
        ("s3://b/m", Credential::S3(keys), Version::Etag("\"e\"".to_owned())),
        ("gs://b/m", Credential::Google(secret()), Version::Generation(1)),
        ("hf://o/n", Credential::Hub(secret()), git),
    ] {
        let uri: SourceUri = uri.parse().unwrap();
        let source = origins.open_as(&uri, &credential).await.unwrap();
        let listed = Listed::new(&uri, "a".to_owned(), 1, version, Checksums::default());
        source.list().await.unwrap_err();
        let read = source.read(listed.object().unwrap(), ByteRange::new(0, 1)).await;
        let error = read.err().unwrap().to_string();
        let is_redirect = error.contains(&format!("it redirects to {}/elsewhere,", other.url));
        assert_eq!(is_redirect, uri.scheme() == Scheme::S3, "{error}");
    }
    assert!(origin.requests().iter().any(|request| request.contains("x-amz-security-token: hunter2")));
    assert!(origin.requests().iter().any(|request| request.contains("authorization: bearer hunter2")));
    for request in other.requests() {
        assert!(!request.contains("hunter2") && !request.contains("akia"), "{request}");
    }
}

#[test]
fn what_an_address_may_hold_that_is_secret_is_not_shown() {
    let url = Url::parse("https://me:hunter2@host.example:8443/a/b?sig=hunter2#hunter2").unwrap();
    assert_eq!(shown(&url), "https://host.example:8443/a/b");
}
