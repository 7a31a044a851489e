//! What a pod is let in by, and what ends that.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU16, atomic::Ordering::Relaxed},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use url::Url;
use weightd_source::{Credential, Secret};
use weightd_types::SourceUri;

use super::{Manner, Notes, Origin, admit, hub, key, uri, with_hub_token};
use crate::{Access, AccessError, Admission, Config, Exchange, Pod, Token, WhoReads};

fn access(notes: &Arc<Notes>, config: Config) -> Access {
    Access::new(Arc::new(Origin(Arc::clone(notes))), config)
}

/// Whether an earlier answer counts for a pod while the origin is away.
async fn counts(access: &Access, notes: &Notes, pod: &Pod) -> bool {
    notes.answer(Manner::Away);
    matches!(admit(access, pod, "hf://o/n").await, Ok(Admission::Earlier { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_shows_a_pod_nothing_any_more_ends_what_it_granted() {
    let notes = Notes::new(&[hub("mine"), hub("other")]);
    let access = access(&notes, Config::default());
    let (mine, other) = (with_hub_token("mine"), with_hub_token("other"));
    for pod in [&mine, &other] {
        admit(&access, pod, "hf://o/n").await.unwrap();
    }
    assert!(counts(&access, &notes, &mine).await);
    notes.answer(Manner::Hides);
    notes.welcome(&[hub("other")]);
    let error = admit(&access, &mine, "hf://o/n").await.unwrap_err();
    assert!(matches!(&error, AccessError::Resolve(error) if error.kind() == "not_found"), "{error}");
    assert!(!counts(&access, &notes, &mine).await, "it was shown what is here");
    assert!(counts(&access, &notes, &other).await);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_while_fetching_is_not_shown_what_is_here_either() {
    for manner in [Manner::Refuses, Manner::Hides] {
        let notes = Notes::new(&[hub("mine"), hub("other")]);
        let access = access(&notes, Config::default());
        let (mine, other) = (with_hub_token("mine"), with_hub_token("other"));
        let _other = admit(&access, &other, "hf://o/n").await.unwrap();
        let _mine = admit(&access, &mine, "hf://o/n").await.unwrap();
        assert!(counts(&access, &notes, &mine).await);
        notes.answer(manner);
        notes.welcome(&[hub("other")]);
        access.opener().open(&uri("hf://o/n")).await.unwrap().list().await.unwrap();
        assert!(!counts(&access, &notes, &mine).await, "{manner:?}");
        assert!(counts(&access, &notes, &other).await, "{manner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_web_server_is_asked_as_what_confines_a_pod_also_where_pods_read_as_the_node() {
    let web = vec![Url::parse("https://models.example/llm").unwrap()];
    let confined = Credential::Web(web.clone().into());
    let notes = Notes::new(&[confined.clone(), Credential::Node]);
    for identity in [WhoReads::Pod, WhoReads::Node] {
        let access = access(&notes, Config { identity, web: web.clone(), ..Config::default() });
        admit(&access, &Pod::default(), "https://models.example/llm/m").await.unwrap();
        assert!(notes.asked().iter().all(|who| *who == confined), "{identity:?}");
        let error = admit(&access, &Pod::default(), "https://models.example/other").await.unwrap_err();
        assert!(error.to_string().contains("access.web"), "{error}");
        assert!(notes.asked().is_empty());
    }
}

/// Whether a source is fetched as anyone, by those who are there.
async fn is_fetched(access: &Access, source: &SourceUri) -> bool {
    access.opener().open(source).await.unwrap().list().await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_pods_volume_of_an_earlier_agent_waits_for_its_pod() {
    let pods = Path::new("/var/lib/kubelet/pods/a");
    for (identity, source, is_nodes) in [
        (WhoReads::Pod, "gs://b/m", false),
        (WhoReads::Node, "gs://b/m", true),
        (WhoReads::Node, "https://models.example/m", false),
        (WhoReads::Node, "file:///m", false),
    ] {
        let access = access(&Notes::new(&[Credential::Node]), Config { identity, ..Config::default() });
        access.adopt(pods, key(), &uri(source)).await;
        assert_eq!(is_fetched(&access, &uri(source)).await, is_nodes, "{identity:?} {source}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_left_open_is_not_fetched_for_a_pod_that_an_earlier_agent_had_either() {
    let (source, pods, operators) =
        (uri("gs://b/m"), Path::new("/var/lib/kubelet/pods/a"), Path::new("/mnt/a"));
    for has_pod in [false, true] {
        let access = access(&Notes::new(&[Credential::Node]), Config::default());
        if has_pod {
            access.adopt(pods, key(), &source).await;
        }
        access.adopt(operators, key(), &source).await;
        assert!(is_fetched(&access, &source).await);
        access.end(operators);
        assert_eq!(is_fetched(&access, &source).await, !has_pod);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_has_brought_is_not_taken_for_what_an_earlier_agent_left() {
    let (notes, target) = (Notes::new(&[hub("mine")]), Path::new("/var/lib/kubelet/pods/a"));
    let access = access(&notes, Config::default());
    let admitted = admit(&access, &with_hub_token("mine"), "hf://o/n").await.unwrap();
    let Admission::Now { lease, .. } = admitted else { panic!("{admitted:?}") };
    lease.settle(target, key());
    access.adopt(target, key(), &uri("hf://o/n")).await;
    assert!(is_fetched(&access, &uri("hf://o/n")).await);
}

#[tokio::test]
async fn pods_pin_only_where_the_operator_says_so() {
    let notes = Notes::new(&[]);
    let error = access(&notes, Config::default()).check_pin(&uri("gs://b/m")).unwrap_err().to_string();
    for words in ["gs://b/m: pods may not pin", "access.pods_may_pin = true", "leave pin out"] {
        assert!(error.contains(words), "{error}");
    }
    let config = Config { pods_may_pin: true, ..Config::default() };
    access(&notes, config).check_pin(&uri("gs://b/m")).unwrap();
}

/// A token service that answers with a status that can be changed.
async fn token_service(status: &Arc<AtomicU16>) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/token", listener.local_addr().unwrap()).parse().unwrap();
    let status = Arc::clone(status);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !String::from_utf8_lossy(&request).contains("subject_token=") {
                if connection.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let body = "{\"access_token\":\"given\",\"expires_in\":3600}";
            let (status, length) = (status.load(Relaxed), body.len());
            let head =
                format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            // Who has gone needs no answer.
            let _ = connection.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    url
}

/// A pod whose token is no other's.
fn with_token(name: &str) -> Pod {
    let claims = format!(r#"{{"sub":"system:serviceaccount:team:{name}"}}"#);
    let token = Secret::new(&format!("e30.{}.", URL_SAFE_NO_PAD.encode(claims)));
    Pod {
        name: name.to_owned(),
        namespace: "team".to_owned(),
        service_account: name.to_owned(),
        tokens: [("cluster".to_owned(), Token { token, expires_at: None })].into(),
        ..Pod::default()
    }
}

#[tokio::test]
async fn every_metric_moves() {
    let status = Arc::new(AtomicU16::new(200));
    let exchange = Exchange { audience: "cluster".to_owned(), provider: "pool".to_owned() };
    let sts_endpoint = token_service(&status).await;
    let notes = Notes::new(&[super::token("given")]);
    let access = access(&notes, Config { exchange: Some(exchange), sts_endpoint, ..Config::default() });
    let _lease = admit(&access, &with_token("first"), "gs://b/m").await.unwrap();
    notes.answer(Manner::Away);
    admit(&access, &with_token("first"), "gs://b/m").await.unwrap();
    status.store(503, Relaxed);
    admit(&access, &with_token("second"), "gs://b/m").await.unwrap_err();
    status.store(400, Relaxed);
    admit(&access, &with_token("second"), "gs://b/m").await.unwrap_err();
    access.refresh_metrics();
    let (mut registry, mut text) = (Registry::default(), String::new());
    access.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(values.len(), 8, "{text}");
    for line in values {
        assert!(line.starts_with("weightd_access_") && line.ends_with(" 1"), "{line} in\n{text}");
    }
}
