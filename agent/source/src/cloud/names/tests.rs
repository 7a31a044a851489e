use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{
    ClientOptions, ObjectStore,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService},
    http::HttpBuilder,
};

use super::*;
use crate::cloud::connector::Kept;

/// A server that gives one answer to all requests.
#[derive(Debug, Clone)]
struct Canned(String);

#[async_trait]
impl HttpService for Canned {
    async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
        Ok(HttpResponse::new(self.0.clone().into()))
    }
}

impl HttpConnector for Canned {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Kept(HttpClient::new(self.clone()))))
    }
}

async fn names(store: &dyn ObjectStore) -> Vec<Result<String, String>> {
    let prefix = Path::parse("m").unwrap();
    let metas: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
    metas.iter().map(|meta| of(&meta.location).map(Cow::into_owned)).collect()
}

async fn s3(keys: &[&str]) -> Vec<Result<String, String>> {
    let entries = keys.iter().map(|key| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>e</ETag>\
             <Size>1</Size><Owner><Key>a//b</Key></Owner></Contents>"
        )
    });
    let xml = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Key>a//b</Key>{}</ListBucketResult>",
        entries.collect::<String>()
    );
    let store = AmazonS3Builder::new().with_bucket_name("b").with_skip_signature(true).with_region("r");
    names(&store.with_http_connector(Canned(xml)).build().unwrap()).await
}

#[tokio::test]
async fn every_key_of_s3_comes_through_as_it_is() {
    for (key, name) in [
        ("m/a.bin", "m/a.bin"),
        ("m//a", "m//a"),
        ("m/../a", "m/../a"),
        ("/m/a", "/m/a"),
        ("m/sub/", "m/sub/"),
        ("m/", "m/"),
        ("m/a ", "m/a "),
        (" m/a", " m/a"),
        ("m/&#x1;&#10;&#0;", "m/\u{1}\n\0"),
        ("m/a\tb\r\nc", "m/a\tb\r\nc"),
        ("m/&lt;&amp;//&gt;", "m/<&//>"),
        ("m/<![CDATA[<a>//b]]>c", "m/<a>//bc"),
        ("m/ü//模", "m/ü//模"),
        ("m/%2F//", "m/%2F//"),
        ("weightd-carried-00", "weightd-carried-00"),
    ] {
        assert_eq!(s3(&["m/before", key, "m/after"]).await[1], Ok(name.to_owned()), "{key:?}");
    }
    assert_eq!(s3(&["m/before", "m//", "m/after"]).await.len(), 3);
}

#[tokio::test]
async fn every_name_of_azure_comes_through_as_it_is() {
    let blob = |name: &str| {
        format!(
            "<Blob>{name}<Properties><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>\
             <Content-Length>1</Content-Length><Content-Type>x</Content-Type><Etag>e</Etag></Properties></Blob>"
        )
    };
    let blobs = ["<Name>m//a</Name>", "<Name Encoded=\"true\">m/%EF%BF%BE%25</Name>", "<Name>m/b</Name>"];
    let xml = format!(
        "<EnumerationResults><Prefix>m/</Prefix><Blobs>{}</Blobs></EnumerationResults>",
        blobs.map(blob).concat()
    );
    let store =
        MicrosoftAzureBuilder::new().with_container_name("c").with_account("a").with_skip_signature(true);
    let names = names(&store.with_http_connector(Canned(xml)).build().unwrap()).await;
    assert_eq!(names, [Ok("m//a".to_owned()), Ok("m/\u{fffe}%".to_owned()), Ok("m/b".to_owned())]);
}

#[tokio::test]
async fn every_address_of_webdav_comes_through_as_it_is() {
    let response = |href: &str| {
        format!(
            "<D:response><D:href>{href}</D:href><D:propstat><D:prop><D:resourcetype/>\
             <D:getlastmodified>Thu, 01 Jan 2026 00:00:00 GMT</D:getlastmodified>\
             <D:getcontentlength>1</D:getcontentlength></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
             </D:propstat></D:response>"
        )
    };
    let hrefs = ["/m/a%20b", "/m/a%0Ab", "http://host/m/%2e%2e/b", "/m/%FF", "/m/%25%3F%23", "/m/a&amp;b"];
    let xml = format!("<D:multistatus xmlns:D=\"DAV:\">{}</D:multistatus>", hrefs.map(response).concat());
    let store = HttpBuilder::new().with_url("http://host").with_http_connector(Canned(xml)).build().unwrap();
    let ok = |name: &str| Ok(name.to_owned());
    let expected =
        [ok("m/a b"), ok("m/a\nb"), ok("m/../b"), Err("m/\u{fffd}".to_owned()), ok("m/%?#"), ok("m/a&b")];
    assert_eq!(names(&store).await, expected);
}

#[test]
fn any_name_is_carried_and_comes_back() {
    bolero::check!().with_type::<String>().for_each(|name| {
        let escaped: String = name.chars().map(|c| format!("&#{};", u32::from(c))).collect();
        let listing = format!("<L><Contents><Key>{escaped}</Key></Contents></L>");
        let carried = String::from_utf8(carry(listing.into()).to_vec()).unwrap();
        let key = carried.split_once("<Key>").unwrap().1.split_once("</Key>").unwrap().0;
        if key != escaped {
            assert_eq!(of(&Path::parse(key).unwrap()).unwrap(), name.as_str());
        } else {
            assert!(Path::parse(name).is_ok_and(|path| path.as_ref() == name), "{name:?}");
        }
    });
}

#[test]
fn any_bytes_are_carried_without_a_panic_and_nothing_else_is_changed() {
    bolero::check!().for_each(|bytes: &[u8]| {
        drop(carry(Bytes::copy_from_slice(bytes)));
        let within = [b"<L><Contents><Key>", bytes, b"</Key></Contents></L>"].concat();
        drop(carry(within.into()));
    });
    for same in ["", "{}", "<a", "<L><Contents><Key>a/b</Key></Contents></L>", "<L><Key>a//b</Key></L>"] {
        assert_eq!(carry(same.into()), same);
    }
}
