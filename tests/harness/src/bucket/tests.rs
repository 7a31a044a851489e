use std::{fs, time::Duration};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::*;
use crate::serve;

/// Parts of resumable uploads are multiples of it.
const QUANTUM: usize = 256 << 10;

async fn fixture() -> (BucketServer, Client) {
    let server = BucketServer::start().await.unwrap();
    server.create_bucket("models").await.unwrap();
    (server, serve::client())
}

fn api(server: &BucketServer, path: &str) -> String {
    format!("{}/storage/v1/b/models/{path}", server.endpoint())
}

fn uploading(server: &BucketServer, parameters: &str) -> String {
    format!("{}/upload/storage/v1/b/models/o?{parameters}", server.endpoint())
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

async fn value(answer: Response) -> Value {
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

async fn listed(client: &Client, server: &BucketServer, parameters: &str) -> Value {
    value(client.get(api(server, &format!("o?{parameters}"))).send().await.unwrap()).await
}

fn names(listing: &Value) -> Vec<&str> {
    let items = listing["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| item["name"].as_str().unwrap()).collect()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn ranges_come_with_what_clients_check_them_by() {
    let (server, client) = fixture().await;
    let old = server.upload("models", "a/w", "other").await.unwrap();
    let uploaded = server.upload("models", "a/w", "0123456789").await.unwrap();
    assert!(uploaded.generation > old.generation);
    let url = api(&server, "o/a%2Fw?alt=media");
    let part = client.get(&url).header("range", "bytes=2-4").send().await.unwrap();
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, "bytes 2-4/10"));
    assert_eq!(header(&part, "x-goog-generation"), uploaded.generation.to_string());
    assert_eq!(header(&part, "x-goog-hash"), format!("crc32c={}", uploaded.crc32c));
    assert_eq!(header(&part, "x-goog-stored-content-length"), "10");
    assert_eq!(part.text().await.unwrap(), "234");

    let beyond = client.get(&url).header("range", "bytes=10-").send().await.unwrap();
    assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */10"));
    assert_eq!(value(beyond).await["error"]["errors"][0]["reason"], "requestedRangeNotSatisfiable");
    let head = client.head(&url).send().await.unwrap();
    assert_eq!(header(&head, "content-length"), "10");
    let whole = client.get(&url).send().await.unwrap();
    assert_eq!((whole.status().as_u16(), whole.text().await.unwrap().as_str()), (200, "0123456789"));
    assert_eq!(server.bytes_sent(), 13);

    assert_eq!(status(client.get(format!("{url}&generation={}", uploaded.generation))).await, 200);
    let gone = client.get(format!("{url}&generation={}", old.generation)).send().await.unwrap();
    assert_eq!(gone.status(), 404);
    assert_eq!(value(gone).await["error"]["message"], "No such object: models/a/w");
    for odd in ["bytes=4-2", "items=2-4", "bytes"] {
        let whole = client.get(&url).header("range", odd).send().await.unwrap();
        assert_eq!((whole.status().as_u16(), header(&whole, "content-length")), (200, "10"), "{odd}");
    }
}

#[tokio::test]
async fn a_resource_says_where_its_bytes_are() {
    let (server, client) = fixture().await;
    let gzip = Upload { content_encoding: Some("gzip"), content_type: Some("text/plain") };
    server.upload_with("models", "a b/ü", "compressed", gzip).await.unwrap();
    let resource = value(client.get(api(&server, "o/a%20b%2F%C3%BC")).send().await.unwrap()).await;
    assert_eq!(resource["name"], "a b/ü");
    assert_eq!(resource["size"], "10");
    assert_eq!(
        (&resource["contentEncoding"], &resource["contentType"]),
        (&json!("gzip"), &json!("text/plain"))
    );
    assert!(resource["timeCreated"].as_str().unwrap().ends_with('Z'));
    let link = resource["mediaLink"].as_str().unwrap();
    assert!(link.starts_with(&server.endpoint()));
    assert_eq!(client.get(link).send().await.unwrap().text().await.unwrap(), "compressed");
    assert_eq!(status(client.delete(api(&server, "o/a%20b%2F%C3%BC"))).await, 204);
    assert_eq!(status(client.get(api(&server, "o/a%20b%2F%C3%BC"))).await, 404);
    assert!(server.stat("models", "a b/ü").await.is_err());
}

#[tokio::test]
async fn listings_have_prefixes_and_pages() {
    let (server, client) = fixture().await;
    for name in ["a/", "a/1", "a/b/2", "a/b/3", "a/c/4", "a/z", "b", "c/5"] {
        server.upload("models", name, "x").await.unwrap();
    }
    let all = listed(&client, &server, "").await;
    assert_eq!(names(&all), ["a/", "a/1", "a/b/2", "a/b/3", "a/c/4", "a/z", "b", "c/5"]);
    let below = listed(&client, &server, "prefix=a/&delimiter=/&pageToken=").await;
    assert_eq!((names(&below), &below["prefixes"]), (vec!["a/", "a/1", "a/z"], &json!(["a/b/", "a/c/"])));
    let top = listed(&client, &server, "delimiter=/&includeTrailingDelimiter=true").await;
    assert_eq!((names(&top), &top["prefixes"]), (vec!["a/", "b"], &json!(["a/", "c/"])));
    let some = listed(&client, &server, "startOffset=a/b/3&endOffset=b").await;
    assert_eq!(names(&some), ["a/b/3", "a/c/4", "a/z"]);
    assert!(listed(&client, &server, "prefix=nothing").await.get("items").is_none());

    let (mut found, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let parameters = format!("prefix=a/&delimiter=/&maxResults=2&pageToken={token}");
        let page = listed(&client, &server, &parameters).await;
        found.extend(names(&page).into_iter().map(str::to_owned));
        let prefixes = page["prefixes"].as_array().into_iter().flatten();
        found.extend(prefixes.map(|prefix| prefix.as_str().unwrap().to_owned()));
        pages += 1;
        let Some(next) = page["nextPageToken"].as_str() else { break };
        token = next.to_owned();
    }
    found.sort();
    assert_eq!((found.join(" ").as_str(), pages), ("a/ a/1 a/b/ a/c/ a/z", 3));
    assert_eq!(status(client.get(api(&server, "o?pageToken=%21"))).await, 400);
}

#[tokio::test]
async fn buckets_are_made_once_and_missing_ones_are_said_to_be() {
    let (server, client) = fixture().await;
    let buckets = format!("{}/storage/v1/b", server.endpoint());
    let make = |name: &str| client.post(&buckets).body(json!({ "name": name }).to_string());
    assert_eq!(status(make("more")).await, 200);
    assert_eq!(status(make("more")).await, 409);
    assert_eq!(status(make("x")).await, 400);
    let all = value(client.get(&buckets).send().await.unwrap()).await;
    assert_eq!(names(&all), ["models", "more"]);
    assert_eq!(status(client.get(format!("{buckets}/more"))).await, 200);
    let layout = value(client.get(format!("{buckets}/more/storageLayout")).send().await.unwrap()).await;
    assert_eq!(layout["hierarchicalNamespace"]["enabled"], false);
    for path in ["nowhere", "nowhere/o", "nowhere/o/x", "nowhere/storageLayout"] {
        let answer = client.get(format!("{buckets}/{path}")).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        assert_eq!(value(answer).await["error"]["message"], "The specified bucket does not exist.", "{path}");
    }
}

#[tokio::test]
async fn preconditions_are_held_to() {
    let (server, client) = fixture().await;
    let generation = server.upload("models", "w", "first").await.unwrap().generation;
    let object = |condition: &str| api(&server, &format!("o/w?{condition}"));
    for (condition, expected) in [
        (format!("ifGenerationMatch={generation}"), 200),
        ("ifGenerationMatch=0".to_owned(), 412),
        (format!("ifGenerationNotMatch={generation}"), 304),
        ("ifGenerationNotMatch=1".to_owned(), 200),
        ("ifMetagenerationMatch=1".to_owned(), 200),
        ("ifMetagenerationMatch=2&alt=media".to_owned(), 412),
        ("ifMetagenerationNotMatch=1&alt=media".to_owned(), 304),
        ("ifGenerationMatch=x".to_owned(), 400),
    ] {
        assert_eq!(status(client.get(object(&condition))).await, expected, "{condition}");
    }
    let put = |condition: &str| {
        client.post(uploading(&server, &format!("uploadType=media&name=w&{condition}"))).body("second")
    };
    assert_eq!(status(put("ifGenerationMatch=0")).await, 412);
    assert_eq!(status(put(&format!("ifGenerationNotMatch={generation}"))).await, 412);
    assert_eq!(status(client.delete(object("ifGenerationMatch=1"))).await, 412);
    assert_eq!(server.download("models", "w").await.unwrap(), "first");
    assert_eq!(status(put(&format!("ifGenerationMatch={generation}"))).await, 200);
    assert_eq!(server.download("models", "w").await.unwrap(), "second");
}

#[tokio::test]
async fn one_request_brings_an_object_with_what_is_said_of_it() {
    let (server, client) = fixture().await;
    let send = |described: Value, claimed: &str| {
        let body = format!(
            "--b\r\nContent-Type: application/json\r\n\r\n{described}\r\n--b\r\nContent-Type: text/plain\r\n\r\n\
             hello\r\n--b\r\n\r\n{claimed}\r\n--b--\r\n"
        );
        let request = client.post(uploading(&server, "uploadType=multipart"));
        request.header("content-type", "multipart/related; boundary=b").body(body).send()
    };
    let described = json!({"name": "a/b c", "metadata": {"k": "v"}, "cacheControl": "no-store"});
    let resource = value(send(described.clone(), r#"{"crc32c":"mnG7TA=="}"#).await.unwrap()).await;
    assert_eq!((&resource["contentType"], &resource["crc32c"]), (&json!("text/plain"), &json!("mnG7TA==")));
    assert_eq!(resource["md5Hash"], "XUFAKrxLKna5cZ2REBfFkg==");
    let read = client.get(api(&server, "o/a%2Fb%20c?alt=media")).send().await.unwrap();
    assert_eq!((header(&read, "x-goog-meta-k"), header(&read, "cache-control")), ("v", "no-store"));
    assert_eq!(read.text().await.unwrap(), "hello");
    assert_eq!(send(described, r#"{"crc32c":"AAAAAA=="}"#).await.unwrap().status(), 400);
    let wrong =
        client.post(uploading(&server, "uploadType=media&name=x")).header("x-goog-hash", "crc32c=AAAAAA==");
    assert_eq!(status(wrong.body("hello")).await, 400);
    // Of several lines each counts.
    let wrong = client.post(uploading(&server, "uploadType=media&name=x"));
    let wrong = wrong.header("x-goog-hash", "crc32c=mnG7TA==").header("x-goog-hash", "md5=AAAA");
    assert_eq!(status(wrong.body("hello")).await, 400);
    assert!(server.stat("models", "x").await.is_err());
}

#[tokio::test]
async fn an_object_is_made_of_others() {
    let (server, client) = fixture().await;
    let one = server.upload("models", "parts/1", "one, ").await.unwrap();
    server.upload("models", "parts/2", "two").await.unwrap();
    let compose = |generation: i64| {
        let sources = json!([{"name": "parts/1", "generation": generation.to_string()}, {"name": "parts/2"}]);
        let body = json!({"sourceObjects": sources, "destination": {"contentType": "text/plain", "crc32c": one.crc32c}});
        client.post(api(&server, "o/a%2Fw/compose?ifGenerationMatch=0")).body(body.to_string())
    };
    assert_eq!(status(compose(1)).await, 404);
    let resource = value(compose(one.generation).send().await.unwrap()).await;
    assert_eq!((&resource["name"], &resource["contentType"]), (&json!("a/w"), &json!("text/plain")));
    assert_eq!(server.download("models", "a/w").await.unwrap(), "one, two");
    assert_eq!(status(compose(one.generation)).await, 412);
    for count in [0, 33] {
        let sources = json!({"sourceObjects": vec![json!({"name": "parts/1"}); count]}).to_string();
        let request = client.post(api(&server, "o/many/compose")).body(sources);
        assert_eq!(status(request).await, 400, "{count} sources");
    }
}

async fn begin(client: &Client, server: &BucketServer, parameters: &str) -> String {
    let request = client.post(uploading(server, &format!("uploadType=resumable&{parameters}")));
    // As from the clients that leave the port out.
    let answer = request.header("host", "localhost").body("{}").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let location = header(&answer, "location").to_owned();
    assert!(location.starts_with(&server.endpoint()), "{location}");
    location
}

async fn send(client: &Client, session: &str, range: &str, body: Vec<u8>) -> (u16, String) {
    let answer = client.put(session).header("content-range", range).body(body).send().await.unwrap();
    (answer.status().as_u16(), header(&answer, "range").to_owned())
}

fn here(bytes: usize) -> (u16, String) {
    (308, format!("bytes=0-{}", bytes - 1))
}

#[tokio::test]
async fn an_object_comes_in_parts_and_is_there_at_the_end() {
    let (server, client) = fixture().await;
    let whole = crate::Pattern::new(1).bytes(0, QUANTUM * 3 + 5);
    let session = begin(&client, &server, "name=a/w").await;
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await, (308, String::new()));
    let part = async |first: usize, end: usize| {
        let range = format!("bytes {first}-{}/*", end - 1);
        send(&client, &session, &range, whole[first..end].to_vec()).await
    };
    assert_eq!(part(0, QUANTUM).await, here(QUANTUM));
    // Of what is no multiple, the rest is forgotten.
    assert_eq!(part(QUANTUM, QUANTUM * 2 + 10).await, here(QUANTUM * 2));
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await, here(QUANTUM * 2));
    assert_eq!(part(QUANTUM * 2 + 10, QUANTUM * 3).await.0, 400);
    assert!(server.stat("models", "a/w").await.is_err());

    // What is known may be sent again.
    let total = whole.len();
    let last = format!("bytes {QUANTUM}-{}/{total}", total - 1);
    assert_eq!(send(&client, &session, &last, whole[QUANTUM..].to_vec()).await.0, 200);
    assert_eq!(server.download("models", "a/w").await.unwrap(), whole);
    // Who did not hear of the end asks again.
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await.0, 200);
    // Its object is another's by then.
    server.upload("models", "a/w", "another").await.unwrap();
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await.0, 404);
    assert_eq!(send(&client, &begin(&client, &server, "name=empty").await, "bytes */0", vec![]).await.0, 200);
    assert_eq!(server.stat("models", "empty").await.unwrap().size, 0);
    let session = begin(&client, &server, "name=streamed").await;
    assert_eq!(send(&client, &session, "bytes 0-*/*", b"all of it".to_vec()).await.0, 200);
    assert_eq!(server.download("models", "streamed").await.unwrap(), "all of it");
}

#[tokio::test]
async fn what_is_given_up_half_way_is_no_object() {
    let (server, client) = fixture().await;
    let session = begin(&client, &server, "name=w").await;
    // A request that promises more than it sends.
    let mut stream = TcpStream::connect(server.endpoint().strip_prefix("http://").unwrap()).await.unwrap();
    let path = session.strip_prefix(&server.endpoint()).unwrap();
    let length = QUANTUM * 4;
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\ncontent-range: bytes 0-{}/{length}\r\n\r\n",
        length - 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![7; QUANTUM + 100]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    // Whether it is told anything does not matter: it has gone.
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await, here(QUANTUM));
    assert!(server.stat("models", "w").await.is_err());

    let quiet =
        client.post(&session).header("content-range", "bytes */*").header("x-guploader-no-308", "yes");
    let quiet = quiet.send().await.unwrap();
    assert_eq!((quiet.status().as_u16(), header(&quiet, "x-http-status-code-override")), (200, "308"));
    assert_eq!(status(client.delete(&session)).await, 499);
    assert_eq!(send(&client, &session, "bytes */*", vec![]).await.0, 404);
    assert_eq!(send(&client, &format!("{session}1"), "bytes */*", vec![]).await.0, 404);
}

