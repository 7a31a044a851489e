//! Profiles of Amazon's tools, as they show in what is sent.

use std::fs;

use weightd_harness::{FaultProxy, S3Server, require};
use weightd_source::{Config, Opener};

use crate::fixtures::{origins, uri};

/// Whose key, and for which region, the requests of a listing are signed.
async fn signed(proxy: &FaultProxy, environment: &[(&str, &str)]) -> String {
    proxy.requests().clear();
    let source = origins(&Config::default(), environment).open(&uri("s3://models/m")).await.unwrap();
    assert_eq!(source.list().await.unwrap().len(), 1);
    let request = proxy.requests().all().remove(0);
    let signature = request.header("authorization").unwrap();
    let scope: Vec<&str> = signature.split_once("Credential=").unwrap().1.split('/').collect();
    format!("{} {} {}", scope[0], scope[2], request.header("x-amz-security-token").unwrap_or("-"))
}

#[tokio::test]
async fn a_profile_gives_what_the_environment_does_not() {
    let server = require!(S3Server::start().await);
    server.create_bucket("models").await.unwrap();
    server.upload("models", "m/config.json", "{}").await.unwrap();
    let proxy = FaultProxy::start(&server.endpoint()).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = |id: &str| format!("aws_access_key_id={id}\naws_secret_access_key=x\n");
    let credentials = format!("[default]\n{}[lab]\n{}aws_session_token=T\n", keys("DEFAULT"), keys("LAB"));
    let at = format!("endpoint_url={}", proxy.url());
    let config = format!("[default]\nregion=eu-west-1\n{at}\n[profile lab]\nregion=us-west-2\n{at}\n");
    fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    fs::write(home.path().join(".aws/config"), config).unwrap();

    let home = ("HOME", home.path().to_str().unwrap());
    assert_eq!(signed(&proxy, &[home]).await, "DEFAULT eu-west-1 -");
    let lab = [home, ("AWS_PROFILE", "lab")];
    assert_eq!(signed(&proxy, &lab).await, "LAB us-west-2 T");
    let region = [lab.as_slice(), &[("AWS_REGION", "eu-north-1")]].concat();
    assert_eq!(signed(&proxy, &region).await, "LAB eu-north-1 T");
    let own = [("AWS_ACCESS_KEY_ID", "OWN"), ("AWS_SECRET_ACCESS_KEY", "y")];
    assert_eq!(signed(&proxy, &[lab.as_slice(), &own].concat()).await, "OWN us-west-2 -");
}
