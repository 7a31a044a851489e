//! As whom fetching asks, at an origin that notes who asked.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, advance, timeout};
use weightd_source::{ByteStream, Credential, Listed, MemoryOrigin, Opener, Secret, Source, SourceError};
use weightd_types::{ByteRange, Layout, Object, SnapshotKey, SourceUri};

use crate::{gate::Gate, holders::Holders, identity::Principal};

#[derive(Debug)]
struct Notes {
    origin: MemoryOrigin,
    welcome: Mutex<Vec<Credential>>,
    asked: Mutex<Vec<Credential>>,
}

#[derive(Debug)]
struct Noted {
    notes: Arc<Notes>,
    source: Arc<dyn Source>,
    credential: Credential,
}

#[derive(Debug)]
struct Origin(Arc<Notes>);

#[async_trait]
impl Opener for Origin {
    async fn open(&self, _: &SourceUri) -> Result<Arc<dyn Source>, SourceError> {
        panic!("nothing is opened as nobody in particular")
    }

    async fn open_as(
        &self,
        uri: &SourceUri,
        credential: &Credential,
    ) -> Result<Arc<dyn Source>, SourceError> {
        let source = self.0.origin.open(uri).await?;
        Ok(Arc::new(Noted { notes: Arc::clone(&self.0), source, credential: credential.clone() }))
    }
}

impl Noted {
    fn check(&self) -> Result<(), SourceError> {
        self.notes.asked.lock().unwrap().push(self.credential.clone());
        if self.notes.welcome.lock().unwrap().contains(&self.credential) {
            return Ok(());
        }
        let (what, detail, remedy) = ("memory://m".to_owned(), "no".to_owned(), "ask".to_owned());
        Err(SourceError::Denied { what, detail, remedy })
    }
}

#[async_trait]
impl Source for Noted {
    async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        self.check()?;
        self.source.list().await
    }

    async fn read(&self, object: &Object, range: ByteRange) -> Result<ByteStream, SourceError> {
        self.check()?;
        self.source.read(object, range).await
    }
}

fn token(text: &str) -> Credential {
    Credential::Google(Secret::new(text))
}

fn uri(text: &str) -> SourceUri {
    text.parse().unwrap()
}

fn account(name: &str) -> Principal {
    Principal::ServiceAccount { subject: name.to_owned(), provider: "pool".to_owned() }
}

fn key() -> SnapshotKey {
    SnapshotKey { id: "0".repeat(64).parse().unwrap(), layout: Layout::Original }
}

fn gate(welcome: &[Credential]) -> (Gate, Arc<Notes>) {
    let origin = MemoryOrigin::new("m");
    origin.put("x/a", "bytes");
    let notes = Arc::new(Notes { origin, welcome: Mutex::new(welcome.to_vec()), asked: Mutex::default() });
    (Gate { origins: Arc::new(Origin(Arc::clone(&notes))), holders: Holders::default() }, notes)
}

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
    assert_eq!(*notes.asked.lock().unwrap(), [token("bad"), token("good"), token("good")]);
    notes.welcome.lock().unwrap().clear();
    let error = source.list().await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_paused() && error.is_retryable() && text.contains("the origin refused good"), "{text}");
    assert!(!format!("{text}{error:?}{gate:?}").contains("Google(\""));
    // It comes anew, and is asked as again.
    notes.welcome.lock().unwrap().push(token("good"));
    let _again = gate.holders.add(&x, account("good"), token("good"), None);
    source.list().await.unwrap();
}

#[tokio::test]
async fn the_node_asks_for_the_operator_and_to_mend_and_for_nobody_else() {
    let (gate, notes) = gate(&[Credential::Node]);
    let x = uri("memory://m/x");
    let _pod = gate.holders.add(&x, account("pod"), token("pod"), None);
    assert!(gate.open(&x).await.unwrap().list().await.unwrap_err().is_paused());
    assert_eq!(*notes.asked.lock().unwrap(), [token("pod")]);
    gate.open_to_mend(&x).await.unwrap().list().await.unwrap();
    let lease = gate.holders.add(&x, Principal::Node, Credential::Node, None);
    gate.open(&x).await.unwrap().list().await.unwrap();
    drop(lease);
    assert!(gate.open(&x).await.unwrap().list().await.unwrap_err().is_paused(), "it ended with its call");
}

#[tokio::test(start_paused = true)]
async fn a_lease_covers_what_lies_below_its_source_until_it_ends() {
    let holders = Holders::default();
    let second = Instant::now() + Duration::from_secs(1);
    let _lease = holders.add(&uri("gs://b/m"), account("a"), token("a"), Some(second));
    for (url, is_covered) in [
        ("gs://b/m", true),
        ("gs://b/m/x", true),
        ("gs://b/m2", false),
        ("gs://b", false),
        ("gs://b2/m/x", false),
        ("s3://b/m", false),
    ] {
        assert_eq!(!holders.of(url, url).is_empty(), is_covered, "{url}");
    }
    advance(Duration::from_secs(1)).await;
    assert!(holders.of("gs://b/m/x", "gs://b/m/x").is_empty(), "it has expired");
}

#[tokio::test(start_paused = true)]
async fn a_credential_ends_with_its_volume_or_with_what_replaces_it() {
    let (holders, source, target) = (Holders::default(), uri("gs://b/m"), Path::new("/pods/a"));
    let tokens = |holders: &Holders| {
        holders.of("gs://b/m", "gs://b/m").into_iter().map(|holder| holder.credential).collect::<Vec<_>>()
    };
    holders.add(&source, account("a"), token("1"), None).settle(target, key());
    holders.add(&source, account("a"), token("2"), None).settle(target, key());
    assert_eq!(tokens(&holders), [token("2")]);
    let before = Instant::now();
    advance(Duration::from_secs(1)).await;
    let later = Path::new("/pods/b");
    holders.add(&source, account("b"), token("3"), None).settle(later, key());
    holders.keep_only(before + Duration::from_millis(1), |_| false, |_| false);
    assert_eq!(tokens(&holders), [token("3")], "one that came since is not missed in an older table");
    holders.end(later);
    assert_eq!(holders.count(), 0);
    // Who has a file of the operator's open reads on.
    holders.add(&source, Principal::Node, Credential::Node, None).settle(target, key());
    holders.end(target);
    assert_eq!(tokens(&holders), [Credential::Node]);
    holders.keep_only(Instant::now(), |_| false, |_| true);
    assert_eq!(holders.count(), 1);
    holders.keep_only(Instant::now(), |_| false, |_| false);
    assert_eq!(holders.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_when_someone_comes() {
    let (holders, source) = (Holders::default(), uri("gs://b/m/x"));
    assert!(timeout(Duration::from_secs(9), holders.until_there(&source)).await.is_err());
    let coming = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        holders.add(&uri("gs://b/m"), account("a"), token("a"), None)
    };
    let (_, _lease) = tokio::join!(timeout(Duration::from_secs(9), holders.until_there(&source)), coming);
    holders.until_there(&source).await;
}