#[tokio::test]
async fn of_two_writers_one_is_refused() {
    let (server, client) = fixture().await;
    let one = begin(&client, &server, "name=w&ifGenerationMatch=0").await;
    let two = begin(&client, &server, "name=w&ifGenerationMatch=0").await;
    assert_eq!(send(&client, &two, "bytes 0-2/3", b"two".to_vec()).await.0, 200);
    assert_eq!(send(&client, &one, "bytes 0-2/3", b"one".to_vec()).await.0, 412);
    assert_eq!(send(&client, &one, "bytes */*", vec![]).await.0, 412);
    assert_eq!(server.download("models", "w").await.unwrap(), "two");
    // Who comes now need not send anything to be told.
    let late = client.post(uploading(&server, "uploadType=resumable&name=w&ifGenerationMatch=0"));
    assert_eq!(status(late).await, 412);
    let wrong = client.put(begin(&client, &server, "name=x").await).header("x-goog-hash", "crc32c=AAAAAA==");
    assert_eq!(status(wrong.body("hello")).await, 400);
}

#[tokio::test]
async fn objects_are_read_by_the_other_api_too() {
    let (server, client) = fixture().await;
    let uploaded = server.upload("models", "a/b c", "0123456789").await.unwrap();
    let url = format!("{}/models/a/b%20c", server.endpoint());
    let read = client.get(&url).header("range", "bytes=-3").send().await.unwrap();
    assert_eq!((read.status().as_u16(), header(&read, "content-range")), (206, "bytes 7-9/10"));
    assert_eq!(header(&read, "x-goog-stored-content-encoding"), "identity");
    assert_eq!(read.text().await.unwrap(), "789");
    let head = client.head(format!("{url}?generation={}", uploaded.generation)).send().await.unwrap();
    assert_eq!((header(&head, "content-length"), header(&head, "x-goog-metageneration")), ("10", "1"));
    assert_eq!(status(client.get(&url).header("x-goog-if-generation-match", "1")).await, 412);
    let missing = client.get(format!("{url}d")).send().await.unwrap();
    assert_eq!(missing.status(), 404);
    assert!(missing.text().await.unwrap().contains("<Code>NoSuchKey</Code>"));
}

