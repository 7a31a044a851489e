use serde_json::Value;

use super::*;
use crate::serve;

async fn json(url: &str) -> Value {
    serde_json::from_str(&serve::client().get(url).send().await.unwrap().text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn listings_come_in_pages_of_the_commit_that_was_asked_for() {
    let hub = HubServer::start().await.unwrap();
    let first =
        hub.push("org/model", Repository::new().file("config.json", "{}").large_file("a/w", "weights"));
    hub.tag("org/model", "refs/pr/1").unwrap();
    let second = hub.push("org/model", Repository::new().file("config.json", "{ }"));
    let api = format!("{}/api/models/org/model", hub.endpoint());
    assert_eq!(json(&api).await["sha"], second);
    assert_eq!(json(&format!("{api}/revision/{first}")).await["sha"], first);
    assert_eq!(json(&format!("{api}/revision/refs%2Fpr%2F1")).await["sha"], first);

    hub.set_page(1);
    let mut url = format!("{api}/tree/{first}?recursive=true");
    let mut paths = Vec::new();
    loop {
        let page = serve::client().get(&url).send().await.unwrap();
        let link = page.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Vec<Value> = serde_json::from_str(&page.text().await.unwrap()).unwrap();
        paths.extend(page.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()));
        let Some(link) = link else { break };
        url = link.split(['<', '>']).nth(1).unwrap().to_owned();
    }
    assert_eq!(paths, ["a", "a/w", "config.json"]);
}

#[tokio::test]
async fn large_files_come_from_another_origin_which_never_sees_the_token() {
    let hub = HubServer::start().await.unwrap();
    hub.push("org/model", Repository::new().file("config.json", "{}").large_file("w", "0123456789").gated());
    hub.grant("hf_good", &["org/model"]);
    hub.grant("hf_other", &[]);
    let url = |path| format!("{}/org/model/resolve/main/{path}", hub.endpoint());
    let get = |path, token| serve::client().get(url(path)).bearer_auth(token).header("range", "bytes=2-4");

    let answer = get("w", "hf_good").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (206, "234"));
    assert!(hub.requests().all()[0].header("authorization").is_some());
    assert!(hub.cdn_requests().all()[0].header("authorization").is_none());
    assert_eq!(get("config.json", "hf_good").send().await.unwrap().status(), 416, "two bytes only");

    let refused = get("w", "hf_other").send().await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["x-error-code"]),
        (403, &"GatedRepo".parse().unwrap())
    );
    assert_eq!(get("w", "hf_wrong").send().await.unwrap().status(), 401);
    assert_eq!(serve::client().get(url("w")).send().await.unwrap().status(), 401);
    let missing = get("nope", "hf_good").send().await.unwrap();
    assert_eq!(missing.headers()["x-error-code"], "EntryNotFound");
}

#[tokio::test]
async fn redirects_expire_and_private_repositories_look_missing() {
    let hub = HubServer::start().await.unwrap();
    hub.push("org/model", Repository::new().large_file("w", "0123456789"));
    hub.push("org/secret", Repository::new().file("x", "y").private());
    hub.grant("hf_other", &[]);
    let client =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = client.head(format!("{}/org/model/resolve/main/w", hub.endpoint())).send().await.unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.headers()["x-linked-size"], "10");
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&hub.cdn_endpoint()));
    assert_eq!(client.get(&location).send().await.unwrap().status(), 200);
    hub.expire_redirects();
    assert_eq!(client.get(&location).send().await.unwrap().status(), 403);

    let secret = format!("{}/api/models/org/secret", hub.endpoint());
    let known = client.get(&secret).bearer_auth("hf_other").send().await.unwrap();
    assert_eq!(
        (known.status().as_u16(), &known.headers()["x-error-code"]),
        (404, &"RepoNotFound".parse().unwrap())
    );
    assert_eq!(client.get(&secret).send().await.unwrap().status(), 401);
}
