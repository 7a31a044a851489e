//! As whom fetching asks.

use std::sync::Arc;

use url::Url;
use weightd_source::{Credential, Opener};

use super::{Manner, account, gate, hub, token, uri};
use crate::identity::Principal;

#[tokio::test]
async fn whoever_is_there_is_asked_as_and_who_was_refused_is_not_again() {
    let (gate, notes) = gate(&[token("good")]);
    let x = uri("memory://m/x");
    let source = gate.open(&x).await.unwrap();
    assert!(source.list().await.unwrap_err().is_paused(), "nobody is there");
    let _good = gate.holders.add(&x, account("good"), token("good"), None);
    let _bad = gate.holders.add(&x, account("bad"), token("bad"), None);
    source.list().await.unwrap();
    source.list().await.unwrap();
    assert_eq!(notes.asked(), [token("bad"), token("good"), token("good")]);
    notes.welcome(&[]);
    let error = source.list().await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_paused() && error.is_retryable() && text.contains("the origin refused good"), "{text}");
    assert!(!format!("{text}{error:?}{gate:?}").contains("Google(\""));
    // It comes anew, and is asked as again.
    notes.welcome(&[token("good")]);
    let _again = gate.holders.add(&x, account("good"), token("good"), None);
    source.list().await.unwrap();
}

#[tokio::test]
async fn the_node_asks_for_the_operator_and_to_mend_and_for_nobody_else() {
    let (gate, notes) = gate(&[Credential::Node]);
    let x = uri("memory://m/x");
    let _pod = gate.holders.add(&x, account("pod"), token("pod"), None);
    assert!(gate.open(&x).await.unwrap().list().await.unwrap_err().is_paused());
    assert_eq!(notes.asked(), [token("pod")]);
    gate.open_to_mend(&x).await.unwrap().list().await.unwrap();
    let lease = gate.holders.add(&x, Principal::Node, Credential::Node, None);
    gate.open(&x).await.unwrap().list().await.unwrap();
    drop(lease);
    assert!(gate.open(&x).await.unwrap().list().await.unwrap_err().is_paused(), "it ended with its call");
}

#[tokio::test]
async fn a_hub_that_says_nothing_is_there_may_show_it_to_the_next_token() {
    let (gate, notes) = gate(&[hub("good")]);
    notes.answer(Manner::Hides);
    let repository = uri("hf://o/n");
    let source = gate.open(&repository).await.unwrap();
    let _good = gate.holders.add(&repository, account("good"), hub("good"), None);
    let _blind = gate.holders.add(&repository, account("blind"), hub("blind"), None);
    source.list().await.unwrap();
    source.list().await.unwrap();
    assert_eq!(
        notes.asked(),
        [hub("blind"), hub("good"), hub("good")],
        "who was told so is not asked as again"
    );
    notes.welcome(&[]);
    for told in ["the origin refused good", ""] {
        let error = source.list().await.unwrap_err();
        let text = error.to_string();
        assert!(error.is_paused() && text.contains(told), "{text}");
        let words = "the repository is not there, or none of the tokens that pods brought may see it";
        assert!(text.contains(words), "{text}");
    }
    // Whoever was refused in so many words may not read what is there.
    notes.answer(Manner::Refuses);
    let _denied = gate.holders.add(&repository, account("denied"), hub("denied"), None);
    let text = source.list().await.unwrap_err().to_string();
    assert!(text.contains("no pod that may read hf://o/n is there to ask with; the origin"), "{text}");
}

#[tokio::test]
async fn only_a_hub_means_by_nothing_that_someone_may_not_see() {
    let (gate, notes) = gate(&[token("good")]);
    notes.answer(Manner::Hides);
    let bucket = uri("gs://b/m");
    let _good = gate.holders.add(&bucket, account("good"), token("good"), None);
    let _other = gate.holders.add(&bucket, account("other"), token("other"), None);
    let source = gate.open(&bucket).await.unwrap();
    for _ in 0..2 {
        assert_eq!(source.list().await.unwrap_err().kind(), "not_found");
    }
    assert_eq!(notes.asked(), [token("other"), token("other")]);
}

#[tokio::test]
async fn a_server_that_pods_may_name_leads_to_no_other_when_the_node_mends_either() {
    let allowed = [url::Url::parse("https://models.example/llm").unwrap()];
    let confined = Credential::Web(allowed.clone().into());
    let (mut gate, notes) = gate(&[confined.clone(), Credential::Node]);
    gate.web = allowed.into();
    for (source, expected) in
        [("https://models.example/llm/x", confined), ("https://models.example/other", Credential::Node)]
    {
        gate.open_to_mend(&uri(source)).await.unwrap().list().await.unwrap();
        assert_eq!(notes.asked(), [expected]);
    }
}

#[tokio::test]
async fn a_server_that_a_pod_named_is_asked_as_the_pod_asks_also_for_the_operator() {
    let web: Arc<[Url]> = [Url::parse("https://h/llm").unwrap()].into();
    let as_pods = Credential::Web(Arc::clone(&web));
    let (mut gate, notes) = gate(&[as_pods.clone(), Credential::Node]);
    gate.web = web;
    let (model, other) = (uri("https://h/llm/m"), uri("https://h/other"));
    let _operator = gate.holders.add(&model, Principal::Node, Credential::Node, None);
    gate.open(&model).await.unwrap().list().await.unwrap();
    assert_eq!(notes.asked(), [Credential::Node], "no pod named it");
    let pod = gate.holders.add(&model, account("pod"), as_pods.clone(), None);
    notes.welcome(&[Credential::Node]);
    assert!(gate.open(&model).await.unwrap().list().await.is_err());
    assert!(gate.open(&model).await.unwrap().list().await.is_err());
    assert!(notes.asked().iter().all(|asked| *asked == as_pods), "a refusal of the pod leaves no other way");
    drop(pod);
    gate.open(&model).await.unwrap().list().await.unwrap();
    let _other = gate.holders.add(&other, Principal::Node, Credential::Node, None);
    gate.open(&other).await.unwrap().list().await.unwrap();
}

#[tokio::test]
async fn a_directory_that_pods_may_name_is_mended_from_within_it() {
    let directory = tempfile::tempdir().unwrap();
    let found = directory.path().canonicalize().unwrap();
    let within = Credential::Directory(found.clone());
    let (mut gate, notes) = gate(&[within.clone(), Credential::Node]);
    let source = uri(&format!("file://{}", directory.path().display()));
    gate.open_to_mend(&source).await.unwrap().list().await.unwrap();
    gate.files = [found.display().to_string()].into();
    gate.open_to_mend(&source).await.unwrap().list().await.unwrap();
    assert_eq!(notes.asked(), [Credential::Node, within]);
}
