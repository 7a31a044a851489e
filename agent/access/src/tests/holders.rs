//! How long a credential may be used.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, advance, timeout};
use weightd_source::Credential;

use super::{account, key, token, uri};
use crate::{holders::Holders, identity::Principal};

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

/// Whether the node may be asked as for what a volume of the operator's showed.
fn has_node(holders: &Holders) -> bool {
    holders.of("gs://b/m", "gs://b/m").iter().any(|holder| holder.credential == Credential::Node)
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_left_open_is_not_fetched_as_the_node_for_a_pod() {
    let (source, pods, operators) = (uri("gs://b/m"), Path::new("/pods/a"), Path::new("/mnt/a"));
    let operator = |holders: &Holders| {
        holders.add(&source, Principal::Node, Credential::Node, None).settle(operators, key());
    };
    let pod = |holders: &Holders| holders.add(&source, account("a"), token("1"), None).settle(pods, key());

    let holders = Holders::default();
    operator(&holders);
    holders.end(operators);
    assert!(has_node(&holders));
    pod(&holders);
    assert!(!has_node(&holders), "a pod came later");

    let holders = Holders::default();
    pod(&holders);
    operator(&holders);
    assert!(has_node(&holders), "it is the operator's as long as it is mounted");
    holders.end(operators);
    assert!(!has_node(&holders), "a pod was there");

    // Other layouts of it, and sources within it or around it, are of the same objects; others are no matter.
    let other = weightd_types::SnapshotKey { layout: weightd_types::Layout::Aligned, ..key() };
    for (shown, is_left) in
        [("gs://b/m", false), ("gs://b/m/part", false), ("gs://b", false), ("gs://b/more", true)]
    {
        let holders = Holders::default();
        holders.add(&uri(shown), account("a"), token("1"), None).settle(pods, other);
        operator(&holders);
        holders.keep_only(Instant::now() + Duration::from_secs(1), |target| target == pods, |_| true);
        assert_eq!(has_node(&holders), is_left, "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_left_open_is_remembered_once() {
    let (holders, source) = (Holders::default(), uri("gs://b/m"));
    for n in 0..5 {
        let target = format!("/mnt/{n}");
        let lease = holders.add(&source, Principal::Node, Credential::Node, None);
        lease.settle(Path::new(&target), key());
        holders.end(Path::new(&target));
    }
    assert_eq!(holders.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn live_credentials_are_counted_once_and_not_when_they_ended_or_were_refused() {
    let (holders, source) = (Holders::default(), uri("gs://b/m"));
    let second = Instant::now() + Duration::from_secs(1);
    let _first = holders.add(&source, account("a"), token("1"), None);
    let _again = holders.add(&source, account("a"), token("1"), None);
    let _brief = holders.add(&source, account("b"), token("2"), Some(second));
    assert_eq!(holders.live(), 2);
    advance(Duration::from_secs(1)).await;
    assert_eq!(holders.live(), 1);
    holders.refuse("gs://b/m/x", &token("1"), crate::error::Refusal::Denied);
    assert_eq!(holders.live(), 0);
}