#[tokio::test]
async fn directories_are_objects() {
    let (server, client) = fixture().await;
    let directory = tempfile::tempdir().unwrap();
    let large = crate::Pattern::new(2).bytes(0, 5 << 20);
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(directory.path().join("sub/large"), &large).unwrap();
    fs::write(directory.path().join("empty"), "").unwrap();
    server.place_directory("placed", "m", directory.path()).unwrap();
    server.place_directory("placed", "", directory.path()).unwrap();
    let url = format!("{}/storage/v1/b/placed/o", server.endpoint());
    let listing = value(client.get(&url).send().await.unwrap()).await;
    assert_eq!(names(&listing), ["empty", "m/empty", "m/sub/large", "sub/large"]);
    assert!(listing["items"][2].get("md5Hash").is_none());
    let same = server.upload("models", "large", large.clone()).await.unwrap();
    assert_eq!(listing["items"][2]["crc32c"], same.crc32c);
    let read = client.get(format!("{}/placed/m/sub/large", server.endpoint())).send().await.unwrap();
    assert_eq!(read.bytes().await.unwrap(), large);
    let empty = client.get(format!("{}/placed/empty", server.endpoint())).send().await.unwrap();
    assert_eq!(empty.bytes().await.unwrap(), "");
    fs::remove_file(directory.path().join("empty")).unwrap();
    let placed =
        [Placed { bucket: "x".to_owned(), prefix: String::new(), directory: directory.path().into() }];
    let options = BucketOptions { place: placed.into(), ..BucketOptions::default() };
    assert!(BucketServer::start_with(options).await.is_err(), "no bucket is called x");
}

#[tokio::test]
async fn a_connection_and_a_host_have_their_pace() {
    let fetch = async |shape: Shape, clients: usize| {
        let server =
            BucketServer::start_with(BucketOptions { shape, ..BucketOptions::default() }).await.unwrap();
        server.create_bucket("models").await.unwrap();
        server.upload("models", "w", vec![1; 300_000]).await.unwrap();
        let url = api(&server, "o/w?alt=media");
        let started = Instant::now();
        let fetched = (0..clients).map(|_| {
            let (url, client) = (url.clone(), serve::client());
            async move { client.get(url).send().await.unwrap().bytes().await.unwrap().len() }
        });
        let lengths = futures::future::join_all(fetched).await;
        assert_eq!(lengths, vec![300_000; clients]);
        assert_eq!((server.bytes_sent(), server.request_count()), (300_000 * clients as u64, clients as u64));
        started.elapsed()
    };
    let rate = Some(1_000_000);
    // Both may be behind by a little, and catch up.
    let least = Duration::from_millis(280);
    assert!(fetch(Shape { per_connection: rate, ..Shape::default() }, 2).await >= least);
    assert!(fetch(Shape { per_host: rate, ..Shape::default() }, 2).await >= least * 2);
    let first_byte = Duration::from_millis(100);
    assert!(fetch(Shape { first_byte, ..Shape::default() }, 1).await >= first_byte);
    assert_eq!(Shape::like_a_bucket().per_host, Some(10_000_000_000 / 8));
}

#[tokio::test]
async fn clients_that_trust_the_certificate_get_in_over_tls() {
    let server = BucketServer::start_tls().await.unwrap();
    server.create_bucket("models").await.unwrap();
    let large = crate::Pattern::new(3).bytes(0, 3 << 20);
    server.upload("models", "x", large.clone()).await.unwrap();
    assert!(server.endpoint().starts_with("https://127.0.0.1:"));
    let url = api(&server, "o/x?alt=media");
    let ca = reqwest::Certificate::from_pem(&fs::read(server.ca_file().unwrap()).unwrap()).unwrap();
    let client = Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    assert_eq!(answer.bytes().await.unwrap(), large);
    assert!(Client::builder().no_proxy().build().unwrap().get(&url).send().await.is_err());
}

#[tokio::test]
async fn connections_end_with_the_server() {
    let options = BucketOptions { log: true, ..BucketOptions::default() };
    let server = BucketServer::start_with(options).await.unwrap();
    let mut stream = TcpStream::connect(server.endpoint().strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(b"HEAD /models/x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    assert_eq!(server.requests().unwrap().all()[0].target, "/models/x");
    let counters = serve::client().get(format!("{}/_weightd/counters", server.endpoint()));
    assert_eq!(value(counters.send().await.unwrap()).await, json!({"bytes_sent": 0, "requests": 1}));
    drop(server);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest));
    assert!(ended.await.is_ok(), "the connection is still open");
}
